"""Activations and elementwise functions, by their definitions in float64."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x, beta=1.0, threshold=20.0):
    z = beta * x
    return np.where(z > threshold, x, np.log1p(np.exp(np.minimum(z, threshold))) / beta)


def hardtanh(x, low=-1.0, high=1.0):
    return np.where(x < low, low, np.where(x > high, high, x))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

FUNCTIONS = {
    "relu": lambda x: np.where(x < 0, 0, x),
    "leaky_relu": lambda x, slope=0.01: np.where(x > 0, x, slope * x),
    "elu": elu,
    "selu": lambda x: SELU_SCALE * elu(x, SELU_ALPHA),
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * 0.5 * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(np.minimum(x, 40)))),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hardtanh": hardtanh,
    "relu6": lambda x: hardtanh(x, 0, 6),
    "hardsigmoid": lambda x: hardtanh(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * hardtanh(x + 3, 0, 6) / 6,
    "sigmoid": sigmoid,
    "logsigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "tanh": np.tanh,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "erf": _erf,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "square": np.square,
    "abs": np.abs,
    "neg": np.negative,
    "clamp": hardtanh,
}


def prelu(x, a):
    """max(0, x) + a min(0, x): a has one value, or one per channel of axis 1."""
    if a.size > 1:
        a = a.reshape(-1, *[1] * (x.ndim - 2))
    return np.maximum(0, x) + a * np.minimum(0, x)


def prelu_gradients(x, a, dy):
    shape = a.reshape(-1, *[1] * (x.ndim - 2)) if a.size > 1 else a
    dx = np.where(x > 0, dy, shape * dy)
    terms = np.where(x > 0, 0, x * dy)
    axes = tuple(i for i in range(x.ndim) if i != 1) if a.size > 1 else None
    return dx, terms.sum(axis=axes).reshape(a.shape)


def maxout(x, k):
    n, c, *rest = x.shape
    return x.reshape(n, c // k, k, *rest).max(axis=2)


def maxout_gradient(x, k, dy):
    n, c, *rest = x.shape
    groups = x.reshape(n, c // k, k, *rest)
    first = np.expand_dims(groups.argmax(axis=2), 2)
    dx = np.zeros(groups.shape)
    np.put_along_axis(dx, first, np.expand_dims(dy, 2), axis=2)
    return dx.reshape(x.shape)
