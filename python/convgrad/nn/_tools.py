"""What the layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad import backend
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor

__all__ = ["empty", "ntuple", "parameter"]


def ntuple(value: Any, n: int) -> Any:
    """An int n times; a sequence as a tuple; None and strings as they are."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        if len(value) != n:
            raise ValueError(f"[nn] Expected an int or {n} of them. Got {tuple(value)}.")
        return tuple(value)
    return (value,) * n


def empty(shape: Sequence[int], dtype: Any = None, device: Any = None) -> Tensor:
    """An uninitialised channels-last tensor of float32, or of ``dtype``."""
    where = backend.by_device("cpu" if device is None else device)
    dtype = np.dtype(np.float32 if dtype is None else dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"[nn] dtype must be float32 or float64. Got {dtype}.")
    # A broadcast scalar has the shape without the memory.
    like = where.xp.broadcast_to(where.xp.zeros((), dtype), tuple(shape))
    return Tensor(where.lib.empty_like(like))


def parameter(shape: Sequence[int], dtype: Any = None, device: Any = None) -> Parameter:
    """An uninitialised channels-last parameter."""
    return Parameter(empty(shape, dtype, device))
