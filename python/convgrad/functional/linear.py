"""Fully connected layers and matrix products."""

from __future__ import annotations

from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of, of
from convgrad.functional.activation import relu_gradient
from convgrad.mixed_precision import operands
from convgrad.tensor import Tensor, array_of

__all__ = ["linear", "matmul", "one_hot"]

Array = Any


class Linear(Op):
    """y = x w' + b: x (..., in), w (out, in), b (out), y (..., out). With ``relu``, max(0, y)."""

    fresh = True
    can_mask = True

    def forward(self, x: Array, w: Array, b: Array | None, relu: bool) -> Array:
        lib = lib_of(x)
        x = lib.contiguous(x)
        y = lib.linear_forward(x, w, b, relu)
        self.rectified = relu
        self.saved = (x, w, y) if relu else (x, w)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved[:2]
        lib = lib_of(dy)
        dy = relu_gradient(self, dy)
        need_x, need_w, need_b = self.needs
        dx = dw = db = None
        if need_x:
            dx = lib.linear_backward_input(dy, w, x if self.masks else None)
        if need_w or need_b:
            dw, db = lib.linear_backward_weight(dy, x, need_b)
        return dx, dw, db


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times w (out, in) transposed, plus bias (out): (..., out).

    ValueError for shapes that do not fit, TypeError for dtypes that differ.
    """
    return Linear.apply(operands("linear", input, weight, bias), False)


def _linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """relu(linear(input, weight, bias)), in one pass."""
    return Linear.apply(operands("linear", input, weight, bias), True)


class MatMul(Op):
    """y[..., i, j] = sum over k of a[..., i, k] b[..., k, j]."""

    fresh = True

    def forward(self, a: Array, b: Array) -> Array:
        lib = lib_of(a)
        a, b = lib.contiguous(a), lib.contiguous(b)
        self.saved = a, b
        return lib.matmul_forward(a, b)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        return lib_of(dy).matmul_backward(dy, a, b, *self.needs)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product of (..., m, k) and (..., k, n), (..., m, n), by ``torch.matmul``'s rules.

    Batch axes are broadcast. A vector on the left is a row (1, k), on the right a column (k, 1);
    the axis it was given is dropped from the result. ValueError for shapes that do not fit,
    TypeError for dtypes that differ.
    """
    return MatMul.apply(operands("matmul", a, b))


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Classes (...) as int64 vectors (..., num_classes): 1 at the class, 0 elsewhere.

    num_classes: one more than the largest class if left out. TypeError unless the classes are
    integers, ValueError where one is negative or not below num_classes.
    """
    classes = array_of("one_hot", tensor, "tensor")
    if classes.dtype.kind not in "iu":
        raise TypeError(f"[one_hot] The classes must be integers. Got {classes.dtype}.")
    low, high = (int(classes.min()), int(classes.max())) if classes.size else (0, -1)
    if num_classes == -1 and classes.size:
        num_classes = high + 1
    if low < 0 or num_classes < 1 or high >= num_classes:
        raise ValueError(
            f"[one_hot] The classes must be from 0 to num_classes - 1, num_classes positive. Got "
            f"classes from {low} to {high}, num_classes {num_classes}."
        )
    xp = of(classes).xp
    return Tensor((classes[..., None] == xp.arange(num_classes)).astype(xp.int64))
