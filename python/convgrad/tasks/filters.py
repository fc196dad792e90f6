"""Filters learned from photographs without labels, by a convolutional deep belief network.

The photographs are those that come with scikit-image, whitened: each frequency brought to about the
same power, as the retina does (Olshausen and Field, "Emergence of simple-cell receptive field
properties by learning a sparse code for natural images", 1996), and contrast evened out. Their
left three quarters are trained on, the rest is held out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convgrad import optim
from convgrad.autograd import no_grad
from convgrad.extras import require
from convgrad.models.cdbn import ConvDBN, ConvRBM
from convgrad.tensor import Tensor, tensor

__all__ = [
    "LAYERS",
    "PHOTOGRAPHS",
    "Layer",
    "coherence",
    "draw",
    "load",
    "measure",
    "network",
    "scrambled",
    "train_layer",
    "whiten",
]

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon",
    "rocket", "stereo_motorcycle",
)  # fmt: skip
SIZE = 69  # pixels of a training crop: 60 detection units of the first layer
DEVIATION = 0.3  # of a whitened photograph
HELD_OUT = 0.25  # of its columns, on the right
UPDATES, BATCH = 50, 4  # an epoch's, and crops for each
STEADY = 4  # epochs of little momentum before there is more
ORIENTED = 0.5  # coherence; of 10,000 random 10x10 filters the highest is 0.43


@dataclass(frozen=True)
class Layer:
    """A layer and how it learns; the values are those of the authors' code."""

    filters: int
    kernel_size: int
    pool: int
    visible: str
    sigma: float
    sigma_end: float  # it shrinks by 1 % an epoch down to this
    target: float  # of the detection units' mean probability
    strength: float  # of the pull towards it
    weight_decay: float
    lr: float


LAYERS = (
    Layer(24, 10, 2, "real", 0.2, 0.1, 0.002, 5.0, 0.01, 0.02),
    Layer(40, 12, 3, "binary", 0.2, 0.2, 0.003, 5.0, 0.02, 0.01),
)


# ---- photographs ----


@functools.cache
def load() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """(the parts to train on, the parts held out) of the whitened photographs, float32 (H, W)."""
    data = require("skimage.data", "medical")
    train, held_out = [], []
    for name in PHOTOGRAPHS:
        picture = getattr(data, name)()
        whole = whiten(_grey(picture[0] if isinstance(picture, tuple) else picture))
        cut = round(whole.shape[1] * (1 - HELD_OUT))
        train.append(whole[:, :cut])
        held_out.append(whole[:, cut:])
    return tuple(train), tuple(held_out)


def _grey(picture: np.ndarray) -> np.ndarray:
    """(H, W) float64 of grey or RGB."""
    weights = np.array([0.2125, 0.7154, 0.0721])  # luminance, CCIR 709
    return picture @ weights if picture.ndim == 3 else picture.astype(np.float64)


def whiten(image: np.ndarray) -> np.ndarray:
    """An image (H, W), whitened, of local contrast about 1, and of standard deviation DEVIATION.

    Frequency f (cycles per pixel) is multiplied by f exp(-(f / 0.4)^4): natural images have
    amplitudes like 1 / f, and beyond 0.4 there is mostly noise. Contrast is the root mean square
    within about 8 pixels; where that is among the lowest 30 %, nothing is amplified further.
    """
    gaussian_filter = require("scipy.ndimage", "medical").gaussian_filter
    y, x = (np.fft.fftfreq(n) for n in image.shape)
    f = np.hypot(y[:, None], x)
    spectrum = np.fft.fft2(image - image.mean()) * f * np.exp(-((f / 0.4) ** 4))
    white = np.fft.ifft2(spectrum).real
    contrast = np.sqrt(gaussian_filter(white**2, 8))
    white /= np.maximum(contrast, np.quantile(contrast, 0.3))
    return (white * (DEVIATION / white.std())).astype(np.float32)


def draw(parts: tuple[np.ndarray, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` crops (count, 1, SIZE, SIZE), each of mean 0, half of them mirrored."""
    crops = np.empty((count, 1, SIZE, SIZE), np.float32)
    for crop in crops[:, 0]:
        part = parts[rng.integers(len(parts))]
        y, x = (rng.integers(n - SIZE + 1) for n in part.shape)
        crop[:] = part[y : y + SIZE, x : x + SIZE]
        if rng.random() < 0.5:
            crop[:] = crop[:, ::-1].copy()
        crop -= crop.mean()
    return crops


def scrambled(crops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crops (N, 1, H, W) with their phases drawn at random: the same power in each frequency,
    and no edges left."""
    noise = np.fft.fft2(rng.standard_normal(crops.shape))
    phase = noise / np.maximum(np.abs(noise), 1e-12)
    return np.fft.ifft2(np.abs(np.fft.fft2(crops)) * phase).real.astype(np.float32)


# ---- learning ----


def network(layers: int) -> ConvDBN:
    """The first ``layers`` of LAYERS, untrained."""
    made, channels = [], 1
    for s in LAYERS[:layers]:
        made.append(ConvRBM(channels, s.filters, s.kernel_size, s.pool, s.visible, s.sigma))
        channels = s.filters
    return ConvDBN(*made)


def train_layer(
    model: ConvDBN,
    index: int,
    parts: tuple[np.ndarray, ...],
    epochs: int,
    seed: int = 0,
    report: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> None:
    """Trains one layer on what those below make of crops from ``parts``.

    An epoch is 50 updates of 4 crops each, by contrastive divergence with momentum and weight
    decay; biases of the hidden units are pulled so that these are rarely on. ``report(epoch,
    row)`` is called after each, epochs counting from 1, with what was seen in training: ``active``,
    the mean probability of a detection unit.
    """
    settings, layer = LAYERS[index], model[index]
    rng = np.random.default_rng((seed, index))
    optimizer = _optimizer(layer, settings)
    for epoch in range(1, epochs + 1):
        for group in optimizer.param_groups:
            group["momentum"] = 0.5 if epoch <= STEADY else 0.9
            group["lr"] = settings.lr / (1 + 0.01 * epoch)
        active = _train_epoch(model, index, parts, optimizer, rng)
        with no_grad():
            layer.sigma.fill_(max(settings.sigma_end, layer.sigma.item() * 0.99))
        report(epoch, {"active": active})


def _train_epoch(
    model: ConvDBN,
    index: int,
    parts: tuple[np.ndarray, ...],
    optimizer: Any,
    rng: np.random.Generator,
) -> float:
    """UPDATES updates; returns the mean probability of a detection unit."""
    active = 0.0
    for _ in range(UPDATES):
        v = _seen_by(model, index, draw(parts, BATCH, rng))
        active += _update(model[index], v, LAYERS[index], optimizer) / UPDATES
    return active


def _optimizer(layer: ConvRBM, settings: Layer) -> Any:
    groups: list[dict[str, Any]] = [
        {"params": [layer.weight], "weight_decay": settings.weight_decay},
        {"params": [layer.hidden_bias]},
    ]
    if layer.visible == "binary":  # real ones have mean 0
        groups.append({"params": [layer.visible_bias]})
    return optim.SGD(groups, lr=settings.lr, momentum=0.5)


def _seen_by(model: ConvDBN, index: int, crops: np.ndarray) -> Tensor:
    """What a layer gets of crops: (N, channels, h, w)."""
    layer = model[index]
    v = tensor(crops).to(layer.weight.device)
    with no_grad():
        for below in list(model)[:index]:
            v = below(below.trim(v))
        return layer.trim(v)


def _update(layer: ConvRBM, v: Tensor, settings: Layer, optimizer: Any) -> float:
    """One step; returns the detection units' mean probability before it."""
    loss, active = layer.contrast(v)
    optimizer.zero_grad()
    loss.backward()
    with no_grad():  # towards the target
        layer.hidden_bias.grad += (active - settings.target) * settings.strength
    optimizer.step()
    return active.mean().item()


# ---- how good it is ----


def measure(model: ConvDBN, index: int, crops: np.ndarray) -> dict[str, float]:
    """How well a layer knows crops that it was not trained on.

    ``error``: mean squared error of the reconstruction from the detection units' probabilities, in
    parts of the mean square of what was to be reconstructed.
    ``natural`` (first layer): in how many of the crops the free energy is below that of the same
    crop with random phases; 0.5 is chance.
    ``oriented`` (first layer): the part of filters whose coherence is above ORIENTED.
    """
    layer, v = model[index], _seen_by(model, index, crops)
    with no_grad():
        difference = v - layer.reconstruct(layer.hidden(v)[0])
        row = {"error": ((difference**2).mean() / (v**2).mean()).item()}
        if index == 0:
            other = _seen_by(model, 0, scrambled(crops, np.random.default_rng(0)))
            row["natural"] = (
                (layer.free_energy(v) < layer.free_energy(other)).to(v.dtype).mean().item()
            )
            row["oriented"] = float((coherence(layer.weight) > ORIENTED).mean())
    return row


def coherence(weights: Any) -> np.ndarray:
    """How much each filter (K, C, h, w) prefers one orientation: (K,), from 0 to 1.

    (a - b) / (a + b), a and b the larger and smaller second moment of the filter's power over the
    plane of frequencies: 1 if all its power lies along one line, 0 for a spot or a ring.
    """
    w = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else np.asarray(weights)
    w = w - w.mean((2, 3), keepdims=True)
    power = (np.abs(np.fft.fft2(w, (32, 32))) ** 2).sum(1)
    y, x = np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)
    yy, xx, xy = ((power * product).sum((1, 2)) for product in (y * y, x * x, x * y))
    total = yy + xx
    return np.divide(np.hypot(xx - yy, 2 * xy), total, out=np.zeros_like(total), where=total > 0)
