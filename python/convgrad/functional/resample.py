"""Interpolation of signals, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.tensor import Tensor, array_of

__all__ = ["interpolate"]

Array = Any
_AXES = {"linear": 1, "bilinear": 2, "trilinear": 3}


class Interpolate(Op):
    """y = x times one sparse matrix per axis; the backward pass is their transposes."""

    fresh = True

    def forward(self, x: Array, spatial: int, *args: Any) -> Array:
        self.args = x.shape, spatial, *args
        return lib_of(x).interpolate(x, None, spatial, *args)

    def backward(self, dy: Array) -> Array:
        return lib_of(dy).interpolate(dy, *self.args)


def _entries(name: str, value: Any, spatial: int) -> tuple[Any, ...]:
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * spatial
    if len(entries) != spatial:
        raise ValueError(f"[interpolate] {name} must have {spatial} entries. Got {value}.")
    return entries


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resizes x (N, C, W), (N, C, H, W) or (N, C, D, H, W) to ``size`` or by ``scale_factor``.

    Args:
        size, scale_factor: exactly one; per axis or for all. The size is floor(in * scale_factor).
        mode: 'nearest', or 'linear', 'bilinear', 'trilinear' for 1, 2, 3 axes.
        align_corners: linear modes: whether the corner pixels' centres keep their places (True) or
            the corners of the corner pixels do (False, the default).
        recompute_scale_factor: use the ratio of the sizes instead of scale_factor itself.
        antialias: 'bilinear' alone: widen the triangle when shrinking.

    Output o reads position (o + 0.5) / scale - 0.5 of its axis, clamped at 0, or with align_corners
    o (in - 1) / (out - 1); 'nearest' reads floor(o / scale). ValueError for anything else.
    """
    spatial = array_of("interpolate", input).ndim - 2
    if spatial not in (1, 2, 3):
        raise ValueError(
            f"[interpolate] The input must have 3, 4 or 5 axes, (N, C, ...). Got {input.shape}."
        )
    if mode != "nearest" and _AXES.get(mode) != spatial:
        wanted = list(_AXES)[spatial - 1]
        raise ValueError(
            f"[interpolate] mode must be 'nearest' or {wanted!r} for an input of {spatial + 2} "
            f"axes. Got {mode!r}."
        )
    if mode == "nearest" and align_corners is not None:
        raise ValueError(f"[interpolate] 'nearest' takes no align_corners. Got {align_corners}.")
    if antialias and mode != "bilinear":
        raise ValueError(f"[interpolate] antialias needs mode='bilinear'. Got {mode!r}.")
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"[interpolate] Give exactly one of size and scale_factor. Got {size} and "
            f"{scale_factor}."
        )
    scales: tuple[float, ...] = (0.0,) * spatial
    if size is not None:
        if recompute_scale_factor:
            raise ValueError("[interpolate] recompute_scale_factor needs scale_factor. Got size.")
        out = _entries("size", size, spatial)
    else:
        factors = _entries("scale_factor", scale_factor, spatial)
        if not all(f > 0 and math.isfinite(f) for f in factors):
            raise ValueError(f"[interpolate] scale_factor must be positive. Got {scale_factor}.")
        out = tuple([math.floor(n * f) for n, f in zip(input.shape[2:], factors)])
        if not recompute_scale_factor:
            scales = tuple([float(f) for f in factors])
    return Interpolate.apply(
        (input,), spatial, out, mode, bool(align_corners), scales, bool(antialias)
    )
