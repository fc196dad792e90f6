"""The dense networks that the lecture starts from (ml4a, "Machine Learning for Artists": chapters
"Neural networks" and "Looking inside neural nets")."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convgrad import nn

__all__ = ["dense_classifier", "softmax_classifier"]


def softmax_classifier(shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """One layer from all pixels of (N, *shape) to the classes: 784 * 10 + 10 = 7,850 parameters.

    The rows of its weight, seen as images, are the templates that the chapter shows.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def dense_classifier(
    shape: Sequence[int] = (1, 28, 28), hidden: Sequence[int] = (15,), classes: int = 10
) -> nn.Sequential:
    """Hidden layers of sigmoid neurons between the pixels and the classes."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), nn.Sigmoid()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, classes))
