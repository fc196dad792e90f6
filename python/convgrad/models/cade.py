"""Networks in the style of "CADe" (Banerjee et al., 2018, arXiv:1806.07589): one says whether a
slice shows a tumour, the other puts a box around it. The paper's own layer tables are not public;
these are not its networks."""

from __future__ import annotations

from convgrad import nn
from convgrad.functional import adaptive_max_pool2d, soft_argmax
from convgrad.functional.shape import stack
from convgrad.tensor import Tensor

__all__ = ["BoxCNN", "CADe", "SliceCNN"]

WIDTHS = (16, 32, 64)


class SliceCNN(nn.Module):
    """(N, channels, H, W) -> (N, classes): what is there anywhere, by global max pooling.

    ``trunk`` are three times a 3x3 convolution, normalised, rectified and pooled, to (N, 64, H/8,
    W/8); ``classify`` is the linear layer behind the global pooling, whose weights also make heat
    maps (``explain.class_activation_maps``). 24,082 parameters for 4 channels and 2 classes.
    """

    def __init__(self, channels: int = 4, classes: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.classify = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(adaptive_max_pool2d(self.trunk(x), 1).flatten(1))


class BoxCNN(nn.Module):
    """(N, channels, H, W) -> (N, 4): a box's centre and size (y, x, h, w), as fractions of H and W.

    Each side of the box has a heat map of its own, at a quarter of the resolution, that sums to 1;
    the side is where the map's weight lies on average (soft-argmax). Before training a box may have
    a size below 0. 42,532 parameters for 4 channels.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(channels, 16),
            nn.MaxPool2d(2),
            *_convolution(16, 32),
            nn.MaxPool2d(2),
            *(layer for _ in range(4) for layer in _convolution(32, 32)),
        )
        self.heat = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        place = soft_argmax(self.heat(self.trunk(x)))  # (N, 4 maps, 2 axes)
        top, bottom, left, right = place[:, 0, 0], place[:, 1, 0], place[:, 2, 1], place[:, 3, 1]
        return stack([(top + bottom) / 2, (left + right) / 2, bottom - top, right - left], 1)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    # No bias: the normalisation would subtract it again.
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class CADe(nn.Module):
    """Both: (N, channels, H, W) -> (logits of normal and abnormal (N, 2), boxes (N, 4)).

    Each is trained on its own; a box means something only where the slice is abnormal.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.slices = SliceCNN(channels)
        self.boxes = BoxCNN(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.slices(x), self.boxes(x)
