"""Dropout (Srivastava et al., 2014), of elements or of whole channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad import random
from convgrad.autograd import Op
from convgrad.backend import lib_of, of
from convgrad.tensor import Tensor, array_of

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d"]

Array = Any


class Dropout(Op):
    """y = x m, m = 0 with probability p, else 1 / (1 - p), per element or per (n, c).

    The mask is never stored: backward draws it again from the same two numbers, seed and offset.
    """

    fresh = True

    def forward(self, x: Array, p: float, per_channel: bool) -> Array:
        draws = x.shape[0] * x.shape[1] if per_channel else x.size
        next_state = random.default_generator.next_state
        state = of(x).changing(lambda: next_state(draws).view(np.int64))
        self.args = p, state, per_channel
        return lib_of(x).dropout(x, *self.args)

    def backward(self, dy: Array) -> Array:
        return lib_of(dy).dropout(dy, *self.args)


def _check(op: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"[{op}] p must be from 0 to 1. Got {p}.")


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeroes each element with probability p and multiplies the rest by 1 / (1 - p).

    The input itself unless ``training``. The draws are numbered by element, in channels-last order,
    so that a seed gives the same mask for any number of threads and on any device. ``inplace`` is
    accepted and changes nothing. ValueError unless 0 <= p <= 1.
    """
    _check("dropout", p)
    if not training or p == 0:
        return input
    return Dropout.apply((input,), p, False)


def _channels(spatial: int, input: Tensor, p: float, training: bool) -> Tensor:
    op = f"dropout{spatial}d"
    _check(op, p)
    rank = array_of(op, input).ndim
    if rank not in (spatial + 1, spatial + 2):
        raise ValueError(
            f"[{op}] input must have {spatial + 2} axes, (N, C, ...), or {spatial + 1} without the "
            f"batch. Got shape {input.shape}."
        )
    if not training or p == 0:
        return input
    if rank == spatial + 2:
        return Dropout.apply((input,), p, True)
    return Dropout.apply((input.unsqueeze(0),), p, True).squeeze(0)


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zeroes whole channels of x (N, C, W) or (C, W) with probability p, as :func:`dropout`."""
    return _channels(1, input, p, training)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zeroes whole channels of x (N, C, H, W) or (C, H, W) (Tompson et al., 2015)."""
    return _channels(2, input, p, training)


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zeroes whole channels of x (N, C, D, H, W) or (C, D, H, W)."""
    return _channels(3, input, p, training)
