"""GPUs, as ``torch.cuda``: which there are, waiting for them, their memory.

Kernels run on the GPU of their tensors and on its current stream in CuPy. What CuPy itself computes
(comparisons, most reductions, indexing) needs that GPU to be the current one, as in CuPy:
``with cg.cuda.device(1): ...``.
"""

from __future__ import annotations

from typing import Any

from convgrad import capturing
from convgrad.backend import CudaBackend, _load_cuda, by_device
from convgrad.captured import CapturedStep, capture

__all__ = [
    "CapturedStep",
    "capture",
    "current_device",
    "device",
    "device_count",
    "empty_cache",
    "get_device_name",
    "is_available",
    "memory_stats",
    "set_device",
    "synchronize",
]


def _backend(device: Any) -> CudaBackend:
    """The backend of 'cuda:1', of 1, or of the current device for None."""
    found = by_device("cuda" if device is None else device)
    if not isinstance(found, CudaBackend):
        raise ValueError(f"[cuda] The device must be a GPU. Got {device!r}.")
    return found


def is_available() -> bool:
    """Whether there is a GPU that can be used; ``convgrad info`` says why not."""
    return device_count() > 0


def device_count() -> int:
    """How many GPUs can be used."""
    try:
        return len(_load_cuda())
    except RuntimeError:
        return 0


def current_device() -> int:
    """The number of the GPU that 'cuda' means in this thread."""
    return _backend(None).index


def set_device(device: Any) -> None:
    """Makes 'cuda' mean this GPU, in this thread."""
    found = _backend(device)
    _refuse_switch("set_device", found)
    found.xp.cuda.Device(found.index).use()


def _refuse_switch(op: str, to: CudaBackend) -> None:
    recorder = capturing.recorder()
    if recorder is not None and recorder.backend is not to:
        raise RuntimeError(
            f"[{op}] A captured step runs on one GPU, {recorder.backend.device}. Got {to.device}."
        )


class device:
    """``with cg.cuda.device(1):``, 'cuda' means this GPU, in this thread."""

    def __init__(self, device: Any) -> None:
        found = _backend(device)
        _refuse_switch("device", found)
        self._scope = found.current()

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._scope.__exit__(*error)


def get_device_name(device: Any = None) -> str:
    """The GPU's name."""
    found = _backend(device)
    name: bytes = found.xp.cuda.runtime.getDeviceProperties(found.index)["name"]
    return name.decode()


def synchronize(device: Any = None) -> None:
    """Waits until the GPU has done all it was given. ValueError if a kernel found a bad value, such
    as a class out of range: calls return before their kernels have run."""
    capturing.refuse("A captured step is recorded and not run: wait for it after the call.")
    found = _backend(device)
    found.lib.synchronize(found.index)


def empty_cache() -> None:
    """Gives the memory that is kept for reuse back to the driver."""
    found = _backend(None)
    found.xp.get_default_memory_pool().free_all_blocks()


def memory_stats(device: Any = None) -> dict[str, int]:
    """Bytes: live_bytes in arrays, cached_bytes kept for reuse, free_bytes and total_bytes of the
    GPU."""
    found = _backend(device)
    with found.current():
        pool = found.xp.get_default_memory_pool()
        free, total = found.xp.cuda.runtime.memGetInfo()
        return {
            "live_bytes": pool.used_bytes(),
            "cached_bytes": pool.free_bytes(),
            "free_bytes": free,
            "total_bytes": total,
        }
