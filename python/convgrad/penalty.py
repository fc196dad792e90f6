"""The slides' lambda R(W): penalties on weights, to be added to the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of, typed
from convgrad.tensor import Tensor

__all__ = ["l1", "l2"]

Array = Any


class Penalty(Op):
    """factor * the sum of |w|, or of w^2, over all elements of all arrays."""

    fresh = True

    def forward(self, *args: Any) -> Array:
        *arrays, kind, factor = args
        total = lib_of(arrays[0]).list_norm(arrays, kind, 0.0)
        self.saved = tuple(arrays)
        self.args = kind, factor
        return typed(total * factor, arrays[0].dtype)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        lib = lib_of(dy)
        return tuple(
            [
                lib.penalty_backward(w, *self.args, dy) if need else None
                for w, need in zip(self.saved, self.needs)
            ]
        )


def _penalty(params: Iterable[Tensor] | Tensor, kind: str, lam: float) -> Tensor:
    tensors = (params,) if isinstance(params, Tensor) else tuple(params)
    if not tensors:
        raise ValueError("[penalty] params must hold at least one tensor. Got none.")
    return Penalty.apply(tensors, kind, float(lam))


def l1(params: Iterable[Tensor] | Tensor, lam: float) -> Tensor:
    """lam * sum |w| over all elements; the slope of |w| at 0 is 0."""
    return _penalty(params, "abs_sum", lam)


def l2(params: Iterable[Tensor] | Tensor, lam: float) -> Tensor:
    """lam * sum w^2 over all elements: the same steps as weight_decay = 2 lam."""
    return _penalty(params, "square_sum", lam)
