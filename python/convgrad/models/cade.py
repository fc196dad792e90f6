"""Two small networks in the style of "CADe" (Banerjee et al., 2018, arXiv:1806.07589): one says
whether a slice shows a tumour, the other puts a box around it. The paper's own layer tables are not
public; these are not its networks."""

from __future__ import annotations

from convgrad import nn
from convgrad.functional import adaptive_max_pool2d, sigmoid, soft_argmax, softmax, tanh
from convgrad.functional.shape import cat
from convgrad.tensor import Tensor

__all__ = ["BoxCNN", "SliceCNN"]

WIDTHS = (16, 32, 64)


def _trunk(channels: int) -> nn.Sequential:
    """3x3 convolutions, normalised, rectified and pooled: (N, channels, H, W) -> (N, 64, H/8,
    W/8)."""
    layers: list[nn.Module] = []
    for width in WIDTHS:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = width
    return nn.Sequential(*layers)


class SliceCNN(nn.Module):
    """(N, channels, H, W) -> (N, classes): what is there anywhere, by global max pooling.

    24,082 parameters for 4 channels and 2 classes.
    """

    def __init__(self, channels: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.trunk = _trunk(channels)
        self.classify = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(adaptive_max_pool2d(self.trunk(x), 1).flatten(1))


class BoxCNN(nn.Module):
    """(N, channels, H, W) -> (N, 4): a box's centre and size (y, x, h, w), as fractions of H and W.

    The centre is the mean position under a heat map that sums to 1 (soft-argmax), corrected a
    little by what the features under the map say; they also give the size. 24,277 parameters for 4
    channels.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.trunk = _trunk(channels)
        self.heat = nn.Conv2d(WIDTHS[-1], 1, 1)
        self.measure = nn.Linear(WIDTHS[-1], 4)  # shift of the centre, and size

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        heat = self.heat(features)  # (N, 1, h, w)
        weights = softmax(heat.flatten(1), 1)  # (N, h w)
        seen = (features.flatten(2) * weights.unsqueeze(1)).sum(2)  # (N, 64)
        measured = self.measure(seen)
        shift, size = tanh(measured[:, :2]) * 0.1, sigmoid(measured[:, 2:])
        return cat([soft_argmax(heat).squeeze(1) + shift, size], 1)
