"""Padding: with a constant, or with the array's own values."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.tensor import Tensor, array_of

__all__ = ["pad"]

Array = Any
Sides = tuple[int, ...]


class PadConstant(Op):
    """y = x with ``low`` and ``high`` more elements of ``value`` per axis; negative ones crop."""

    fresh = True

    def forward(self, x: Array, low: Sides, high: Sides, value: float) -> Array:
        self.sides = low, high
        return lib_of(x).pad_constant(x, low, high, value)

    def backward(self, dy: Array) -> Array:
        low, high = self.sides
        return lib_of(dy).pad_constant(dy, tuple([-n for n in low]), tuple([-n for n in high]), 0.0)


class PadRepeat(Op):
    """y[i] = x[source(i)]; dx sums dy over the places that repeat an element, in their order."""

    fresh = True

    def forward(self, x: Array, spatial: int, low: Sides, high: Sides, mode: str) -> Array:
        self.args = x.shape, spatial, low, high, mode
        return lib_of(x).pad_repeat(x, None, spatial, low, high, mode)

    def backward(self, dy: Array) -> Array:
        return lib_of(dy).pad_repeat(dy, *self.args)


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """x with more elements at both ends of its last axes; negative numbers crop.

    Args:
        pad: (low, high) of the last axis, then of the one before, and so on.
        mode: 'constant' (any number of axes), or 'reflect' (without repeating the edge),
            'replicate' or 'circular' for all axes but the batch's and the channels'.
        value: the constant, 0 by default.

    ValueError for an odd number of entries, more than the mode can pad, or a negative size.
    """
    rank = array_of("pad", input).ndim
    try:
        entries = tuple([index(n) for n in pad])
    except TypeError:
        raise TypeError(f"[pad] pad must be a tuple of ints. Got {pad!r}.") from None
    if len(entries) % 2 or len(entries) > 2 * rank:
        raise ValueError(
            f"[pad] pad must have a low and a high entry for each of up to {rank} axes of shape "
            f"{input.shape}. Got {entries}."
        )
    low, high = entries[::2][::-1], entries[1::2][::-1]
    if mode == "constant":
        rest = (0,) * (rank - len(low))
        return PadConstant.apply((input,), rest + low, rest + high, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise ValueError(
            f"[pad] mode must be 'constant', 'reflect', 'replicate' or 'circular'. Got {mode!r}."
        )
    if value is not None and value != 0:
        raise ValueError(f"[pad] mode={mode!r} takes no value. Got {value}.")
    spatial = len(low)
    if spatial not in (1, 2, 3) or rank not in (spatial + 1, spatial + 2):
        raise ValueError(
            f"[pad] mode={mode!r} pads the last 1, 2 or 3 axes of an input with a channel axis and "
            f"maybe a batch axis before them. Got shape {input.shape} and pad {entries}."
        )
    return PadRepeat.apply((input,), spatial, low, high, mode)
