"""Batches on their way to a GPU: through pinned memory, on a stream of their own, while the step
before them runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from convgrad.backend import CPU, CudaBackend, by_device, of
from convgrad.tensor import Tensor

__all__ = ["Transfer", "transfer_to"]


class _Staged(NamedTuple):
    """A tensor's values in pinned memory, in the order in which they shall lie."""

    values: np.ndarray
    channels_last: bool  # axis 1 is the last of ``values``
    buffer: np.ndarray  # uint8, what they lie in


class _Sent(NamedTuple):
    batch: Any
    arrived: Any  # the event


class Transfer:
    """Copies batches (tensors in tuples, lists, dicts) to one GPU.

    ``stage`` may be called by any thread: it moves a batch's tensors into pinned memory. ``send``
    and ``arrive`` are the consumer's. Between the two a copy is under way, in the order that events
    make:

    - the copy stream waits for all that the consumer's stream has been given before the memory was
      allocated, for that may still use the block's last life;
    - the consumer's stream waits for the copy, when the batch is handed over;
    - pinned memory is written again when the copy out of it is done.
    """

    def __init__(self, backend: CudaBackend) -> None:
        self.backend = backend
        self._cuda = backend.xp.cuda
        with backend.current():
            # Not ordered with the default stream, on which most programs compute.
            self._copies = self._cuda.Stream(non_blocking=True)
        # Pinned memory that is let go may be anybody's at once: the copies out of it come first.
        weakref.finalize(self, self._copies.synchronize).atexit = False
        self._lock = threading.Lock()
        self._buffers: list[tuple[np.ndarray, Any]] = []  # with the event of the last copy out

    # ---- pinned memory ----

    def stage(self, batch: Any) -> Any:
        """The batch with the tensors of the CPU in pinned memory."""
        return _mapped(batch, Tensor, self._stage)

    def _stage(self, tensor: Tensor) -> Any:
        array = tensor.array
        if of(array) is not CPU:
            return tensor
        last = array.ndim > 2 and array.dtype.kind == "f" and CPU.lib.is_channels_last(array)
        source = np.moveaxis(array, 1, -1) if last else array
        buffer = self._take(array.nbytes)
        values = buffer[: array.nbytes].view(array.dtype).reshape(source.shape)
        values[...] = source
        return _Staged(values, last, buffer)

    def _take(self, nbytes: int) -> np.ndarray:
        """A buffer of at least so many bytes, whose last copy is done."""
        with self._lock:
            sizes = [b.size for b, _ in self._buffers]
            fitting = [i for i, size in enumerate(sizes) if size >= nbytes]
            best = min(fitting, key=sizes.__getitem__, default=None)  # of the smallest the oldest
            found = None if best is None else self._buffers.pop(best)
        if found is not None:
            buffer, copied = found
            copied.synchronize()
            return buffer
        size = max(nbytes, 1)
        with self.backend.current():
            return np.frombuffer(self._cuda.alloc_pinned_memory(size), np.uint8, size)

    def _give_back(self, buffers: list[np.ndarray], copied: Any) -> None:
        with self._lock:
            self._buffers += [(buffer, copied) for buffer in buffers]

    # ---- copies ----

    def send(self, staged: Any) -> _Sent:
        """Starts to copy a staged batch."""
        with self.backend.current():
            buffers: list[np.ndarray] = []
            targets: list[tuple[Any, np.ndarray]] = []

            def target(s: _Staged) -> Tensor:
                array = self.backend.xp.empty(s.values.shape, s.values.dtype)
                buffers.append(s.buffer)
                targets.append((array, s.values))
                return Tensor(self.backend.xp.moveaxis(array, -1, 1) if s.channels_last else array)

            batch = _mapped(staged, _Staged, target)
            self._wait_for_memory()
            for array, values in targets:
                if array.size > 0:
                    array.set(values, self._copies)
            arrived = self._copies.record()
            self._give_back(buffers, arrived)
            return _Sent(batch, arrived)

    def _wait_for_memory(self) -> None:
        self._copies.wait_event(self._cuda.get_current_stream().record())

    def arrive(self, sent: _Sent) -> Any:
        """The batch, for work on the current stream."""
        with self.backend.current():
            self._cuda.get_current_stream().wait_event(sent.arrived)
        return sent.batch


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The value with function(v) for every v of the kind in its tuples, lists and dicts."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        return {k: _mapped(v, kind, function) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_mapped(v, kind, function) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def transfer_to(device: Any) -> Transfer | None:
    """None for the CPU and for no device."""
    backend = CPU if device is None else by_device(device)
    return Transfer(backend) if isinstance(backend, CudaBackend) else None
