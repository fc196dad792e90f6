"""Pooling in 1-D, 2-D and 3-D: maximum, average, adaptive, and the inverse of maximum pooling."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.tensor import Tensor, array_of

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

Array = Any
Ints = int | tuple[int, ...]
Sizes = int | None | Sequence[int | None]


class MaxPool(Op):
    """y[o] = max over taps t of x[o * stride - padding + t * dilation], padding never winning.

    The tape keeps one byte per output (windows of more than 256 taps: four), not x. The gradient
    goes to the first maximum; each input sums over the windows that cover it. NaN is the maximum.
    ``spec`` is (kernel_size, stride, padding, dilation, ceil_mode) or (output_size,), adaptive.
    """

    fresh = True
    can_mask = True

    def forward(self, x: Array, spatial: int, spec: tuple[Any, ...], return_indices: bool) -> Any:
        y, tap, index = lib_of(x).max_pool_forward(x, spatial, spec, self.needs[0], return_indices)
        # Behind a ReLU, a window's maximum is positive where the input that gave it is.
        self.saved = (tap, y) if self.after_relu else (tap,)
        self.args = x.shape, spatial, spec
        return (y, index) if return_indices else y

    def backward(self, dy: Array, _: Array | None = None) -> Array:
        mask = self.saved[1] if self.masks else None
        return lib_of(dy).max_pool_backward(dy, self.saved[0], *self.args, mask)


class AvgPool(Op):
    """y[o] = sum over taps t of x[o * stride - padding + t] / count[o].

    ``spec`` is (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override) or
    (output_size,), adaptive.
    """

    fresh = True

    def forward(self, x: Array, spatial: int, spec: tuple[Any, ...]) -> Array:
        self.args = x.shape, spatial, spec
        return lib_of(x).avg_pool_forward(x, spatial, spec)

    def backward(self, dy: Array) -> Array:
        return lib_of(dy).avg_pool_backward(dy, *self.args)


class MaxUnpool(Op):
    """y[n, c, index[n, c, i]] = x[n, c, i], zero elsewhere; dx gathers dy by the same indices."""

    fresh = True

    def forward(self, x: Array, index: Array, spatial: int, size: tuple[int, ...]) -> Array:
        self.saved = (index,)
        self.spatial = spatial
        return lib_of(x).max_unpool_forward(x, index, spatial, size)

    def backward(self, dy: Array) -> tuple[Array, None]:
        return lib_of(dy).max_unpool_backward(dy, self.saved[0], self.spatial), None


def _max_pool(spatial: int, x: Tensor, return_indices: bool, *spec: Any) -> Any:
    return MaxPool.apply((x,), spatial, spec, return_indices)


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of x (N, C, W) or (C, W).

    Output size (W + 2 padding - dilation (kernel_size - 1) - 1) / stride + 1, rounded down, or up
    with ``ceil_mode`` (the last window still starts inside the input or its left padding). stride
    defaults to kernel_size. With ``return_indices`` also where each maximum lies in the unpadded
    input, int64. ValueError for padding beyond half the kernel, a kernel beyond the padded input.
    """
    return _max_pool(1, input, return_indices, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of x (N, C, H, W) or (C, H, W); as :func:`max_pool1d`.

    Indices count h W + w within each channel's plane.
    """
    return _max_pool(2, input, return_indices, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of x (N, C, D, H, W) or (C, D, H, W); as :func:`max_pool1d`.

    Indices count (d H + h) W + w within each channel's volume.
    """
    return _max_pool(3, input, return_indices, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (N, C, W) or (C, W); sizes and errors as :func:`max_pool1d`.

    ``count_include_pad``: whether padding counts in what the sum is divided by.
    """
    spec = kernel_size, stride, padding, ceil_mode, count_include_pad, None
    return AvgPool.apply((input,), 1, spec)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of x (N, C, H, W) or (C, H, W); as :func:`avg_pool1d`.

    ``divisor_override``: what to divide every sum by instead.
    """
    spec = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return AvgPool.apply((input,), 2, spec)


def avg_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of x (N, C, D, H, W) or (C, D, H, W); as :func:`avg_pool2d`."""
    spec = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return AvgPool.apply((input,), 3, spec)


def _output_size(size: Sizes) -> Any:
    """-1 stands for the input's size in the binding; a -1 of the caller's stays an error."""

    def one(n: int | None) -> int:
        return -1 if n is None else 0 if n == -1 else n

    return tuple([one(n) for n in size]) if isinstance(size, Sequence) else one(size)


def adaptive_max_pool1d(input: Tensor, output_size: Sizes, return_indices: bool = False) -> Any:
    """The maximum of each of ``output_size`` windows that divide x (N, C, W) or (C, W).

    Window o covers [floor(o W / output_size), ceil((o + 1) W / output_size)). None keeps W.
    """
    return _max_pool(1, input, return_indices, _output_size(output_size))


def adaptive_max_pool2d(input: Tensor, output_size: Sizes, return_indices: bool = False) -> Any:
    """The maximum of each of (OH, OW) windows that divide x (N, C, H, W) or (C, H, W).

    As :func:`adaptive_max_pool1d` on each axis.
    """
    return _max_pool(2, input, return_indices, _output_size(output_size))


def adaptive_max_pool3d(input: Tensor, output_size: Sizes, return_indices: bool = False) -> Any:
    """The maximum of each of (OD, OH, OW) windows that divide x (N, C, D, H, W) or (C, D, H, W).

    As :func:`adaptive_max_pool1d` on each axis.
    """
    return _max_pool(3, input, return_indices, _output_size(output_size))


def adaptive_avg_pool1d(input: Tensor, output_size: Sizes) -> Tensor:
    """The mean of each of ``output_size`` windows; windows as :func:`adaptive_max_pool1d`."""
    return AvgPool.apply((input,), 1, (_output_size(output_size),))


def adaptive_avg_pool2d(input: Tensor, output_size: Sizes) -> Tensor:
    """The mean of each of (OH, OW) windows; windows as :func:`adaptive_max_pool1d`."""
    return AvgPool.apply((input,), 2, (_output_size(output_size),))


def adaptive_avg_pool3d(input: Tensor, output_size: Sizes) -> Tensor:
    """The mean of each of (OD, OH, OW) windows; windows as :func:`adaptive_max_pool1d`."""
    return AvgPool.apply((input,), 3, (_output_size(output_size),))


def _per_axis(name: str, op: str, value: Ints, spatial: int) -> tuple[int, ...]:
    try:
        values: Any = (value,) if isinstance(value, (int, np.integer)) else value
        entries = tuple([index(v) for v in values])
    except TypeError:
        raise TypeError(
            f"[{op}] {name} must be an int or a tuple of ints. Got {value!r}."
        ) from None
    if len(entries) == 1:
        entries *= spatial
    if len(entries) != spatial:
        raise ValueError(f"[{op}] {name} must be an int or have {spatial} entries. Got {value}.")
    return entries


def _max_unpool(
    spatial: int,
    x: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    output_size: Sequence[int] | None,
) -> Tensor:
    op = f"max_unpool{spatial}d"
    if array_of(op, x).ndim not in (spatial + 1, spatial + 2):
        raise ValueError(
            f"[{op}] input must have {spatial + 2} axes, (N, C, ...), or {spatial + 1} without "
            f"the batch. Got shape {x.shape}."
        )
    kernel = _per_axis("kernel_size", op, kernel_size, spatial)
    steps = kernel if stride is None else _per_axis("stride", op, stride, spatial)
    pads = _per_axis("padding", op, padding, spatial)
    default = tuple(
        [(n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[-spatial:], steps, pads, kernel)]
    )
    size = default
    if output_size is not None:
        if not isinstance(output_size, (tuple, list)):
            raise TypeError(f"[{op}] output_size must be a tuple of ints. Got {output_size!r}.")
        fits = len(output_size) in (spatial, spatial + 1, spatial + 2)
        size = _per_axis("output_size", op, tuple(output_size[-spatial:]), spatial)
        if not fits or any(abs(n - d) >= s for n, d, s in zip(size, default, steps)):
            raise ValueError(
                f"[{op}] output_size must differ from {default} by less than the stride {steps}. "
                f"Got {tuple(output_size)}."
            )
    return MaxUnpool.apply((x, indices), spatial, size)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The partial inverse of max_pool1d: each value of x (N, C, W) or (C, W) back at its index.

    Output size (W - 1) stride - 2 padding + kernel_size, or ``output_size``, which may differ from
    it by less than the stride. Where windows overlapped and indices repeat within a channel, the
    last of them in row-major order wins, always. ValueError for an index outside the output.
    """
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The partial inverse of max_pool2d, x (N, C, H, W) or (C, H, W); as :func:`max_unpool1d`."""
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The partial inverse of max_pool3d, x (N, C, D, H, W) or (C, D, H, W).

    As :func:`max_unpool1d`.
    """
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
