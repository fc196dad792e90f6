"""Padding as layers. ``padding`` is an int, or (low, high) per axis with the last axis first."""

from __future__ import annotations

from convgrad import functional as F
from convgrad.nn._tools import ntuple
from convgrad.nn.module import Module
from convgrad.tensor import Tensor

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]

Ints = int | tuple[int, ...]


class _Pad(Module):
    """``ndim`` spatial axes, padded by ``mode``."""

    ndim: int
    _mode: str

    def __init__(self, padding: Ints) -> None:
        super().__init__()
        self.padding: tuple[int, ...] = ntuple(padding, 2 * self.ndim)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode)

    def extra_repr(self) -> str:
        return str(self.padding)


class _ConstantPad(_Pad):
    _mode = "constant"

    def __init__(self, padding: Ints, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode, self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """x (N, C, W)."""

    ndim = 1


class ConstantPad2d(_ConstantPad):
    """x (N, C, H, W)."""

    ndim = 2


class ConstantPad3d(_ConstantPad):
    """x (N, C, D, H, W)."""

    ndim = 3


class ZeroPad1d(_Pad):
    """x (N, C, W)."""

    ndim, _mode = 1, "constant"


class ZeroPad2d(_Pad):
    """x (N, C, H, W)."""

    ndim, _mode = 2, "constant"


class ZeroPad3d(_Pad):
    """x (N, C, D, H, W)."""

    ndim, _mode = 3, "constant"


class ReflectionPad1d(_Pad):
    """x (N, C, W)."""

    ndim, _mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """x (N, C, H, W)."""

    ndim, _mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """x (N, C, D, H, W)."""

    ndim, _mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """x (N, C, W)."""

    ndim, _mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """x (N, C, H, W)."""

    ndim, _mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """x (N, C, D, H, W)."""

    ndim, _mode = 3, "replicate"


class CircularPad1d(_Pad):
    """x (N, C, W)."""

    ndim, _mode = 1, "circular"


class CircularPad2d(_Pad):
    """x (N, C, H, W)."""

    ndim, _mode = 2, "circular"


class CircularPad3d(_Pad):
    """x (N, C, D, H, W)."""

    ndim, _mode = 3, "circular"
