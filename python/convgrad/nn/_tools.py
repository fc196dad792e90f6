"""What the layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convgrad.creation import empty
from convgrad.nn.parameter import Parameter

__all__ = ["ntuple", "parameter"]


def ntuple(value: Any, n: int) -> Any:
    """An int n times; a sequence as a tuple; None and strings as they are."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        if len(value) != n:
            raise ValueError(f"[nn] Expected an int or {n} of them. Got {tuple(value)}.")
        return tuple(value)
    return (value,) * n


def parameter(shape: Sequence[int], dtype: Any = None, device: Any = None) -> Parameter:
    """An uninitialised channels-last parameter, float32 if dtype is None."""
    return Parameter(empty(tuple(shape), dtype=dtype, device=device))
