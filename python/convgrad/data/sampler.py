"""Samplers: in what order the items of a data set are visited.

A sampler is an iterable of indices with a length. Those that draw have ``set_epoch``: the order
follows from (seed, epoch) alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np

from convgrad.random import Generator, default_generator

__all__ = [
    "BatchSampler",
    "ClassBalancedSampler",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "WeightedRandomSampler",
]


def generator_of(source: Any) -> np.random.Generator:
    """A NumPy generator: of a convgrad generator, a NumPy generator, a seed, or the default's."""
    if source is None:
        return default_generator.numpy
    if isinstance(source, np.random.Generator):
        return source
    if isinstance(source, Generator):
        return source.numpy
    return np.random.Generator(np.random.Philox(int(source)))


def draw_seed(source: Any) -> int:
    """A seed: the int given, or drawn once from a generator (the default one for None)."""
    if isinstance(source, (int, np.integer)):
        return int(source)
    return int(generator_of(source).integers(2**62))


class Sampler:
    """The base class: a subclass defines ``__iter__`` and ``__len__``."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"[{type(self).__name__}] __iter__ is not defined.")

    def __len__(self) -> int:
        raise NotImplementedError(f"[{type(self).__name__}] __len__ is not defined.")

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; nothing to choose here."""


class SequentialSampler(Sampler):
    """0, 1, ..., len(data_source) - 1."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class _DrawingSampler(Sampler):
    """Draws ``num_samples`` indices from (seed, epoch)."""

    def __init__(self, num_samples: int, seed: Any, generator: Any) -> None:
        if num_samples < 0:
            raise ValueError(
                f"[{type(self).__name__}] num_samples must be at least 0. Got {num_samples}."
            )
        self.num_samples = num_samples
        self.seed = draw_seed(generator if seed is None else seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of this epoch."""
        self.epoch = epoch

    def _draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.epoch, self.seed & (2**64 - 1)])
        return iter(self._draw(rng).tolist())

    def __len__(self) -> int:
        return self.num_samples


class RandomSampler(_DrawingSampler):
    """A permutation, or with ``replacement`` independent draws; a new one for each epoch set."""

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        seed: int | None = None,
        generator: Any = None,
    ) -> None:
        super().__init__(len(data_source) if num_samples is None else num_samples, seed, generator)
        self.data_source = data_source
        self.replacement = replacement

    def _draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        n = len(self.data_source)
        if self.replacement:
            return rng.integers(n, size=self.num_samples)
        rounds = -(-self.num_samples // n) if n else 0
        orders = [rng.permutation(n) for _ in range(rounds)]
        return np.concatenate([np.zeros(0, np.int64), *orders])[: self.num_samples]


class WeightedRandomSampler(_DrawingSampler):
    """Index i with probability weights[i] / sum(weights)."""

    def __init__(
        self,
        weights: Sequence[float] | Any,
        num_samples: int,
        replacement: bool = True,
        seed: int | None = None,
        generator: Any = None,
    ) -> None:
        super().__init__(num_samples, seed, generator)
        w = np.asarray(weights, np.float64)
        if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
            raise ValueError(
                "[WeightedRandomSampler] weights must be a list of numbers >= 0, some of them "
                f"above 0. Got shape {w.shape}, smallest {w.min() if w.size else None}."
            )
        if not replacement and num_samples > np.count_nonzero(w):
            raise ValueError(
                "[WeightedRandomSampler] Without replacement at most as many samples as there are "
                f"weights above 0, {np.count_nonzero(w)}, can be drawn. Got {num_samples}."
            )
        self.weights = w
        self.replacement = replacement

    def _draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        p = self.weights / self.weights.sum()
        return rng.choice(len(p), size=self.num_samples, replace=self.replacement, p=p)


class ClassBalancedSampler(_DrawingSampler):
    """Every class equally often, whatever its share of ``labels``.

    Each class's items are visited in random order, again from the start when they are used up.
    num_samples: how many to draw; len(labels) if left out.
    """

    def __init__(
        self,
        labels: Sequence[int] | Any,
        num_samples: int | None = None,
        seed: int | None = None,
        generator: Any = None,
    ) -> None:
        values = np.asarray(labels)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                "[ClassBalancedSampler] labels must be a list with one class per item. Got shape "
                f"{values.shape}."
            )
        super().__init__(values.size if num_samples is None else num_samples, seed, generator)
        self.members = [np.flatnonzero(values == c) for c in np.unique(values)]

    def _draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        k = len(self.members)
        per_class = -(-self.num_samples // k)
        rows = [
            np.concatenate([rng.permutation(m) for _ in range(-(-per_class // len(m)))])[:per_class]
            if per_class
            else m[:0]
            for m in self.members
        ]
        # One of each class in turn, the classes of each round in random order.
        table = rng.permuted(np.stack(rows, axis=1), axis=1)
        return table.reshape(-1)[: self.num_samples]


class BatchSampler(Sampler):
    """Lists of ``batch_size`` indices of another sampler."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"[BatchSampler] batch_size must be a positive int. Got {batch_size!r}."
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the sampler."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(iter(self.sampler))  # now: the sampler's epoch may change later

    def _batches(self, indices: Iterator[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in indices:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
