"""Convolution and transposed convolution, in 1-D, 2-D and 3-D by one op each."""

from __future__ import annotations

from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.functional.activation import relu_gradient
from convgrad.mixed_precision import operands
from convgrad.tensor import Tensor, array_of

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

Array = Any
Ints = int | tuple[int, ...]
Padding = Ints | str | tuple[tuple[int, int], ...]


class Conv(Op):
    """y[n, k, o] = b[k] + sum over c, t of w[k, c, t] x[n, c, o * stride - padding + t * dilation].

    A cross-correlation, as in every CNN library. With ``relu``, max(0, y).
    """

    fresh = True
    can_mask = True

    def forward(self, x: Array, w: Array, b: Array | None, relu: bool, *args: Any) -> Array:
        lib = lib_of(x)
        x, w = lib.channels_last(x), lib.channels_last(w)
        y = lib.conv_forward(x, w, b, *args, relu)
        self.rectified = relu
        self.saved = (x, w, y) if relu else (x, w)
        self.args = args
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved[:2]
        lib = lib_of(dy)
        dy = relu_gradient(self, lib.channels_last(dy))
        need_x, need_w, need_b = self.needs
        dx = dw = db = None
        if need_x:
            mask = x if self.masks else None
            dx = lib.conv_backward_input(dy, w, x.shape, *self.args, mask)
        if need_w or need_b:
            dw, db = lib.conv_backward_weight(dy, x, w.shape, *self.args, need_b)
        return dx, dw, db


class ConvTranspose(Op):
    """The adjoint of :class:`Conv` in x, plus a bias: y[n, c, i] sums the windows that cover i.
    With ``relu``, max(0, y)."""

    fresh = True
    can_mask = True

    def forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        relu: bool,
        stride: Ints,
        padding: Ints,
        output_padding: Ints,
        groups: int,
        dilation: Ints,
    ) -> Array:
        lib = lib_of(x)
        x, w = lib.channels_last(x), lib.channels_last(w)
        y = lib.conv_transpose_forward(
            x, w, b, stride, padding, output_padding, groups, dilation, relu
        )
        self.rectified = relu
        self.saved = (x, w, y) if relu else (x, w)
        self.args = stride, padding, groups, dilation
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved[:2]
        lib = lib_of(dy)
        dy = relu_gradient(self, lib.channels_last(dy))
        need_x, need_w, need_b = self.needs
        dx = dw = None
        if need_x:
            mask = x if self.masks else None
            dx = lib.conv_transpose_backward_input(dy, w, x.shape, *self.args, mask)
        dw = lib.conv_transpose_backward_weight(dy, x, w.shape, *self.args) if need_w else None
        db = lib.channel_sum(dy, w.ndim - 2) if need_b else None
        return dx, dw, db


def _weight_error(op: str, w: Any, rule: str) -> ValueError:
    array_of(op, w, "weight")  # TypeError unless a tensor
    return ValueError(f"[{op}] weight must have {rule}. Got shape {w.shape}.")


def _conv(
    spatial: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    *,
    relu: bool = False,
) -> Tensor:
    """conv1d, conv2d or conv3d, by the number of spatial axes; with ``relu``, max(0, .) of it."""
    if not isinstance(w, Tensor) or w.array.ndim != spatial + 2:
        raise _weight_error(f"conv{spatial}d", w, f"{spatial + 2} axes, (K, C / groups, ...)")
    inputs = operands(f"conv{spatial}d", x, w, b)
    return Conv.apply(inputs, relu, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlates x (N, C, W) or (C, W) with w (K, C / groups, KW).

    padding: ints, 'same' (stride 1), 'valid', or a tuple of (low, high) pairs. It stands for zeros
    that weights multiply: an infinite or NaN weight makes NaN where its tap falls on padding.
    ValueError for shapes that do not fit or sizes beyond 64 bits, TypeError for dtypes that differ.
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlates x (N, C, H, W) or (C, H, W) with w (K, C / groups, KH, KW).

    Arguments and errors as :func:`conv1d`.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlates x (N, C, D, H, W) or (C, D, H, W) with w (K, C / groups, KD, KH, KW).

    Arguments and errors as :func:`conv1d`.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    spatial: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    *,
    relu: bool = False,
) -> Tensor:
    """conv_transpose1d, conv_transpose2d or conv_transpose3d, as :func:`_conv`."""
    if not isinstance(w, Tensor) or w.array.ndim != spatial + 2:
        axes = f"{spatial + 2} axes, (C, K / groups, ...)"
        raise _weight_error(f"conv_transpose{spatial}d", w, axes)
    inputs = operands(f"conv_transpose{spatial}d", x, w, b)
    return ConvTranspose.apply(inputs, relu, stride, padding, output_padding, groups, dilation)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """The adjoint of conv1d: x (N, C, W) or (C, W), w (C, K / groups, KW).

    Output size (W - 1) stride - 2 padding + dilation (KW - 1) + output_padding + 1.
    """
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """The adjoint of conv2d: x (N, C, H, W) or (C, H, W), w (C, K / groups, KH, KW)."""
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """The adjoint of conv3d: x (N, C, D, H, W) or (C, D, H, W), w (C, K / groups, KD, KH, KW)."""
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )
