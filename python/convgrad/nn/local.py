"""Locally connected layers: convolutions that share no weights between positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from convgrad import functional as F
from convgrad.nn import init
from convgrad.nn._tools import ntuple, parameter
from convgrad.nn.module import Module
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor

__all__ = ["LocallyConnected1d", "LocallyConnected2d", "LocallyConnected3d"]

Ints = int | tuple[int, ...]


class _LocallyConnected(Module):
    """x (N, C, *input_size) -> (N, K, *out); weight (K, C, *out, *kernel), bias (K, *out).

    Every output position has weights of its own, so the layer must know ``input_size``, the
    spatial sizes of its input.
    """

    ndim: int
    _op: Callable[..., Tensor]
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Ints,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_size = ntuple(input_size, self.ndim)
        self.kernel_size = ntuple(kernel_size, self.ndim)
        self.stride = ntuple(stride, self.ndim)
        self.padding = ntuple(padding, self.ndim)
        self.dilation = ntuple(dilation, self.ndim)
        self.output_size = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.input_size, self.kernel_size, self.stride, self.padding, self.dilation
            )
        )
        if min(self.output_size) < 1:
            raise ValueError(
                f"[{type(self).__name__}] The kernel must fit into the padded input. Got "
                f"input_size {self.input_size}, kernel_size {self.kernel_size}, padding "
                f"{self.padding}, dilation {self.dilation}."
            )
        self.weight = parameter(
            (out_channels, in_channels, *self.output_size, *self.kernel_size), dtype, device
        )
        self.register_parameter(
            "bias", parameter((out_channels, *self.output_size), dtype, device) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both uniform within 1 / sqrt(inputs per output)."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return self._op(input, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"input_size={self.input_size}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding != (0,) * self.ndim:
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self.ndim:
            parts.append(f"dilation={self.dilation}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class LocallyConnected1d(_LocallyConnected):
    """x (N, C, W) -> (N, K, OW)."""

    ndim, _op = 1, staticmethod(F.locally_connected1d)


class LocallyConnected2d(_LocallyConnected):
    """x (N, C, H, W) -> (N, K, OH, OW)."""

    ndim, _op = 2, staticmethod(F.locally_connected2d)


class LocallyConnected3d(_LocallyConnected):
    """x (N, C, D, H, W) -> (N, K, OD, OH, OW)."""

    ndim, _op = 3, staticmethod(F.locally_connected3d)
