"""A network in the style of VGG: pairs of 3x3 convolutions between poolings (Simonyan and
Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from convgrad import nn

__all__ = ["VGG"]


class VGG(nn.Sequential):
    """(N, channels, size, size) -> (N, classes); each of ``widths`` halves the size, rounding down.

    ValueError if nothing is left of ``size``.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        size: int = 32,
        widths: Sequence[int] = (32, 64, 128),
    ) -> None:
        layers: list[nn.Module] = []
        left = size
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            left //= 2
        if left < 1:
            raise ValueError(f"[VGG] size must be at least {2 ** len(widths)}. Got {size}.")
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * left * left, classes))
