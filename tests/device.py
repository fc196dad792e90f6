"""The suite on another device: CONVGRAD_TEST_DEVICE=cuda makes it the default one, on a card or,
with CONVGRAD_CUDA_SIM=1, on the simulator. Tests hand NumPy arrays to `lib` and to `tensor`, and
get NumPy arrays back, whatever the device.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import convgrad as cg
from convgrad import backend

DEVICE = os.environ.get("CONVGRAD_TEST_DEVICE", "cpu")
ON_CPU = DEVICE == "cpu"
SIMULATED = not ON_CPU and os.environ.get("CONVGRAD_CUDA_SIM") == "1"
BACKEND = backend.by_device(DEVICE)


def place(host: np.ndarray) -> Any:
    """The NumPy array's memory on the device, with the same strides."""
    if ON_CPU or host.size == 0:
        return BACKEND.put(host)
    low, high = np.lib.array_utils.byte_bounds(host)
    at = host.__array_interface__["data"][0] - low
    flat = np.lib.stride_tricks.as_strided(_bytes_at(host, low, high), (high - low,), (1,))
    xp = BACKEND.xp
    memory = xp.asarray(np.array(flat))
    return xp.ndarray(host.shape, host.dtype, memory.data + at, host.strides)


def _bytes_at(host: np.ndarray, low: int, high: int) -> np.ndarray:
    class Memory:
        __array_interface__ = {  # noqa: RUF012
            "data": (low, True),
            "shape": (high - low,),
            "typestr": "|u1",
            "version": 3,
        }

    return np.asarray(Memory())


def fetch(array: Any) -> np.ndarray:
    """A device's array in NumPy, with the same strides."""
    if isinstance(array, np.ndarray):
        return array
    host = backend.host(array)  # raises what kernels have reported; float32 of 16-bit types
    if host.size == 0 or array.flags.c_contiguous:
        return host
    strides = tuple(s // array.itemsize * host.itemsize for s in array.strides)
    out = np.lib.stride_tricks.as_strided(np.empty(1, host.dtype), host.shape, strides)
    low, high = np.lib.array_utils.byte_bounds(out)
    memory = np.empty(high - low, np.uint8)
    at = out.__array_interface__["data"][0] - low
    out = np.ndarray(host.shape, host.dtype, memory, at, strides)
    if 0 in strides:  # repeated elements are written again and again
        out[...] = host
        return out
    out[...] = host
    return out


def _placed(value: Any, placed: dict[int, tuple[Any, Any]]) -> Any:
    """The value with every NumPy array in it on the device; `placed` notes which by the result."""
    if isinstance(value, np.ndarray):
        for host, array in placed.values():
            if host is value:
                return array
        array = place(value)
        placed[id(array)] = value, array
        return array
    if isinstance(value, (list, tuple)):
        return type(value)([_placed(v, placed) for v in value])
    return value


def _fetched(value: Any, placed: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_fetched(v, placed) for v in value])
    if id(value) in placed:
        return placed[id(value)][0]
    return fetch(value) if backend.is_array(value) else value


class Lib:
    """The kernels of the device under test, for NumPy arrays: they are placed on the device, what a
    kernel changed in them is copied back, and results are fetched."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(BACKEND.lib, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            placed: dict[int, tuple[Any, Any]] = {}
            moved = {k: _placed(v, placed) for k, v in kwargs.items()}
            out = _fetched(function(*_placed(args, placed), **moved), placed)
            for host, array in placed.values():
                now = fetch(array).astype(host.dtype, copy=False)
                if host.flags.writeable and now.tobytes() != host.tobytes():
                    host[...] = now
            return out

        return call if callable(function) else function


lib: Any = BACKEND.lib if ON_CPU else Lib()


def tensor_on(host: np.ndarray, requires_grad: bool = False) -> cg.Tensor:
    """A tensor with the array's values and strides: on the CPU in its memory."""
    return cg.Tensor(place(host), requires_grad)


def values(t: Any) -> np.ndarray:
    """A tensor's or a device array's values in NumPy, with its strides."""
    return fetch(t.array if isinstance(t, cg.Tensor) else t)


def live_bytes() -> int:
    """How much of the device's memory arrays hold."""
    stats = BACKEND.lib.memory_stats() if ON_CPU else cg.cuda.memory_stats(DEVICE)
    return stats["live_bytes"]


class _RaisesBad:
    """On the CPU pytest.raises(error, match=match). On a GPU the call returns before it is known,
    and the next one that waits raises ValueError with the value."""

    def __init__(self, error: type[Exception], match: str, value: Any) -> None:
        pattern = match if ON_CPU else rf"Got {value}\b"
        self.raises = pytest.raises(error if ON_CPU else ValueError, match=pattern)

    def __enter__(self) -> Any:
        return self.raises.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is None and not ON_CPU:
            try:
                cg.cuda.synchronize(DEVICE)
            except ValueError as found:
                return self.raises.__exit__(type(found), found, found.__traceback__)
        return self.raises.__exit__(kind, error, trace)


def raises_for_value(error: type[Exception], match: str, value: Any) -> Any:
    """The block is refused because of ``value`` in an array."""
    return _RaisesBad(error, match, value)
