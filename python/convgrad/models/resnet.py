"""ResNet for small images (He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
2016, section 4.2)."""

from __future__ import annotations

from convgrad import nn
from convgrad.tensor import Tensor

__all__ = ["ResNet20", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); a 1x1 convolution is the shortcut where
    the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet20(nn.Sequential):
    """(N, channels, H, W) -> (N, classes): 19 convolutions of 16, 32 and 64 channels, and one
    linear layer. The paper counts 0.27 million parameters (its shortcuts have none)."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        blocks: list[nn.Module] = []
        before = 16
        for width in (16, 32, 64):
            for block in range(3):
                stride = 2 if width > 16 and block == 0 else 1
                blocks.append(ResidualBlock(before, width, stride))
                before = width
        super().__init__(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip
