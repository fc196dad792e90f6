"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.mixed_precision import in_float32
from convgrad.tensor import Tensor, array_of

__all__ = ["log_softmax", "softmax"]

Array = Any


class Softmax(Op):
    """y = e^(x - max x) / sum of e^(x - max x) along ``dim``, or its logarithm."""

    fresh = True

    def forward(self, x: Array, dim: int, log: bool) -> Array:
        y = lib_of(x).softmax_forward(x, dim, log)
        self.saved = (y,)
        self.args = dim, log
        return y

    def backward(self, dy: Array) -> Array:
        return lib_of(dy).softmax_backward(self.saved[0], dy, *self.args)


def _softmax(op: str, input: Tensor, dim: int | None, dtype: Any) -> Tensor:
    rank = max(array_of(op, input).ndim, 1)
    if dim is None:
        raise ValueError(
            f"[{op}] dim must name the axis that sums to 1; 1 is the channels'. Got None for shape "
            f"{input.shape}."
        )
    if not isinstance(dim, (int, np.integer)) or not -rank <= dim < rank:
        raise ValueError(
            f"[{op}] dim must be an axis of the input. Got {dim} for shape {input.shape}."
        )
    if dtype is not None:
        input = input.to(dtype)
    return Softmax.apply((input,), dim % rank, op == "log_softmax")


@in_float32
def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """e^x / sum of e^x along ``dim``: positive, and they add up to 1. Same shape.

    The largest x is subtracted first, so that nothing overflows. ``dtype`` converts the input
    before. ValueError unless dim is an axis of the input.
    """
    return _softmax("softmax", input, dim, dtype)


@in_float32
def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """x - log(sum of e^x) along ``dim``, where softmax itself may round to 0 (see there)."""
    return _softmax("log_softmax", input, dim, dtype)
