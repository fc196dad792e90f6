"""The tensor: an array, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad import autograd, backend

__all__ = ["Tensor", "tensor"]

Array = Any


class Tensor:
    """An array with a place on the tape.

    ``array`` is the backend's own (NumPy, CuPy), physically channels-last: axis 1 of an activation
    has stride 1. ``node`` is the :class:`~convgrad.autograd.Op` that made it, None for a leaf, and
    ``index`` says which of the op's outputs it is. ``version`` is a one-element list shared by all
    tensors that share memory; changes in place count it up.
    """

    __slots__ = (
        "__weakref__",
        "array",
        "grad",
        "hooks",
        "index",
        "node",
        "requires_grad",
        "version",
    )
    __array_priority__ = 1000  # numpy_array * tensor calls Tensor.__rmul__

    def __init__(self, array: Array, requires_grad: bool = False) -> None:
        self.array = array
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.node: autograd.Op | None = None
        self.index = 0
        self.version = [0]
        self.hooks: dict[int, Any] | None = None

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    # ---- the tape ----

    def backward(self, gradient: Tensor | None = None, retain_graph: bool = False) -> None:
        """Adds the gradient of this tensor with respect to every leaf into the leaf's ``.grad``.

        Args:
            gradient: d(something)/d(this), of this tensor's shape; may be left out for one element.
            retain_graph: keep the saved arrays, to walk the graph again.
        """
        autograd.run_backward((self,), (self._start_gradient(gradient),), retain_graph)

    def _start_gradient(self, gradient: Any) -> Array:
        if not self.requires_grad:
            raise RuntimeError(
                "[backward] This tensor does not require a gradient: none of the tensors it was "
                "computed from has requires_grad=True, or it was computed under no_grad()."
            )
        if gradient is None:
            if self.array.size != 1:
                raise RuntimeError(
                    "[backward] gradient may be left out only for a tensor of one element. Got "
                    f"shape {self.shape}."
                )
            return backend.of(self.array).xp.ones_like(self.array)
        array = gradient.array if isinstance(gradient, Tensor) else np.asarray(gradient)
        if array.shape != self.shape or array.dtype != self.array.dtype:
            raise ValueError(
                f"[backward] gradient must have the tensor's shape and dtype, {self.shape} "
                f"{self.array.dtype}. Got {array.shape} {array.dtype}."
            )
        return array

    def _accumulate(self, gradient: Array, owned: bool) -> None:
        """Adds a finished gradient into ``.grad``; ``owned`` arrays may be kept without a copy."""
        if self.grad is None:
            if not owned:
                out = backend.of(gradient).lib.empty_like(gradient)
                out[...] = gradient
                gradient = out
            self.grad = Tensor(gradient)
        else:
            self.grad = Tensor(backend.of(gradient).lib.add(self.grad.array, gradient))
        if self.hooks:
            for hook in list(self.hooks.values()):
                hook(self)


autograd.Tensor = Tensor  # type: ignore[misc]


def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A new leaf with a copy of ``data`` (numbers, nested lists, an array or a tensor).

    Python floats become float32, ints int64, bools bool; arrays keep their dtype.
    """
    source = data.array if isinstance(data, Tensor) else data
    array = np.array(source, dtype=dtype)
    if dtype is None and array.dtype == np.float64 and not hasattr(source, "dtype"):
        array = array.astype(np.float32)
    return Tensor(array, requires_grad)


def as_tensor(value: Tensor | Sequence[Any] | Any) -> Tensor:
    """``value`` itself if it is a tensor, else a leaf made of it."""
    return value if isinstance(value, Tensor) else tensor(value)
