"""Gradients and weights kept in bounds, and parameters as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from convgrad.autograd import no_grad
from convgrad.backend import CPU, host, lib_of, of, typed
from convgrad.dtypes import is_half
from convgrad.functional.math import convert, wide
from convgrad.penalty import list_norm
from convgrad.tensor import Tensor

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_max_norm_",
    "parameters_to_vector",
    "vector_to_parameters",
]


def _gradients(parameters: Iterable[Tensor] | Tensor) -> list[Any]:
    params = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad.array for p in params if p.grad is not None]


def _total_norm(grads: list[Any], norm_type: float) -> Any:
    """float64, a NumPy scalar or an array without axes on the gradients' device."""
    if not grads:
        return np.float64(0.0)
    if norm_type == math.inf:
        return list_norm(grads, "abs_max")
    if norm_type == 2:
        return np.sqrt(list_norm(grads, "square_sum"))
    if norm_type == 1:
        return list_norm(grads, "abs_sum")
    return list_norm(grads, "power_sum", norm_type) ** (1 / norm_type)


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scales all gradients, in place, so that their norm as one vector is at most ``max_norm``.

    Returns that norm before scaling. RuntimeError for a NaN or infinite norm if
    ``error_if_nonfinite``; on a GPU that waits for it.
    """
    if not norm_type > 0:
        raise ValueError(f"[clip_grad_norm_] norm_type must be > 0. Got {norm_type}.")
    grads = _gradients(parameters)
    backend = of(grads[0]) if grads else CPU
    with backend.current(), np.errstate(all="ignore"):
        norm = _total_norm(grads, float(norm_type))
        if error_if_nonfinite and not math.isfinite(host(norm)):
            raise RuntimeError(f"[clip_grad_norm_] The norm of the gradients is {norm}.")
        factor = np.minimum(max_norm / (norm + 1e-6), 1.0)  # NaN if the norm is
        # On a GPU the factor stays there: nothing waits.
        if grads and (backend is not CPU or factor != 1.0):
            lib_of(grads[0]).list_scale(grads, typed(factor, np.float64))
        whole = grads and not is_half(grads[0].dtype)
        return Tensor(typed(norm, grads[0].dtype if whole else np.float32))


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Limits every element of every gradient, in place, to [-clip_value, clip_value]."""
    for g in _gradients(parameters):
        if is_half(g.dtype):
            g[...] = convert(of(g).xp.clip(wide(g), -clip_value, clip_value), g.dtype)
        else:
            of(g).xp.clip(g, -clip_value, clip_value, out=g)


@no_grad()
def clip_max_norm_(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2.0, dim: int = 0
) -> None:
    """Scales each filter, in place, so that the norm of its weights is at most ``max_norm``.

    A filter is what lies at one index of axis ``dim``: 0 for convolutions and linear layers, 1 for
    transposed ones. To be called after each step (Srivastava et al., "Dropout", 2014). With
    ``norm_type=math.inf`` every weight is limited by itself, to [-max_norm, max_norm], as in Havaei
    et al., "Brain tumor segmentation with deep neural networks", 2017.

    ValueError for a norm_type other than 2 and infinity, and for a max_norm of 0 or less.
    """
    if norm_type not in (2, math.inf):
        raise ValueError(f"[clip_max_norm_] norm_type must be 2 or math.inf. Got {norm_type}.")
    if not max_norm > 0:
        raise ValueError(f"[clip_max_norm_] max_norm must be > 0. Got {max_norm}.")
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        xp, w = of(p.array).xp, p.array
        if norm_type == math.inf:
            xp.clip(w, -max_norm, max_norm, out=w)
        else:
            rest = tuple(axis for axis in range(w.ndim) if axis != dim % w.ndim)
            norms = xp.sqrt(xp.square(w).sum(axis=rest, keepdims=True))
            xp.multiply(w, max_norm / xp.maximum(norms, max_norm), out=w)
        p.version[0] += 1


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of all parameters, each in C order, as one vector (a copy, off the tape)."""
    arrays = [p.array.reshape(-1) for p in parameters]
    if not arrays:
        raise ValueError("[parameters_to_vector] parameters must not be empty. Got none.")
    return Tensor(of(arrays[0]).xp.concatenate(arrays))


@no_grad()
def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copies a vector as :func:`parameters_to_vector` gives into the parameters, in place."""
    params = list(parameters)
    total = sum(p.array.size for p in params)
    if vec.shape != (total,):
        raise ValueError(f"[vector_to_parameters] vec must have shape {(total,)}. Got {vec.shape}.")
    at = 0
    for p in params:
        p.array[...] = vec.array[at : at + p.array.size].reshape(p.shape)
        p.version[0] += 1
        at += p.array.size
