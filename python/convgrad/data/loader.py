"""The loader: batches of a data set, prepared ahead by threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from convgrad.data.dataset import to_channels_last, whole_batch
from convgrad.data.sampler import BatchSampler, RandomSampler, SequentialSampler
from convgrad.data.transfer import Transfer, transfer_to
from convgrad.tensor import Tensor

__all__ = ["DataLoader", "default_collate"]


def default_collate(items: Sequence[Any]) -> Any:
    """A list of items as one batch: each number, array or tensor in them gets a first axis.

    Tuples, lists and dictionaries keep their structure. Python floats become float32, ints int64,
    arrays keep their dtype; strings and bytes become a list.
    """
    first = items[0]
    if isinstance(first, (Tensor, np.ndarray, np.generic)):
        arrays = [item.array if isinstance(item, Tensor) else np.asarray(item) for item in items]
        shapes = [a.shape for a in arrays]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"[DataLoader] The items of a batch must have one shape. Got {sorted(set(shapes))}."
            )
        return Tensor(to_channels_last(np.stack(arrays)))
    if isinstance(first, bool):
        return Tensor(np.array(items, np.bool_))
    if isinstance(first, int):
        return Tensor(np.array(items, np.int64))
    if isinstance(first, float):
        return Tensor(np.array(items, np.float32))
    if isinstance(first, (str, bytes)):
        return list(items)
    if isinstance(first, Mapping):
        return {key: default_collate([item[key] for item in items]) for key in first}
    if isinstance(first, (tuple, list)):
        if any(len(item) != len(first) for item in items):
            raise ValueError(
                "[DataLoader] The items of a batch must have one length. Got "
                f"{sorted({len(item) for item in items})}."
            )
        columns = [default_collate(column) for column in zip(*items)]
        if hasattr(first, "_fields"):  # a named tuple
            return type(first)(*columns)
        return type(first)(columns)
    raise TypeError(
        "[DataLoader] Items must be tensors, arrays, numbers, strings, or tuples, lists or "
        f"dictionaries of them. Got {type(first).__name__}."
    )


class DataLoader:
    """Iterates over a data set in batches; each loop is an epoch.

    Args as ``torch.utils.data.DataLoader``, and:
        seed, generator: what shuffling draws from; the default generator if both are left out.
        prefetch: how many batches are prepared ahead by threads; 0 for none.
        num_workers: how many threads; with it alone, prefetch is twice as many.
        device: a GPU, such as 'cuda': batches are tensors there. Threads put them into pinned
            memory, and each is copied while the one before it is in use, for work on the stream
            that is current in the loop. Without it batches stay where the items are.
        pin_memory, persistent_workers: accepted, without effect; a device's batches are pinned.

    The batches follow from (seed, epoch) alone, whatever the threads do. The first loop is epoch 0,
    each further loop the next one; ``set_epoch`` chooses. ``state_dict()`` taken inside a loop and
    loaded into a new loader goes on with the next batch. An exception in a thread is raised in the
    loop, at its batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        *,
        seed: int | None = None,
        generator: Any = None,
        prefetch: int | None = None,
        device: Any = None,
        persistent_workers: bool = False,
    ) -> None:
        if sampler is not None and shuffle:
            raise ValueError("[DataLoader] sampler and shuffle=True exclude each other. Got both.")
        if batch_sampler is not None and (
            batch_size != 1 or shuffle or sampler is not None or drop_last
        ):
            raise ValueError(
                "[DataLoader] batch_sampler excludes batch_size, shuffle, sampler and drop_last. "
                f"Got batch_size {batch_size}, shuffle {shuffle}, drop_last {drop_last}."
            )
        for name, value in (("num_workers", num_workers), ("prefetch", prefetch or 0)):
            if value < 0:
                raise ValueError(f"[DataLoader] {name} must be at least 0. Got {value}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.prefetch = 2 * num_workers if prefetch is None else prefetch
        self.collate_fn = collate_fn
        self.device = device
        self._transfer: Transfer | None = transfer_to(device)
        if batch_sampler is None:
            if sampler is None:
                if shuffle:
                    sampler = RandomSampler(dataset, seed=seed, generator=generator)
                else:
                    sampler = SequentialSampler(dataset)
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.epoch = 0
        self.position = 0  # batches of this epoch handed out
        self._chosen = True  # the next loop is epoch `epoch`, from `position` on

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    # ---- where it stands ----

    def set_epoch(self, epoch: int) -> None:
        """The next loop is this epoch, from its start."""
        self.epoch, self.position, self._chosen = epoch, 0, True

    def state_dict(self) -> dict[str, Any]:
        """{'epoch', 'position', 'seed'}: with it another loader goes on with the next batch."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": getattr(self.sampler, "seed", None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next loop goes on where ``state`` was taken; ValueError if an entry is missing."""
        missing = {"epoch", "position", "seed"} - state.keys()
        if missing:
            raise ValueError(f"[DataLoader] The state must hold {sorted(missing)}.")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._chosen = True
        if state["seed"] is not None and hasattr(self.sampler, "seed"):
            setattr(self.sampler, "seed", int(state["seed"]))  # noqa: B010

    # ---- the loop ----

    def __iter__(self) -> Iterator[Any]:
        if not self._chosen:  # the last loop was left early
            self.epoch, self.position = self.epoch + 1, 0
        self._chosen = False
        for part in (self.batch_sampler, self.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.epoch)
        batches = itertools.islice(iter(self.batch_sampler), self.position, None)
        return self._loop(self.epoch, self.position, batches)

    def _loop(self, epoch: int, position: int, batches: Iterator[Sequence[int]]) -> Iterator[Any]:
        loaded = self._ahead(batches) if self.prefetch else map(self._load, batches)
        if self._transfer is not None:
            loaded = _sent_ahead(loaded, self._transfer)
        for self.position, batch in enumerate(loaded, position + 1):
            yield batch
        self.set_epoch(epoch + 1)

    def _load(self, indices: Sequence[int]) -> Any:
        batch = self._collated(indices)
        return batch if self._transfer is None else self._transfer.stage(batch)

    def _collated(self, indices: Sequence[int]) -> Any:
        if self.collate_fn is not None:
            return self.collate_fn([self.dataset[i] for i in indices])
        batch = whole_batch(self.dataset, indices)
        if batch is not None:
            return batch
        return default_collate([self.dataset[i] for i in indices])

    def _ahead(self, batches: Iterator[Sequence[int]]) -> Iterator[Any]:
        """The batches in order, up to ``prefetch`` of them being prepared by threads."""
        pool = ThreadPoolExecutor(max(1, self.num_workers), thread_name_prefix="convgrad-data")
        waiting: deque[Future[Any]] = deque()
        try:
            for indices in itertools.islice(batches, self.prefetch):
                waiting.append(pool.submit(self._load, indices))
            while waiting:
                batch = waiting.popleft().result()
                for indices in itertools.islice(batches, 1):
                    waiting.append(pool.submit(self._load, indices))
                yield batch
        finally:
            # Also where the consumer left the loop: nothing goes on in the background.
            pool.shutdown(wait=True, cancel_futures=True)


def _sent_ahead(staged: Iterator[Any], transfer: Transfer) -> Iterator[Any]:
    """The batches on the GPU, the next one on its way; an exception comes at its own batch."""
    error: Exception | None = None
    sent: deque[Any] = deque()
    try:
        while error is None:
            try:
                sent.append(transfer.send(next(staged)))
            except StopIteration:
                break
            except Exception as found:  # raised below
                error = found
            if len(sent) > 1:
                yield transfer.arrive(sent.popleft())
        while sent:
            yield transfer.arrive(sent.popleft())
        if error is not None:
            raise error
    finally:
        for batch in sent:  # its memory is given back in the order of the current stream
            transfer.arrive(batch)
