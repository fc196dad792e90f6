"""JAX in the race: the layers that the workloads need, compiled with the step as one function.

Names and shapes are PyTorch's, so that weights can be exchanged. Imports JAX.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convgrad.bench.trainers import State, trainer
from convgrad.bench.workloads import Workload

Array = Any
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Module:
    """``arrays``: parameters and buffers by name, put there before each call."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.training = True

    def __call__(self, *args: Array) -> Array:
        return self.forward(*args)

    def forward(self, *args: Array) -> Array:
        raise NotImplementedError

    def owners(self, prefix: str = "") -> dict[str, Module]:
        """This module and all below it, by PyTorch's prefix of their names."""
        found = {prefix: self}
        for name, child in vars(self).items():
            if isinstance(child, Module):
                found |= child.owners(f"{prefix}{name}.")
        return found


class Sequential(Module):
    def __init__(self, *layers: Module) -> None:
        super().__init__()
        self.layers = layers

    def owners(self, prefix: str = "") -> dict[str, Module]:
        found: dict[str, Module] = {prefix: self}
        for i, layer in enumerate(self.layers):
            found |= layer.owners(f"{prefix}{i}.")
        return found

    def forward(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class _Biased(Module):
    def add_bias(self, y: Array) -> Array:
        if "bias" not in self.arrays:
            return y
        return y + self.arrays["bias"].reshape(-1, *(1,) * (y.ndim - 2))


class _Conv(_Biased):
    def __init__(
        self, c: int, k: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding

    def forward(self, x: Array) -> Array:
        dims = x.ndim - 2
        pads = [(self.padding, self.padding)] * dims
        w = self.arrays["weight"]
        return self.add_bias(lax.conv_general_dilated(x, w, (self.stride,) * dims, pads))


class _ConvTranspose(_Biased):
    def __init__(self, c: int, k: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Array) -> Array:
        dims = x.ndim - 2
        w = jnp.flip(self.arrays["weight"], range(2, x.ndim)).swapaxes(0, 1)
        pads = [(self.kernel - 1, self.kernel - 1)] * dims
        spread = (self.stride,) * dims
        return self.add_bias(lax.conv_general_dilated(x, w, (1,) * dims, pads, lhs_dilation=spread))


class _MaxPool(Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Array) -> Array:
        window = (1, 1, *(self.kernel,) * (x.ndim - 2))
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


class Linear(_Biased):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()

    def forward(self, x: Array) -> Array:
        return self.add_bias(x @ self.arrays["weight"].T)


class BatchNorm2d(Module):
    def __init__(self, c: int) -> None:
        super().__init__()

    def forward(self, x: Array) -> Array:
        a, axes = self.arrays, (0, 2, 3)
        mean, var = a["running_mean"], a["running_var"]
        if self.training:
            n = x.size // x.shape[1]
            mean, var = x.mean(axes), x.var(axes)
            a["running_mean"] = 0.9 * a["running_mean"] + 0.1 * mean
            a["running_var"] = 0.9 * a["running_var"] + 0.1 * var * (n / (n - 1))
            a["num_batches_tracked"] = a["num_batches_tracked"] + 1
        scale = a["weight"] * lax.rsqrt(var + 1e-5)
        return x * scale[:, None, None] + (a["bias"] - mean * scale)[:, None, None]


class ReLU(Module):
    def forward(self, x: Array) -> Array:
        return jax.nn.relu(x)


class Identity(Module):
    def forward(self, x: Array) -> Array:
        return x


class Flatten(Module):
    def forward(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)


class AdaptiveAvgPool2d(Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        if size != 1:
            raise NotImplementedError("the workloads pool to 1")

    def forward(self, x: Array) -> Array:
        return x.mean((2, 3), keepdims=True)


Conv1d = Conv2d = Conv3d = _Conv
ConvTranspose2d = ConvTranspose3d = _ConvTranspose
MaxPool1d = MaxPool2d = MaxPool3d = _MaxPool


class JaxTrainer:
    """As trainers.Trainer."""

    def __init__(self, workload: Workload, state: State | None) -> None:
        self.network = workload.build(sys.modules[__name__], jnp.concatenate)
        self.owners = self.network.owners()
        self.lr = workload.lr
        self.x, self.target = map(jnp.asarray, workload.batch())
        values = trainer(workload).state() if state is None else state
        arrays = {name: jnp.asarray(value) for name, value in values.items()}
        self.buffers = {n: a for n, a in arrays.items() if n.split(".")[-1] in BUFFERS}
        self.parameters = {n: a for n, a in arrays.items() if n not in self.buffers}
        self.momenta = {n: jnp.zeros_like(a) for n, a in self.parameters.items()}
        self._step = jax.jit(self._update, donate_argnums=(0, 1, 2))
        self._infer = jax.jit(functools.partial(self._forward, training=False))

    def _forward(
        self, parameters: Any, buffers: Any, x: Array, training: bool
    ) -> tuple[Array, dict[str, Array]]:
        """(the output, the new buffers)"""
        for module in self.owners.values():
            module.arrays, module.training = {}, training
        places = {}
        for name, array in (parameters | buffers).items():
            prefix, _, key = name.rpartition(".")
            places[name] = self.owners[f"{prefix}." if prefix else ""].arrays, key
            places[name][0][key] = array
        y = self.network(x)
        return y, {name: places[name][0][places[name][1]] for name in buffers}

    def _loss(self, parameters: Any, buffers: Any, x: Array, t: Array) -> tuple[Array, Any]:
        y, buffers = self._forward(parameters, buffers, x, training=True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(y, 1), jnp.expand_dims(t, 1), 1)
        return -picked.mean(), buffers

    def _update(self, parameters: Any, momenta: Any, buffers: Any, x: Array, t: Array) -> Any:
        differentiate = jax.value_and_grad(self._loss, has_aux=True)
        (loss, buffers), gradients = differentiate(parameters, buffers, x, t)
        momenta = {n: 0.9 * m + gradients[n] for n, m in momenta.items()}
        parameters = {n: p - self.lr * momenta[n] for n, p in parameters.items()}
        return parameters, momenta, buffers, loss

    def step(self) -> float:
        self.parameters, self.momenta, self.buffers, loss = self._step(
            self.parameters, self.momenta, self.buffers, self.x, self.target
        )
        return float(loss)

    def infer(self) -> Array:
        return self._infer(self.parameters, self.buffers, self.x)[0].block_until_ready()

    def eval(self) -> JaxTrainer:
        return self

    def output(self) -> dict[str, np.ndarray]:
        return {"output": np.array(self.infer())}

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the first step, after it: the momenta began as zeros."""
        return {name: np.array(value) for name, value in self.momenta.items()}

    def state(self) -> dict[str, np.ndarray]:
        return {n: np.array(a) for n, a in (self.parameters | self.buffers).items()}
