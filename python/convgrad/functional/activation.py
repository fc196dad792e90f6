"""Activations, and the other elementwise functions of one argument."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import lib_of
from convgrad.deferred import Pending
from convgrad.mixed_precision import in_float32, operands
from convgrad.tensor import Tensor, array_of

__all__ = [
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "maxout",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
]

Array = Any

# Functions whose derivative follows from their output: that is what the next layer keeps anyway.
_FROM_OUTPUT = frozenset(
    {
        "elu",
        "exp",
        "expm1",
        "hardtanh",
        "reciprocal",
        "relu",
        "rsqrt",
        "selu",
        "sigmoid",
        "sqrt",
        "tanh",
    }
)


class Unary(Op):
    """y = f(x), elementwise. ``name`` and the parameters a, b: CONVGRAD_UNARIES in csrc/ops.h."""

    fresh = True

    def forward(self, x: Array, name: str, a: float = 0.0, b: float = 0.0) -> Array:
        lib = lib_of(x)
        x = lib.channels_last(x)
        y = lib.unary_forward(name, x, a, b)
        from_output = name in _FROM_OUTPUT or (name == "leaky_relu" and a >= 0)
        self.saved = (y if from_output else x,)
        self.args = name, a, b
        return y

    def backward(self, dy: Array) -> Array:
        name, a, b = self.args
        return lib_of(dy).unary_backward(name, self.saved[0], dy, a, b, reusable(self, dy))


class ReLU(Unary):
    """y = max(0, x), in the pass that computes x where that is still to come."""

    absorbs = True
    rectified = True

    def forward(self, x: Any, name: str = "relu", a: float = 0.0, b: float = 0.0) -> Array:
        if type(x) is not Pending:
            return Unary.forward(self, x, name)
        y = x.run(relu=True)
        self.saved = (y,)
        self.args = name, a, b
        return y

    def backward(self, dy: Array) -> Array:
        if self.masked:  # the ops that follow have done the work
            self.fresh = self.owned
            return dy
        return Unary.backward(self, dy)


def reusable(op: Op, dy: Array) -> Array | None:
    """dy, if an elementwise backward pass may write its result over it."""
    return dy if op.owned and lib_of(dy).is_channels_last(dy) else None


def relu_gradient(op: Op, dy: Array) -> Array:
    """The gradient before the ReLU of an op that has one fused, its output saved last."""
    if not op.rectified or op.masked:
        return dy
    return lib_of(dy).unary_backward("relu", op.saved[-1], dy, 0.0, 0.0, reusable(op, dy))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, x), of any shape; the derivative at 0 is 0.

    ``inplace`` is accepted here and below, and changes nothing: the result is a new tensor.
    TypeError unless float32 or float64.
    """
    return ReLU.apply((input,))


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope x."""
    return Unary.apply((input,), "leaky_relu", negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (e^x - 1) (Clevert et al., 2016)."""
    return Unary.apply((input,), "elu" if alpha >= 0 else "elu_from_input", alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """1.0507 elu(x, 1.6733): keeps zero mean and unit variance (Klambauer et al., 2017)."""
    return Unary.apply((input,), "selu")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x), also called swish."""
    return Unary.apply((input,), "silu")


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x P(X < x) for a standard normal X (Hendrycks and Gimpel, 2016).

    approximate: 'none', or 'tanh' for x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
    ValueError for anything else.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"[gelu] approximate must be 'none' or 'tanh'. Got {approximate!r}.")
    return Unary.apply((input,), "gelu" if approximate == "none" else "gelu_tanh")


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(softplus(x)) (Misra, 2019)."""
    return Unary.apply((input,), "mish")


@in_float32
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, and x where beta x > threshold. ValueError if beta is 0."""
    if beta == 0:
        raise ValueError(f"[softplus] beta must not be 0. Got {beta}.")
    return Unary.apply((input,), "softplus", beta, threshold)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return Unary.apply((input,), "softsign")


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """x within [min_val, max_val]; the derivative at both is 0. ValueError if min_val > max_val."""
    if min_val > max_val:
        raise ValueError(
            f"[hardtanh] min_val must not exceed max_val. Got {min_val} and {max_val}."
        )
    return Unary.apply((input,), "hardtanh", min_val, max_val)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """x within [0, 6]."""
    return Unary.apply((input,), "hardtanh", 0.0, 6.0)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """(x + 3) / 6 within [0, 1]."""
    return Unary.apply((input,), "hardsigmoid")


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x hardsigmoid(x) (Howard et al., 2019)."""
    return Unary.apply((input,), "hardswish")


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return Unary.apply((input,), "sigmoid")


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), exact where sigmoid(x) would be 0."""
    return Unary.apply((input,), "logsigmoid")


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Unary.apply((input,), "tanh")


class PReLU(Op):
    """y = max(0, x) + a min(0, x): right for any a, where max(x, a x) is not for a > 1."""

    fresh = True

    def forward(self, x: Array, a: Array) -> Array:
        lib = lib_of(x)
        x = lib.channels_last(x)
        self.saved = x, a
        return lib.prelu_forward(x, a)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return lib_of(dy).prelu_backward(*self.saved, dy)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight x: one weight (1), or one per channel (C) of x (N, C, ...).

    He et al., 2015. ValueError if weight has another shape, TypeError if another dtype.
    """
    return PReLU.apply(operands("prelu", input, weight))


class Maxout(Op):
    """y[:, c] = max over j < k of x[:, c k + j]; the gradient goes to the first of equals."""

    fresh = True

    def forward(self, x: Array, k: int, dim: int) -> Array:
        lib = lib_of(x)
        self.k, self.dim = k, dim
        x = lib.channels_last(self._swapped(x))
        self.saved = (x,)
        return lib.channels_last(self._swapped(lib.maxout_forward(x, k)))

    def backward(self, dy: Array) -> Array:
        lib = lib_of(dy)
        return self._swapped(lib.maxout_backward(self.saved[0], self._swapped(dy), self.k))

    def _swapped(self, x: Array) -> Array:
        return x if self.dim == 1 else x.swapaxes(1, self.dim)


def maxout(input: Tensor, k: int, dim: int = 1) -> Tensor:
    """The largest of each k neighbours c k .. c k + k - 1 along ``dim`` (Goodfellow et al., 2013).

    (N, C, ...) -> (N, C / k, ...) for dim 1. ValueError if k does not divide that axis.
    """
    rank = array_of("maxout", input).ndim
    if not isinstance(dim, (int, np.integer)) or rank < 2 or not -rank <= dim < rank:
        raise ValueError(
            f"[maxout] input must have at least 2 axes, and dim must be one of them. Got shape "
            f"{input.shape} and dim {dim}."
        )
    return Maxout.apply((input,), k, dim % rank)
