"""Where in an image a classifier saw what it says: heat maps per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad import autograd, nn
from convgrad.functional import interpolate, linear
from convgrad.tensor import Tensor, as_tensor

__all__ = ["class_activation_maps", "enlarge", "grad_cam"]


def class_activation_maps(features: Tensor, classify: nn.Linear) -> Tensor:
    """The logits at each position of features that a global pooling would follow.

    A classifier that pools features (N, C, ...) over all positions and then applies ``classify``
    is asked at each position instead: map c is sum_k W[c, k] features[:, k] + b[c]. Under average
    pooling the mean of a map is the logit of its class. Under max pooling it is not, for channels
    have their maxima at different positions, but where all lie at one, the map has the logit there.
    (Zhou et al., "Learning deep features for discriminative localization", 2016.)

    Args:
        features: (N, C, ...), what goes into the pooling, with one axis or more behind C.
        classify: the linear layer behind the pooling, of C features.

    Returns (N, classes, ...).
    """
    if features.ndim < 3 or features.shape[1] != classify.in_features:
        raise ValueError(
            "[class_activation_maps] features must be (N, C, ...) with C the in_features of "
            f"classify, {classify.in_features}, and an axis or more behind. Got {features.shape}."
        )
    axes = list(range(features.ndim))
    last = features.permute(0, *axes[2:], 1)
    maps = linear(last, classify.weight, classify.bias)
    return maps.permute(0, axes[-1], *axes[1:-1])


def grad_cam(model: Any, layer: Any, input: Any, classes: Any) -> np.ndarray:
    """What in a layer's output speaks for a class: for any network, whatever follows the layer.

    Each channel of the output A (N, C, ...) is weighted by the mean, over all positions, of the
    gradient of the class's logit: max(0, sum_k a_k A_k). Behind global average pooling and a linear
    layer this is, up to a positive factor and the bias, the class activation map without what
    speaks against the class. (Selvaraju et al., "Grad-CAM", 2017.)

    Args:
        model: gives logits (N, classes); it runs as in evaluation.
        layer: one of its modules, called once per forward, with an output (N, C, ...).
        input: (N, ...); it is brought to the model's device.
        classes: of each image (N,), or one for all.

    Returns (N, ...) without gradient. RuntimeError if the layer takes no part in the logits.
    """
    x = as_tensor(input).detach()
    x = x.to(next((p.device for p in model.parameters()), x.device))
    x.requires_grad_()  # for a layer without trainable parameters
    seen: list[Tensor] = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        hook = layer.register_forward_hook(lambda module, args, output: seen.append(output))
        with hook, autograd.enable_grad():
            logits = model(x)
            if len(seen) != 1 or seen[0].ndim < 3 or len(seen[0]) != len(x):
                raise ValueError(
                    "[grad_cam] layer must be called once and give (N, C, ...) with an axis or "
                    f"more behind C. Got {[tuple(output.shape) for output in seen]}."
                )
            chosen = np.zeros(logits.shape, logits.dtype)
            chosen[np.arange(len(x)), _chosen(logits, classes)] = 1
            score = (logits * Tensor(chosen).to(logits.device)).sum()
        (gradient,) = autograd.grad(score, seen[0])
    finally:
        for module, training in modes:
            module.training = training
    assert gradient is not None  # grad raises where there is none
    activations, slopes = seen[0].detach().numpy(), gradient.numpy()
    weights = slopes.mean(tuple(range(2, slopes.ndim)), keepdims=True)
    return np.maximum((weights * activations).sum(1), 0)


def _chosen(logits: Tensor, classes: Any) -> np.ndarray:
    n, count = logits.shape if logits.ndim == 2 else (len(logits), 0)
    chosen = np.asarray(as_tensor(classes).numpy())
    if count == 0 or chosen.dtype.kind not in "iu" or chosen.shape not in ((), (n,)):
        raise ValueError(
            "[grad_cam] classes must be a whole number or (N,) of them, for logits (N, classes). "
            f"Got {chosen.dtype} {chosen.shape} for {logits.shape}."
        )
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
        raise ValueError(
            f"[grad_cam] classes must be in 0..{count - 1}. Got {chosen.min()} to {chosen.max()}."
        )
    return np.broadcast_to(chosen, (n,))


def enlarge(maps: Any, shape: Sequence[int]) -> np.ndarray:
    """Maps (N, ...) brought to an image's shape, linearly between the middles of their cells."""
    small = as_tensor(maps).detach()
    if small.ndim != len(shape) + 1 or small.ndim not in (2, 3, 4):
        raise ValueError(
            f"[enlarge] maps must be (N, ...) with {len(shape)} axes behind N, for the shape "
            f"{tuple(shape)}. Got {small.shape}."
        )
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    large = interpolate(small.unsqueeze(1).float(), size=tuple(shape), mode=mode)
    return large.squeeze(1).numpy()
