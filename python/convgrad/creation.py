"""New tensors: from arrays, constants, ranges and random numbers.

Shapes are given as numbers or as one tuple; float32 is the default type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad import backend
from convgrad.dtypes import FLOATS, is_half
from convgrad.functional.shape import sizes
from convgrad.random import Generator, default_generator
from convgrad.tensor import Tensor, as_tensor, checked_dtype, put, tensor

__all__ = [
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "eye",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
]

Shape = Any  # ints, or one tuple of them


# ---- from what exists ----


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor in the array's memory. TypeError for other types than NumPy's arrays.

    A read-only array gives a tensor that cannot be changed in place.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"[from_numpy] A NumPy array is needed. Got {type(array).__name__}.")
    checked_dtype("from_numpy", array.dtype)
    if not array.dtype.isnative or not array.flags.aligned:
        raise ValueError(
            "[from_numpy] The array must be aligned and in native byte order to share its memory; "
            f"use tensor(). Got dtype {array.dtype}, aligned={array.flags.aligned}."
        )
    return Tensor(array)


def from_dlpack(source: Any) -> Tensor:
    """A tensor in the memory of any array with ``__dlpack__``, on the CPU or a GPU."""
    kind, index = source.__dlpack_device__()
    target = backend.CPU
    if kind in _DLPACK_CUDA:
        target = backend.by_device(f"cuda:{index}")
        with target.current():
            array = target.xp.from_dlpack(source)
    else:
        array = np.from_dlpack(source)
    checked_dtype("from_dlpack", array.dtype, target)
    return Tensor(array)


_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


# ---- constants ----


def _leaf(array: Any, requires_grad: bool) -> Tensor:
    out = Tensor(array)
    if requires_grad:
        out.requires_grad = True
    return out


def _from_host(array: np.ndarray, dtype: np.dtype[Any], device: Any, requires_grad: bool) -> Tensor:
    return _leaf(put(array, backend.for_new(device), dtype), requires_grad)


def _dtypes(op: str, dtype: Any, device: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The new tensor's dtype, and the one that its values are made in on the host."""
    wanted = checked_dtype(op, np.float32 if dtype is None else dtype, backend.for_new(device))
    return wanted, np.dtype(np.float32) if is_half(wanted) else wanted


def _allocate(op: str, shape: tuple[int, ...], dtype: Any, target: backend.Backend) -> Any:
    """Uninitialised, from the pool; float arrays of more than two axes channels-last."""
    for s in shape:
        if s < 0:
            raise ValueError(f"[{op}] Sizes must be at least 0. Got {shape}.")
    wanted = checked_dtype(op, np.float32 if dtype is None else dtype, target)
    if wanted.kind not in FLOATS and len(shape) > 2:
        with target.current():
            return target.xp.empty(shape, wanted)
    return target.empty(shape, wanted)


def _filled(
    op: str, shape: Any, value: Any, dtype: Any, device: Any, requires_grad: bool
) -> Tensor:
    target = backend.for_new(device)
    array = _allocate(op, shape, dtype, target)
    if target is backend.CPU:
        array[...] = value
    else:
        with target.current():
            array[...] = value
    return _leaf(array, requires_grad)


def empty(
    *size: Shape, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Uninitialised."""
    array = _allocate("empty", sizes("empty", size), dtype, backend.for_new(device))
    return _leaf(array, requires_grad)


def full(
    size: Shape,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """fill_value everywhere; without dtype a bool, int64 or float32 tensor, by the value's type."""
    if isinstance(fill_value, Tensor):
        fill_value = fill_value.numpy(force=True)
    if dtype is None:
        kind = np.asarray(fill_value).dtype
        dtype = np.float32 if kind.kind in FLOATS and not hasattr(fill_value, "dtype") else kind
    return _filled("full", sizes("full", (size,)), fill_value, dtype, device, requires_grad)


def zeros(
    *size: Shape, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """0 everywhere."""
    return _filled("zeros", sizes("zeros", size), 0, dtype, device, requires_grad)


def ones(
    *size: Shape, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """1 everywhere."""
    return _filled("ones", sizes("ones", size), 1, dtype, device, requires_grad)


def _like(input: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("dtype") is None:
        kwargs["dtype"] = input.dtype
    if kwargs.get("device") is None:
        kwargs["device"] = input.device
    return kwargs


def empty_like(input: Tensor, **kwargs: Any) -> Tensor:
    """Uninitialised, of input's shape and (unless given) dtype and device."""
    return empty(input.shape, **_like(input, kwargs))


def zeros_like(input: Tensor, **kwargs: Any) -> Tensor:
    """0 everywhere, of input's shape and (unless given) dtype and device."""
    return zeros(input.shape, **_like(input, kwargs))


def ones_like(input: Tensor, **kwargs: Any) -> Tensor:
    """1 everywhere, of input's shape and (unless given) dtype and device."""
    return ones(input.shape, **_like(input, kwargs))


def full_like(input: Tensor, fill_value: Any, **kwargs: Any) -> Tensor:
    """fill_value everywhere, of input's shape and (unless given) dtype and device."""
    return full(input.shape, fill_value, **_like(input, kwargs))


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """(n, m), or (n, n): 1 on the diagonal, 0 elsewhere."""
    wanted, on_host = _dtypes("eye", dtype, device)
    return _from_host(np.eye(n, m, dtype=on_host), wanted, device, requires_grad)


# ---- ranges ----


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below end; from 0 if one number is given. int64 for ints."""
    if end is None:
        start, end = 0, start
    if step == 0:
        raise ValueError("[arange] step must not be 0. Got 0.")
    if (end - start) * step < 0:
        raise ValueError(f"[arange] step must lead from start to end. Got {start}, {end}, {step}.")
    if dtype is None:
        floats = any(isinstance(v, (float, np.floating)) for v in (start, end, step))
        dtype = np.float32 if floats else np.int64
    wanted, on_host = _dtypes("arange", dtype, device)
    array = np.arange(start, end, step).astype(on_host)
    return _from_host(array, wanted, device, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """steps numbers from start to end, both included, evenly spaced."""
    if steps < 0:
        raise ValueError(f"[linspace] steps must be at least 0. Got {steps}.")
    wanted, on_host = _dtypes("linspace", dtype, device)
    array = np.linspace(start, end, steps).astype(on_host)
    return _from_host(array, wanted, device, requires_grad)


# ---- random ----


def _random(
    op: str, shape: tuple[int, ...], dtype: Any, draw: Any, device: Any, requires_grad: bool
) -> Tensor:
    wanted, on_host = _dtypes(op, dtype, device)
    if wanted.kind not in FLOATS:
        raise TypeError(f"[{op}] dtype must be a floating type. Got {wanted}.")
    array = _allocate(op, shape, on_host, backend.CPU)  # drawn on the host: see random.py
    array[...] = draw(shape, dtype=on_host)
    return _from_host(array, wanted, device, requires_grad)


def rand(
    *size: Shape,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [0, 1)."""
    draw = (generator or default_generator).numpy.random
    return _random("rand", sizes("rand", size), dtype, draw, device, requires_grad)


def randn(
    *size: Shape,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal, with mean 0 and variance 1."""
    draw = (generator or default_generator).numpy.standard_normal
    return _random("randn", sizes("randn", size), dtype, draw, device, requires_grad)


def rand_like(input: Tensor, **kwargs: Any) -> Tensor:
    """Uniform on [0, 1), of input's shape, dtype and device."""
    return rand(input.shape, **_like(input, kwargs))


def randn_like(input: Tensor, **kwargs: Any) -> Tensor:
    """Normal, of input's shape, dtype and device."""
    return randn(input.shape, **_like(input, kwargs))


def randint(
    low: int,
    high: Any = None,
    size: Shape = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ints from low (0 if only one bound is given) to high - 1, int64."""
    if size is None:  # randint(high, size)
        low, high, size = 0, low, high
    elif high is None:  # randint(high, size=size)
        low, high = 0, low
    if high <= low:
        raise ValueError(f"[randint] high must be above low. Got {low} and {high}.")
    wanted, on_host = _dtypes("randint", np.int64 if dtype is None else dtype, device)
    array = _allocate("randint", sizes("randint", (size,)), on_host, backend.CPU)
    array[...] = (generator or default_generator).numpy.integers(low, high, array.shape)
    return _from_host(array, wanted, device, requires_grad)


def randperm(n: int, *, generator: Generator | None = None, device: Any = None) -> Tensor:
    """0 to n - 1 in random order, int64."""
    order = (generator or default_generator).numpy.permutation(n)
    return _from_host(order.astype(np.int64), np.dtype(np.int64), device, False)
