"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad import functional as F
from convgrad.backend import CPU, of
from convgrad.creation import empty, zeros
from convgrad.nn import init
from convgrad.nn._tools import parameter
from convgrad.nn.module import Module
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
]


class _Affine(Module):
    """weight and bias of some shape, starting at 1 and 0; either may be None."""

    _stays_float32 = True
    weight: Parameter | None
    bias: Parameter | None

    def _add_affine(
        self, shape: Sequence[int], weight: bool, bias: bool, device: Any, dtype: Any
    ) -> None:
        for name, wanted in (("weight", weight), ("bias", bias)):
            self.register_parameter(name, parameter(shape, dtype, device) if wanted else None)

    def reset_parameters(self) -> None:
        """weight 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class _RunningNorm(_Affine):
    """Batch and instance normalisation: affine parameters and running statistics."""

    _ranks: tuple[int, ...]  # of the input
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: Any,
        dtype: Any,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._add_affine((num_features,), affine, affine and bias, device, dtype)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, None)
        if track_running_stats:
            self.running_mean = empty(num_features, dtype=dtype, device=device)
            self.running_var = empty(num_features, dtype=dtype, device=device)
            self.num_batches_tracked = zeros((), dtype=np.int64, device=device)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batches seen."""
        if self.running_mean is not None:
            init.zeros_(self.running_mean)
        if self.running_var is not None:
            init.ones_(self.running_var)
        if self.num_batches_tracked is not None:
            init.zeros_(self.num_batches_tracked)

    def reset_parameters(self) -> None:
        """weight 1, bias 0, no statistics."""
        self.reset_running_stats()
        super().reset_parameters()

    def _check(self, input: Tensor) -> None:
        if len(input.shape) not in self._ranks:
            raise ValueError(
                f"[{type(self).__name__}] The input must have "
                f"{' or '.join(map(str, self._ranks))} axes. Got shape {input.shape}."
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _count_batch(count: Tensor) -> Any:
    """Counts up by one; 1 / count, a number or, on a GPU, a float64 array there."""
    count.version[0] += 1
    home = of(count.array)
    if home is CPU:
        seen = count.array.item() + 1
        count.array[()] = seen  # 15 times as fast as +=
        return 1.0 / seen
    with home.current():
        np.add(count.array, 1, out=count.array)
        return np.true_divide(1.0, count.array)


class _BatchNorm(_RunningNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias, statistics over the batch and all pixels.

    In training the running statistics move towards the batch's by ``momentum`` (None: they are the
    mean over all batches so far); in evaluation they are used. Ioffe and Szegedy 2015.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        momentum: Any = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            seen = _count_batch(self.num_batches_tracked)
            if self.momentum is None:
                momentum = seen
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or self.running_mean is None, momentum, self.eps,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm):
    """x (N, C) or (N, C, W)."""

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """x (N, C, H, W)."""

    _ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """x (N, C, D, H, W)."""

    _ranks = (5,)


class _InstanceNorm(_RunningNorm):
    """As batch normalisation, statistics of each sample and channel alone."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip


class InstanceNorm1d(_InstanceNorm):
    """x (N, C, W) or (C, W)."""

    _ranks = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """x (N, C, H, W) or (C, H, W)."""

    _ranks = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """x (N, C, D, H, W) or (C, D, H, W)."""

    _ranks = (4, 5)


class GroupNorm(_Affine):
    """As batch normalisation, statistics of each sample and group of channels (Wu and He 2018)."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                "[GroupNorm] num_groups must be positive and divide num_channels. Got "
                f"{num_groups} and {num_channels}."
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self._add_affine((num_channels,), affine, affine and bias, device, dtype)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class LayerNorm(_Affine):
    """Normalises over the last axes, of sizes ``normalized_shape`` (Ba et al. 2016)."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        single = isinstance(normalized_shape, int)
        self.normalized_shape: tuple[int, ...] = (
            (normalized_shape,) if single else tuple(normalized_shape)  # type: ignore[arg-type,assignment]
        )
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._add_affine(
            self.normalized_shape, elementwise_affine, elementwise_affine and bias, device, dtype
        )
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )
