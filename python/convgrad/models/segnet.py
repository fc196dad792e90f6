"""SegNet, which upsamples by where each maximum came from (Badrinarayanan, Kendall and Cipolla,
"SegNet", 2017), the pixel classifier of Liu et al., "Deep convolutional neural network and 3D
deformable approach for tissue segmentation in musculoskeletal magnetic resonance imaging", 2018."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from convgrad import nn
from convgrad.tensor import Tensor

__all__ = ["SegNet"]

# Convolutions of each stage, as in VGG-16.
WIDTHS, COUNTS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)


def _convolutions(channels: Sequence[int], last_plain: bool = False) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, normalised and rectified; the last
    one is left as it is if ``last_plain``."""
    layers: list[nn.Module] = []
    for i, (c, k) in enumerate(pairwise(channels)):
        layers.append(nn.Conv2d(c, k, 3, padding=1))
        if not (last_plain and i == len(channels) - 2):
            layers += [nn.BatchNorm2d(k), nn.ReLU()]
    return nn.Sequential(*layers)


class SegNet(nn.Module):
    """(N, channels, H, W) -> (N, classes, H, W), for any size: 29,449,355 parameters for 3 channels
    and 11 classes.

    Poolings round sizes up (360x480 becomes 23x30 and 12x15), and unpooling restores them.

    Args:
        channels: of the input.
        classes: of the output.
        widths: channels of each stage; VGG-16's by default.
    """

    def __init__(
        self, channels: int = 3, classes: int = 11, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            [_convolutions([c, *[k] * n]) for c, k, n in zip(inputs, widths, COUNTS)]
        )
        outputs = [classes, *widths[:-1]]
        stages = list(zip(outputs, widths, COUNTS))[::-1]
        self.decoder = nn.ModuleList(
            [
                _convolutions([*[k] * n, out], last_plain=i == len(stages) - 1)
                for i, (out, k, n) in enumerate(stages)
            ]
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for stage in self.encoder:
            y = stage(x)
            x, indices = self.pool(y)
            pooled.append((indices, y.shape[2:]))
        for stage in self.decoder:
            indices, size = pooled.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return x
