"""The slides' lambda R(W): penalties on weights, to be added to the loss."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import lib_of, typed
from convgrad.dtypes import is_half
from convgrad.tensor import Tensor

__all__ = ["l1", "l2", "list_norm"]

Array = Any


def list_norm(arrays: Sequence[Array], kind: str, power: float = 0.0) -> Array:
    """The sum of |w| ('abs_sum'), w^2 ('square_sum') or |w|^power ('power_sum') over all elements
    of all arrays, which are of one device and any float types, or their largest |w| ('abs_max'):
    a float64 array without axes."""
    by_type: dict[Any, list[Array]] = {}
    for w in arrays:
        by_type.setdefault(w.dtype, []).append(w)
    lib = lib_of(arrays[0])
    totals = [lib.list_norm(group, kind, power) for group in by_type.values()]
    join = np.maximum if kind == "abs_max" else np.add
    return functools.reduce(join, totals)


class Penalty(Op):
    """factor * the sum of |w|, or of w^2, over all elements of all arrays; float32 for 16 bits."""

    fresh = True

    def forward(self, *args: Any) -> Array:
        *arrays, kind, factor = args
        total = list_norm(arrays, kind)
        self.saved = tuple(arrays)
        self.args = kind, factor
        first = arrays[0].dtype
        return typed(total * factor, np.dtype(np.float32) if is_half(first) else first)

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
