"""Dropout layers: in training a share p of elements or channels is zero, the rest x 1 / (1 - p)."""

from __future__ import annotations

from collections.abc import Callable

from convgrad import functional as F
from convgrad.nn.module import Module
from convgrad.tensor import Tensor

__all__ = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"]


class _Dropout(Module):
    _op: Callable[..., Tensor]

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"[{type(self).__name__}] p must be from 0 to 1. Got {p}.")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return self._op(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """Elements, of any shape."""

    _op = staticmethod(F.dropout)


class Dropout1d(_Dropout):
    """Whole channels of x (N, C, W) or (C, W)."""

    _op = staticmethod(F.dropout1d)


class Dropout2d(_Dropout):
    """Whole channels of x (N, C, H, W)."""

    _op = staticmethod(F.dropout2d)


class Dropout3d(_Dropout):
    """Whole channels of x (N, C, D, H, W) or (C, D, H, W)."""

    _op = staticmethod(F.dropout3d)
