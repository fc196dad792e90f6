"""Initial values, drawn on the host by ``convgrad.random.default_generator``.

Each function fills the tensor it is given in place and returns it. Formulas: Glorot and Bengio
2010 (xavier), He et al. 2015 (kaiming), Saxe et al. 2013 (orthogonal).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convgrad.backend import of
from convgrad.random import default_generator
from convgrad.tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def _fill(tensor: Tensor, values: Any) -> Tensor:
    if isinstance(values, np.ndarray):
        values = of(tensor.array).put(np.asarray(values, tensor.dtype))
    tensor.array[...] = values
    tensor.version[0] += 1
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """U(a, b)."""
    return _fill(tensor, default_generator.numpy.uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """N(mean, std^2)."""
    return _fill(tensor, default_generator.numpy.normal(mean, std, tensor.shape))


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """N(mean, std^2) conditioned on [a, b]: what falls outside is drawn again."""
    if not a < b or b < mean - 8 * std or a > mean + 8 * std:
        raise ValueError(
            f"[trunc_normal_] [a, b] must hold some of N({mean}, {std}^2). Got [{a}, {b}]."
        )
    values = default_generator.numpy.normal(mean, std, tensor.shape)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = default_generator.numpy.normal(mean, std, (int(outside.sum()),))
    return _fill(tensor, values)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element is ``val``."""
    return _fill(tensor, val)


def ones_(tensor: Tensor) -> Tensor:
    """Every element is 1."""
    return _fill(tensor, 1)


def zeros_(tensor: Tensor) -> Tensor:
    """Every element is 0."""
    return _fill(tensor, 0)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps a layer's variance through this nonlinearity."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1 + slope**2))
    gains = {
        "linear": 1.0,
        "conv1d": 1.0,
        "conv2d": 1.0,
        "conv3d": 1.0,
        "conv_transpose1d": 1.0,
        "conv_transpose2d": 1.0,
        "conv_transpose3d": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3,
        "relu": math.sqrt(2.0),
        "selu": 3.0 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(
            f"[calculate_gain] nonlinearity must be leaky_relu or one of {', '.join(gains)}. Got "
            f"{nonlinearity!r}."
        )
    return gains[nonlinearity]


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """(inputs per output, outputs per input) of a weight (out, in, taps...)."""
    shape = tensor.shape
    if len(shape) < 2:
        raise ValueError(
            f"[init] Fan-in and fan-out need a tensor of at least 2 axes. Got shape {shape}."
        )
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def _calculate_fan(tensor: Tensor, mode: str) -> int:
    fans = _calculate_fan_in_and_fan_out(tensor)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"[init] mode must be 'fan_in' or 'fan_out'. Got {mode!r}.")
    return fans[mode == "fan_out"]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain sqrt(6 / (fan_in + fan_out))."""
    a = gain * math.sqrt(6.0 / sum(_calculate_fan_in_and_fan_out(tensor)))
    return uniform_(tensor, -a, a)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_calculate_fan_in_and_fan_out(tensor))))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """U(-b, b), b = gain sqrt(3 / fan); ``a`` is leaky ReLU's slope."""
    if tensor.array.size == 0:
        return tensor
    gain = calculate_gain(nonlinearity, a)
    bound = gain * math.sqrt(3.0 / _calculate_fan(tensor, mode))
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """N(0, std^2), std = gain / sqrt(fan); ``a`` is leaky ReLU's slope."""
    if tensor.array.size == 0:
        return tensor
    gain = calculate_gain(nonlinearity, a)
    return normal_(tensor, 0.0, gain / math.sqrt(_calculate_fan(tensor, mode)))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Rows (or columns, whichever are fewer) of (out, everything else) are orthonormal, x gain."""
    shape = tensor.shape
    if len(shape) < 2:
        raise ValueError(f"[orthogonal_] The tensor must have at least 2 axes. Got shape {shape}.")
    if tensor.array.size == 0:
        return tensor
    rows, cols = shape[0], math.prod(shape[1:])
    flat = default_generator.numpy.normal(0.0, 1.0, (max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(flat.astype(np.float64))
    q *= np.sign(np.diag(r))  # makes the distribution uniform
    return _fill(tensor, (gain * (q.T if rows < cols else q)).reshape(shape))


def _default_(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's start for linear and convolution: both U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None and weight.array.size:
        bound = 1 / math.sqrt(_calculate_fan(weight, "fan_in"))
        uniform_(bias, -bound, bound)
