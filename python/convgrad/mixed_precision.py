"""Autocast: in which type the operations of a region compute, by PyTorch's rules.

Convolutions and matrix products take their operands in 16 bits, losses and what is like them in
float32; everything else follows its input. The casts are ops of the tape, so that gradients come
back in the operands' own types.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from convgrad.autograd import is_grad_enabled
from convgrad.dtypes import is_half, named
from convgrad.tensor import Tensor

__all__ = [
    "autocast",
    "autocast_dtype",
    "in_float32",
    "is_autocast_enabled",
    "operands",
    "own_casts",
]

F = TypeVar("F", bound=Callable[..., Any])


class _State(threading.local):
    """The innermost region's type, None outside of all, and the casts made in the outermost."""

    dtype: np.dtype[Any] | None = None
    depth = 0

    def __init__(self) -> None:
        self.casts: dict[int, tuple[Tensor, int, Tensor]] = {}


_state = _State()


class autocast:
    """``with autocast():`` or ``@autocast()``: mixed precision, in this thread.

    Convolutions, transposed convolutions, ``linear`` and ``matmul`` cast their float32 operands to
    ``dtype``, 'bfloat16' or 'float16'; losses, ``softmax``, ``log_softmax``, ``exp``, ``log``,
    ``pow``, ``sum`` and ``cumsum`` cast theirs of 16 bits to float32. The rest computes in its
    inputs' type: normalisation takes 16-bit activations with float32 weights and statistics.
    Parameters stay float32 and so do their gradients; each is cast once while the outermost region
    lasts. float64 is left alone. ``enabled=False`` makes a region of no casts, inside another one
    too.

    Sums are float32 in either type. float16 has small gradients vanish: use a :class:`GradScaler`.
    For GPUs: RuntimeError where an operand to be cast is on the CPU.
    """

    def __init__(self, dtype: Any = "bfloat16", enabled: bool = True) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"[autocast] enabled must be a bool. Got {enabled!r}.")
        name = dtype if isinstance(dtype, str) else getattr(dtype, "name", "")
        if name not in ("bfloat16", "float16"):
            raise ValueError(f"[autocast] dtype must be 'bfloat16' or 'float16'. Got {dtype!r}.")
        self.name = name
        self.enabled = enabled
        self._before: list[np.dtype[Any] | None] = []

    def __enter__(self) -> autocast:
        dtype = named(self.name) if self.enabled else None
        self._before.append(_state.dtype)
        _state.dtype = dtype
        _state.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        _state.dtype = self._before.pop()
        _state.depth -= 1
        if _state.depth == 0:
            _state.casts.clear()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.name, self.enabled):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def is_autocast_enabled() -> bool:
    """Whether this thread is in an enabled :class:`autocast` region."""
    return _state.dtype is not None


def autocast_dtype() -> np.dtype[Any] | None:
    """The type of this thread's innermost region, None outside of all."""
    return _state.dtype


class own_casts:
    """While this lasts, parameters are cast anew; these casts are forgotten at its end."""

    def __enter__(self) -> None:
        self._before, _state.casts = _state.casts, {}

    def __exit__(self, *_: object) -> None:
        _state.casts = self._before


def operands(op: str, *tensors: Any) -> tuple[Any, ...]:
    """What a product named ``op`` is computed from: tensors that an :class:`autocast` region is
    about in its type, all others as they are."""
    dtype = _state.dtype
    return tensors if dtype is None else tuple([_lowered(op, t, dtype) for t in tensors])


def _lowered(op: str, t: Any, dtype: np.dtype[Any]) -> Any:
    if not isinstance(t, Tensor) or t.dtype == dtype:
        return t
    if t.dtype != np.float32 and not is_half(t.dtype):
        return t
    if str(t.device) == "cpu":
        raise RuntimeError(
            f"[{op}] autocast to {dtype.name} is for tensors on a GPU. Got {t.dtype} on the CPU; "
            "autocast(enabled=False) leaves it."
        )
    if not (t.is_leaf and t.requires_grad):
        return t.to(dtype)
    return _cast_once(t, dtype)


def _cast_once(leaf: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """The cast of a parameter, the one made before if it still serves."""
    version = leaf.version[0]
    known = _state.casts.get(id(leaf))
    if known is not None and known[0] is leaf and known[1] == version:
        cast = known[2]
        # One made under no_grad is not on the tape, and one that was walked no longer.
        walks = cast.node is not None and cast.node.edges is not None
        if cast.dtype == dtype and walks == is_grad_enabled():
            return cast
    cast = leaf.to(dtype)
    _state.casts[id(leaf)] = leaf, version, cast
    return cast


def in_float32(function: F) -> F:
    """``function`` with its 16-bit tensors cast to float32, in :class:`autocast` regions."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _state.dtype is not None:
            args = tuple([_raised(a) for a in args])
            kwargs = {name: _raised(a) for name, a in kwargs.items()}
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _raised(t: Any) -> Any:
    if isinstance(t, Tensor) and is_half(t.dtype):
        return t.to(np.float32)
    return t
