"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convgrad import functional as F
from convgrad.nn._tools import ntuple
from convgrad.nn.module import Module
from convgrad.tensor import Tensor

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]

Ints = int | tuple[int, ...]
Sizes = int | None | tuple[int | None, ...]


class _MaxPool(Module):
    """The largest value of each window; with ``return_indices`` also where it was."""

    _op: Callable[..., Any]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Any:
        return self._op(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """x (N, C, W) -> (N, C, OW)."""

    _op = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool):
    """x (N, C, H, W) -> (N, C, OH, OW)."""

    _op = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPool):
    """x (N, C, D, H, W) -> (N, C, OD, OH, OW)."""

    _op = staticmethod(F.max_pool3d)


class _MaxUnpool(Module):
    """Puts the values of a max pooling back where they were, zeros elsewhere."""

    ndim: int
    _op: Callable[..., Tensor]

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0) -> None:
        super().__init__()
        self.kernel_size = ntuple(kernel_size, self.ndim)
        self.stride = self.kernel_size if stride is None else ntuple(stride, self.ndim)
        self.padding = ntuple(padding, self.ndim)

    def forward(
        self, input: Tensor, indices: Tensor, output_size: tuple[int, ...] | None = None
    ) -> Tensor:
        return self._op(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    """x and indices (N, C, W)."""

    ndim, _op = 1, staticmethod(F.max_unpool1d)


class MaxUnpool2d(_MaxUnpool):
    """x and indices (N, C, H, W)."""

    ndim, _op = 2, staticmethod(F.max_unpool2d)


class MaxUnpool3d(_MaxUnpool):
    """x and indices (N, C, D, H, W)."""

    ndim, _op = 3, staticmethod(F.max_unpool3d)


class AvgPool1d(Module):
    """The mean of each window: x (N, C, W) -> (N, C, OW)."""

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = ntuple(kernel_size, 1)
        self.stride = self.kernel_size if stride is None else ntuple(stride, 1)
        self.padding = ntuple(padding, 1)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AvgPool(Module):
    """The mean of each window; ``divisor_override`` replaces the number of its elements."""

    _op: Callable[..., Tensor]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return self._op(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_AvgPool):
    """x (N, C, H, W) -> (N, C, OH, OW)."""

    _op = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPool):
    """x (N, C, D, H, W) -> (N, C, OD, OH, OW)."""

    _op = staticmethod(F.avg_pool3d)


class _AdaptiveAvgPool(Module):
    """The means of windows that divide the input into ``output_size`` parts."""

    _op: Callable[..., Tensor]

    def __init__(self, output_size: Sizes) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return self._op(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """x (N, C, W) -> (N, C, output_size)."""

    _op = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """x (N, C, H, W) -> (N, C, *output_size)."""

    _op = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """x (N, C, D, H, W) -> (N, C, *output_size)."""

    _op = staticmethod(F.adaptive_avg_pool3d)


class _AdaptiveMaxPool(Module):
    """The largest values of windows that divide the input into ``output_size`` parts.

    With ``output_size=1`` it is global max pooling: each feature's strongest response, wherever it
    is, (N, C, ...) -> (N, C, 1, ...); ``nn.Flatten()`` behind it gives (N, C).
    """

    _op: Callable[..., Any]

    def __init__(self, output_size: Sizes, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return self._op(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """x (N, C, W) -> (N, C, output_size)."""

    _op = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """x (N, C, H, W) -> (N, C, *output_size)."""

    _op = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """x (N, C, D, H, W) -> (N, C, *output_size)."""

    _op = staticmethod(F.adaptive_max_pool3d)
