"""Convolutional deep belief networks, which learn features without labels (Lee, Grosse, Ranganath
and Ng, "Convolutional deep belief networks for scalable unsupervised learning of hierarchical
representations", ICML 2009; details as in the authors' own code).

A layer is a convolutional restricted Boltzmann machine (CRBM): visible units v, K maps of binary
detection units h, and pooling units, each of which covers a block of detection units:

    E(v, h) = -(sum_k h_k . (W_k * v + b_k) + c . v - |v|^2 / 2) / sigma^2

(binary visible units have no |v|^2 term), where at most one unit of a block may be on. Layers are
stacked: the pooling units of one are the visible units of the next, and each is trained on what
those below it, already trained, make of the images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from convgrad import nn
from convgrad.autograd import describe, no_grad
from convgrad.creation import empty_like, rand, randn, zeros, zeros_like
from convgrad.functional import (
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    interpolate,
    max_pool2d,
    sigmoid,
)
from convgrad.functional.math import clamp, exp, log
from convgrad.random import Generator
from convgrad.tensor import Tensor, tensor

__all__ = ["ConvDBN", "ConvRBM", "probabilistic_max_pool"]


class _Blocks(NamedTuple):
    """exp(input) of detection units, scaled: exp(input - most), and the sum over a block with the
    "off" unit, whose input is 0."""

    units: Tensor  # (N, K, H, W)
    total: Tensor  # (N, K, H / size, W / size)
    most: Tensor  # the block's largest input or 0; a constant to the tape


def _blocks(input: Tensor, size: int) -> _Blocks:
    if input.ndim != 4 or input.shape[2] % size or input.shape[3] % size:
        raise ValueError(
            "[probabilistic_max_pool] input must be of shape (N, K, H, W), H and W multiples of "
            f"{size}. Got {describe(input)}."
        )
    most = clamp(max_pool2d(input.detach(), size), min=0)
    units = exp(input - interpolate(most, scale_factor=size))
    return _Blocks(units, avg_pool2d(units, size) * size**2 + exp(-most), most)


def probabilistic_max_pool(input: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Probabilities of detection units (N, K, H, W) and of pooling units (N, K, H/size, W/size).

    In each block of size x size, one detection unit is on or none: unit i with probability
    exp(input_i) / (1 + sum_j exp(input_j)), none with 1 / (1 + sum_j exp(input_j)); then the
    pooling unit is off. ValueError unless the blocks fit.
    """
    blocks = _blocks(input, size)
    on = blocks.units / interpolate(blocks.total, scale_factor=size)
    return on, 1 - exp(-blocks.most) / blocks.total


class ConvRBM(nn.Module):
    """One layer: (N, channels, H, W) -> probabilities of pooling units (N, filters, h, w), where
    h = (H - kernel_size + 1) / pool, which must be whole, and w likewise.

    Args:
        visible: "real" units, Gaussian of variance sigma^2, or "binary" ones.
        sigma: larger means less certain, and so fewer detection units on. A buffer.

    ``weight`` (filters, channels, kernel_size, kernel_size) starts as 0.01 times a normal draw,
    ``hidden_bias`` (filters) and ``visible_bias`` (channels) as 0.
    """

    sigma: Tensor

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: int,
        pool: int = 2,
        visible: str = "real",
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        if visible not in ("real", "binary"):
            raise ValueError(f"[ConvRBM] visible must be 'real' or 'binary'. Got {visible!r}.")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"[ConvRBM] sigma must be a number above 0. Got {sigma!r}.")
        self.kernel_size, self.pool, self.visible = kernel_size, pool, visible
        shape = filters, channels, kernel_size, kernel_size
        self.weight = nn.Parameter(randn(*shape) * 0.01)
        self.hidden_bias = nn.Parameter(zeros(filters))
        self.visible_bias = nn.Parameter(zeros(channels))
        self.register_buffer("sigma", tensor(np.array(sigma, np.float32)))

    @property
    def _variance(self) -> float:
        return self.sigma.item() ** 2

    # ---- up and down ----

    def forward(self, v: Tensor) -> Tensor:
        return self.hidden(v)[1]

    def hidden(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, given v, of the detection units and of the pooling units."""
        return probabilistic_max_pool(self._input(v), self.pool)

    def sample(self, v: Tensor, generator: Generator | None = None) -> Tensor:
        """Detection units (N, filters, H', W') of 0 and 1, drawn given v."""
        return self._drawn(self.hidden(v)[0], generator)

    def reconstruct(self, h: Tensor) -> Tensor:
        """The mean of the visible units given detection units, or their probabilities."""
        v = conv_transpose2d(h, self.weight, self.visible_bias)
        return sigmoid(v / self._variance) if self.visible == "binary" else v

    def trim(self, v: Tensor) -> Tensor:
        """The part of v, from the upper left corner, whose detection units are whole blocks."""
        height, width = (n - (n - self.kernel_size + 1) % self.pool for n in v.shape[2:])
        return v[:, :, :height, :width]

    def _input(self, v: Tensor) -> Tensor:
        """What the detection units get: (N, filters, H', W')."""
        height, width = (n - self.kernel_size + 1 for n in v.shape[2:])
        if min(height, width) < 1 or height % self.pool or width % self.pool:
            raise ValueError(
                "[ConvRBM] The detection units, H - kernel_size + 1 by W - kernel_size + 1, must "
                f"be whole blocks of {self.pool} x {self.pool}. Got {height} x {width}, from "
                f"{describe(v)} and kernel_size {self.kernel_size}."
            )
        return conv2d(v, self.weight, self.hidden_bias) / self._variance

    def _drawn(self, on: Tensor, generator: Generator | None = None) -> Tensor:
        """Units drawn with these probabilities, at most one of a block: the first for which the
        sum of the probabilities so far exceeds a number drawn for the block."""
        n, filters, height, width = on.shape
        with no_grad():
            u = rand(n, filters, height // self.pool, width // self.pool, generator=generator)
            u, below, h = u.to(on), zeros_like(on[:, :, :: self.pool, :: self.pool]), empty_like(on)
            for y, x in np.ndindex(self.pool, self.pool):
                above = below + on[:, :, y :: self.pool, x :: self.pool]
                h[:, :, y :: self.pool, x :: self.pool] = (below <= u) & (u < above)
                below = above
        return h

    # ---- energies ----

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) of each sample: (N,)."""
        met = (conv2d(v, self.weight, self.hidden_bias) * h).sum((1, 2, 3))
        return -met / self._variance + self._own_energy(v)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) of each sample: (N,).

        Its gradient is what detection units expect: -dF/dW_k = sum of P(h_k on) v / sigma^2.
        """
        return self._free_energy(v, self._input(v))

    def _free_energy(self, v: Tensor, input: Tensor) -> Tensor:
        blocks = _blocks(input, self.pool)
        return self._own_energy(v) - (log(blocks.total) + blocks.most).sum((1, 2, 3))

    def _own_energy(self, v: Tensor) -> Tensor:
        """What the visible units have without the hidden ones: (N,)."""
        own = -(v * self.visible_bias.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        if self.visible == "real":
            own = own + (v * v).sum((1, 2, 3)) / 2
        return own / self._variance

    # ---- learning ----

    def contrast(self, v: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """(a loss, how active each filter is) of one step of contrastive divergence, CD-1.

        The loss is F(v) - F(v'), where v' is what the layer makes of v: h drawn given v, then the
        mean of v' given h, a constant to the tape. It is scaled by sigma^2, and is the mean over
        samples and detection units, so that its gradient is that of the authors' code; it is no
        measure of success and may be of any sign. Activity (filters,) is the mean probability of
        detection units, off the tape.
        """
        input = self._input(v)
        with no_grad():
            on = probabilistic_max_pool(input, self.pool)[0]
            fantasy = self.reconstruct(self._drawn(on, generator))
        difference = self._free_energy(v, input) - self.free_energy(fantasy)
        units = input.shape[2] * input.shape[3]
        return difference.mean() * (self._variance / units), on.mean((0, 2, 3))


class ConvDBN(nn.Sequential):
    """Layers on top of each other: ``ConvDBN(ConvRBM(1, 24, 10), ConvRBM(24, 40, 12, pool=3))``.

    Images are trimmed at the right and below, before each layer, to what its blocks need.
    """

    def forward(self, v: Tensor) -> Tensor:
        for layer in self:
            v = layer(layer.trim(v))
        return v

    def templates(self, layer: int) -> Tensor:
        """What each filter of a layer stands for in the image: (filters, channels, h, w).

        A filter of a higher layer is a sum of those below it, each where its pooling unit is (put
        into the middle of the block) and as strong as its weight, negative weights left out.
        """
        layers = list(self)
        if not 0 <= layer < len(layers):
            raise ValueError(f"[templates] layer must be in 0..{len(layers) - 1}. Got {layer}.")
        with no_grad():
            pictures = layers[layer].weight.detach()
            for below in layers[layer - 1 :: -1] if layer else []:
                spread = interpolate(clamp(pictures, min=0), scale_factor=below.pool)
                pictures = conv_transpose2d(spread, below.weight) / below.pool**2
            return pictures
