"""What networks that say where something is need beside layers: cropping, and positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convgrad.functional.pad import pad
from convgrad.functional.shape import stack
from convgrad.functional.softmax import softmax
from convgrad.tensor import Tensor, array_of, tensor

__all__ = ["center_crop", "soft_argmax"]


def center_crop(input: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of the last axes of (N, C, ...), of ``size``; of an odd margin the smaller half
    comes first.

    ValueError for a size above the input's, or of more axes than it has behind N and C.
    """
    size = tuple(int(n) for n in size)
    spatial = array_of("center_crop", input).shape[2:]
    if len(size) != len(spatial) or any(n > m or n < 1 for n, m in zip(size, spatial)):
        raise ValueError(
            f"[center_crop] size must be from 1 to the input's {tuple(spatial)} on each axis "
            f"behind (N, C). Got {size}."
        )
    if size == tuple(spatial):
        return input
    cut: list[int] = []
    for n, m in zip(reversed(size), reversed(spatial)):
        low = (m - n) // 2
        cut += [-low, -(m - n - low)]
    return pad(input, cut)


def soft_argmax(input: Tensor) -> Tensor:
    """Where the weight of each map of (N, C, ...) lies: (N, C, axes), in [0, 1] along each axis.

    The map's softmax is taken as a distribution over pixel centres; pixel i of n lies at
    (i + 0.5) / n (Levine et al., "End-to-end training of deep visuomotor policies", 2016).
    """
    shape = array_of("soft_argmax", input).shape
    if len(shape) < 3:
        raise ValueError(
            f"[soft_argmax] The input must be (N, C, ...) with 1 to 3 axes more. Got {shape}."
        )
    weights = softmax(input.flatten(2), 2).reshape(shape)
    positions = []
    for axis, n in enumerate(shape[2:]):
        view = [1] * len(shape)
        view[2 + axis] = n
        at = tensor(((np.arange(n) + 0.5) / n).reshape(view), dtype=input.dtype).to(input.device)
        positions.append((weights * at).sum(tuple(range(2, len(shape)))))
    return stack(positions, 2)
