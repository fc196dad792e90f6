"""Convolution layers, plain and transposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convgrad import functional as F
from convgrad.functional.conv import _conv, _conv_transpose
from convgrad.nn import init
from convgrad.nn._tools import ntuple, parameter
from convgrad.nn.module import Module
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
]

Ints = int | tuple[int, ...]


class _Base(Module):
    """What plain and transposed convolution share; ``ndim`` is the number of spatial axes."""

    ndim: int
    _op: Callable[..., Tensor]
    transposed = False
    _modes: tuple[str, ...] = ("zeros",)
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints,
        padding: Ints | str,
        dilation: Ints,
        output_padding: Ints,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"[{name}] groups must be positive and divide in_channels and out_channels. Got "
                f"groups {groups}, in_channels {in_channels}, out_channels {out_channels}."
            )
        if padding_mode not in self._modes:
            raise ValueError(
                f"[{name}] padding_mode must be one of {', '.join(self._modes)}. Got "
                f"{padding_mode!r}."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = ntuple(kernel_size, self.ndim)
        self.stride = ntuple(stride, self.ndim)
        self.padding = ntuple(padding, self.ndim)
        self.dilation = ntuple(dilation, self.ndim)
        self.output_padding = ntuple(output_padding, self.ndim)
        self.groups = groups
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(
                    f"[{name}] padding must be ints, 'same' or 'valid'. Got {padding!r}."
                )
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"[{name}] padding='same' needs stride 1. Got {self.stride}.")
        first, second = in_channels, out_channels
        if not self.transposed:
            first, second = second, first
        self.weight = parameter((first, second // groups, *self.kernel_size), dtype, device)
        self.register_parameter("bias", parameter((out_channels,), dtype, device) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both uniform within 1 / sqrt(fan_in)."""
        init._default_(self.weight, self.bias)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding != (0,) * self.ndim:
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self.ndim:
            parts.append(f"dilation={self.dilation}")
        if self.output_padding != (0,) * self.ndim:
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


class _Conv(_Base):
    """Convolution: weight (out, in / groups, kernel...), bias (out), as ``torch.nn.Conv*d``."""

    _modes = ("zeros", "reflect", "replicate", "circular")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def _pad(self) -> list[int]:
        """F.pad's amounts: the last axis first, (low, high) each."""
        amounts = []
        for k, d, p in zip(
            self.kernel_size[::-1],
            self.dilation[::-1],
            (0,) * self.ndim if isinstance(self.padding, str) else self.padding[::-1],
        ):
            total = d * (k - 1) if self.padding == "same" else 2 * p
            amounts += [total // 2, total - total // 2]
        return amounts

    def _arguments(self, input: Tensor) -> tuple[Any, ...]:
        """What conv1d, conv2d or conv3d is called with."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._pad(), self.padding_mode), 0
        return input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups

    def forward(self, input: Tensor) -> Tensor:
        return self._op(*self._arguments(input))

    def forward_relu(self, input: Tensor) -> Tensor:
        """relu(self(input)), in one pass."""
        return _conv(self.ndim, *self._arguments(input), relu=True)


class Conv1d(_Conv):
    """x (N, C, W) -> (N, K, OW)."""

    ndim, _op = 1, staticmethod(F.conv1d)


class Conv2d(_Conv):
    """x (N, C, H, W) -> (N, K, OH, OW)."""

    ndim, _op = 2, staticmethod(F.conv2d)


class Conv3d(_Conv):
    """x (N, C, D, H, W) -> (N, K, OD, OH, OW)."""

    ndim, _op = 3, staticmethod(F.conv3d)


class _ConvTranspose(_Base):
    """Transposed convolution: weight (in, out / groups, kernel...), bias (out)."""

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if isinstance(padding, str):
            raise ValueError(f"[{type(self).__name__}] padding must be ints. Got {padding!r}.")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding,
            groups, bias, padding_mode, device, dtype,
        )  # fmt: skip

    def _output_padding(self, shape: tuple[int, ...], output_size: Ints) -> tuple[int, ...]:
        """The output padding that gives spatial sizes ``output_size``."""
        sizes = (output_size,) * self.ndim if isinstance(output_size, int) else tuple(output_size)
        if len(sizes) == len(shape) and len(sizes) > self.ndim:
            sizes = sizes[-self.ndim :]
        sizes = ntuple(sizes, self.ndim)
        extra = tuple(
            size - ((n - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, n, s, p, d, k in zip(
                sizes, shape[-self.ndim :], self.stride, self.padding, self.dilation,
                self.kernel_size,
            )
        )  # fmt: skip
        if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, self.stride, self.dilation)):
            smallest = tuple(size - e for size, e in zip(sizes, extra))
            largest = tuple(
                low + max(s, d) - 1 for low, s, d in zip(smallest, self.stride, self.dilation)
            )
            raise ValueError(
                f"[{type(self).__name__}] output_size must be from {smallest} to {largest} for an "
                f"input of shape {shape}. Got {sizes}."
            )
        return extra

    def _arguments(self, input: Tensor, output_size: Ints | None = None) -> tuple[Any, ...]:
        """What conv_transpose1d, conv_transpose2d or conv_transpose3d is called with."""
        extra = self.output_padding
        if output_size is not None:
            extra = self._output_padding(input.shape, output_size)
        return (
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups,
            self.dilation,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Ints | None = None) -> Tensor:
        return self._op(*self._arguments(input, output_size))

    def forward_relu(self, input: Tensor) -> Tensor:
        """relu(self(input)), in one pass."""
        return _conv_transpose(self.ndim, *self._arguments(input), relu=True)


class ConvTranspose1d(_ConvTranspose):
    """x (N, C, W) -> (N, K, OW)."""

    ndim, _op = 1, staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """x (N, C, H, W) -> (N, K, OH, OW)."""

    ndim, _op = 2, staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """x (N, C, D, H, W) -> (N, K, OD, OH, OW)."""

    ndim, _op = 3, staticmethod(F.conv_transpose3d)
