"""LeNet-5 as it is trained today: ReLU and max pooling (LeCun, Bottou, Bengio and Haffner,
"Gradient-based learning applied to document recognition", 1998)."""

from __future__ import annotations

from convgrad import nn

__all__ = ["LeNet5"]


class LeNet5(nn.Sequential):
    """(N, channels, 28, 28) -> (N, classes): 61,706 parameters for 1 channel and 10 classes."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, classes),
        )  # fmt: skip
