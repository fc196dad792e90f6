"""Data sets: anything with ``__len__`` and ``__getitem__``."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from convgrad.backend import lib_of
from convgrad.data.sampler import generator_of
from convgrad.tensor import Tensor

__all__ = ["ConcatDataset", "Dataset", "Subset", "TensorDataset", "random_split"]


class Dataset:
    """The base class: a subclass defines ``__getitem__(index)`` and ``__len__()``.

    A data set that can make a whole batch at once also defines ``batch(indices)``;
    :class:`DataLoader` then uses it instead of collating single items. One with ``set_epoch`` is
    told the number of each epoch, to draw its augmentation from (seed, epoch, index).
    """

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"[{type(self).__name__}] __getitem__ is not defined.")

    def __len__(self) -> int:
        raise NotImplementedError(f"[{type(self).__name__}] __len__ is not defined.")

    def __add__(self, other: Dataset) -> ConcatDataset:
        return ConcatDataset([self, other])

    def batch(self, indices: Sequence[int]) -> Any:
        """The batch of these items, or None: collate them one by one."""
        return None


class TensorDataset(Dataset):
    """Tensors or arrays of one length; item i is the tuple of their rows i."""

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ValueError("[TensorDataset] At least one tensor must be given. Got none.")
        self.tensors = tuple(t if isinstance(t, Tensor) else Tensor(np.asarray(t)) for t in tensors)
        shapes = [t.shape for t in self.tensors]
        if any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                f"[TensorDataset] The tensors must have the same first axis. Got shapes {shapes}."
            )

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(Tensor(t.array[index]) for t in self.tensors)

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Each tensor's rows, gathered in one call."""
        return tuple(Tensor(take_rows(t.array, indices)) for t in self.tensors)


class Subset(Dataset):
    """The items of another data set at these indices."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Any:
        """The whole data set's batch at the subset's indices."""
        return whole_batch(self.dataset, [self.indices[i] for i in indices])


class ConcatDataset(Dataset):
    """Data sets one after another."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("[ConcatDataset] At least one data set must be given. Got none.")
        self.cumulative_sizes = list(itertools.accumulate(len(d) for d in self.datasets))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"[ConcatDataset] index {index} is out of {len(self)} items.")
        index %= len(self)
        which = bisect.bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[which - 1] if which else 0
        return self.datasets[which][index - start]


def random_split(dataset: Any, lengths: Sequence[float], generator: Any = None) -> list[Subset]:
    """Disjoint random subsets of these lengths, or of these shares (which sum to 1).

    generator: a ``convgrad`` or NumPy generator or a seed; the default generator if left out.
    """
    n = len(dataset)
    if (
        lengths
        and all(isinstance(part, float) for part in lengths)
        and math.isclose(sum(lengths), 1)
    ):
        counts = [math.floor(n * part) for part in lengths]
        for i in range(n - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        counts = [int(part) for part in lengths]
    if sum(counts) != n or any(count < 0 for count in counts):
        raise ValueError(
            f"[random_split] lengths must sum to the data set's length, {n}, or as shares to 1. "
            f"Got {list(lengths)}."
        )
    order = generator_of(generator).permutation(n).tolist()
    ends = list(itertools.accumulate(counts))
    return [Subset(dataset, order[end - count : end]) for count, end in zip(counts, ends)]


def whole_batch(dataset: Any, indices: Sequence[int]) -> Any:
    """``dataset.batch(indices)``, or None where single items must be collated.

    A subclass that overrides ``__getitem__`` alone is not asked for whole batches: they would
    bypass it.
    """
    for cls in type(dataset).__mro__:
        if "batch" in vars(cls):
            return dataset.batch(indices) if issubclass(cls, Dataset) else None
        if "__getitem__" in vars(cls):
            return None
    return None


def take_rows(array: Any, indices: Sequence[int]) -> Any:
    """array[indices], channels-last; IndexError where an index is out of range."""
    rows = np.asarray(indices, np.int64)
    if array.ndim < 3:
        return np.take(array, rows, axis=0)
    last = np.moveaxis(array, 1, -1)
    if last.flags.c_contiguous:
        return np.moveaxis(np.take(last, rows, axis=0), -1, 1)
    # np.take would first copy all of an array that is not C-contiguous.
    batch = np.take(array, rows, axis=0) if array.flags.c_contiguous else array[rows]
    return to_channels_last(batch)


def to_channels_last(array: Any) -> Any:
    """A float signal, image or volume batch channels-last; anything else as it is."""
    if array.ndim < 3 or array.dtype not in (np.float32, np.float64):
        return array
    return lib_of(array).channels_last(array)
