"""Locally connected layers: convolutions whose weights are not shared between positions."""

from __future__ import annotations

from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.mixed_precision import operands
from convgrad.tensor import Tensor

__all__ = ["locally_connected1d", "locally_connected2d", "locally_connected3d"]

Array = Any
Ints = int | tuple[int, ...]


class LocallyConnected(Op):
    """y[n, k, o] = b[k, o] + sum over c, t of w[k, c, o, t] x[n, c, i],
    i = o * stride - padding + t * dilation.
    """

    fresh = True

    def forward(self, x: Array, w: Array, b: Array | None, *args: Any) -> Array:
        lib = lib_of(x)
        x, w = lib.channels_last(x), lib.channels_last(w)
        self.saved = x, w
        self.args = args
        return lib.local_forward(x, w, b, *args)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved
        lib = lib_of(dy)
        dy = lib.channels_last(dy)
        need_x, need_w, need_b = self.needs
        dx = dw = db = None
        if need_x:
            dx = lib.local_backward_input(dy, w, x.shape, *self.args)
        if need_w or need_b:
            dw, db = lib.local_backward_weight(dy, x, w.shape, *self.args, need_b)
        return dx, dw, db


def _local(
    spatial: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    if w.array.ndim != 2 * spatial + 2:
        raise ValueError(
            f"[locally_connected{spatial}d] weight must have {2 * spatial + 2} axes, "
            f"(K, C, *out, *kernel). Got shape {w.shape}."
        )
    inputs = operands(f"locally_connected{spatial}d", x, w, b)
    return LocallyConnected.apply(inputs, stride, padding, dilation)


def locally_connected1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """conv1d of x (N, C, W) or (C, W) with a filter of its own at every output position.

    weight: (K, C, W_out, KW). bias: (K, W_out). The output has conv1d's shape, and conv1d's values
    where all positions hold the same filter. Positions outside the input count as zeros.
    ValueError for shapes that do not fit, TypeError for dtypes that differ.
    """
    return _local(1, input, weight, bias, stride, padding, dilation)


def locally_connected2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """conv2d of x (N, C, H, W) or (C, H, W) with weight (K, C, H_out, W_out, KH, KW).

    bias: (K, H_out, W_out). Otherwise as :func:`locally_connected1d`.
    """
    return _local(2, input, weight, bias, stride, padding, dilation)


def locally_connected3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """conv3d of x (N, C, D, H, W) or (C, D, H, W) with weight (K, C, *out, *kernel).

    bias: (K, *out). Otherwise as :func:`locally_connected1d`.
    """
    return _local(3, input, weight, bias, stride, padding, dilation)
