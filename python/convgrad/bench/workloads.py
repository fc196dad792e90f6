"""The seven training workloads, written once for both libraries.

Every network is built from ``nn`` and ``cat``: ``torch.nn, torch.cat`` or ``convgrad.nn,
convgrad.cat``. A workload is one training step on one fixed batch: forward, cross-entropy,
backward, SGD with momentum 0.9, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A network, the shape of its batch, and what it is trained to."""

    name: str
    build: Callable[[Any, Callable[..., Any]], Any]
    input_shape: tuple[int, ...]
    classes: int
    dense: bool = False  # a class per pixel instead of one per sample
    lr: float = 0.01
    # A batch on which float32's error flips few ReLUs; race.check says what that means.
    seed: int = 0
    signal: float = 2.0  # size of the class's pattern beside the noise's 1

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """x (N, C, ...) float32 and int64 classes: a pattern per class under noise.

        So a few steps show whether a network learns.
        """
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal(self.input_shape).astype(np.float32)
        if self.dense:
            # By a pixel's value; most are background, as in an image to segment.
            edges = np.quantile(x, np.linspace(0.7, 1, self.classes)[:-1])
            return x, np.digitize(x[:, 0], edges).astype(np.int64)
        classes = rng.integers(0, self.classes, self.input_shape[0])
        patterns = rng.standard_normal((self.classes, *self.input_shape[1:])).astype(np.float32)
        return x + self.signal * patterns[classes], classes


def conv1d_150(nn: Any, cat: Any) -> Any:
    return nn.Sequential(
        nn.Conv1d(1, 16, 3), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 3), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(1152, 5),
    )  # fmt: skip


def mlp(nn: Any, cat: Any) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def lenet(nn: Any, cat: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def vgg_cifar(nn: Any, cat: Any) -> Any:
    layers: list[Any] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def resnet20(nn: Any, cat: Any) -> Any:
    class Block(nn.Module):  # type: ignore[misc]  # either library's
        def __init__(self, c: int, k: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(c, k, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(k)
            self.conv2 = nn.Conv2d(k, k, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(k)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
            self.shortcut = (
                nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))
                if stride > 1 or c != k
                else nn.Identity()
            )

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
            return self.relu2(y + self.shortcut(x))

    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for block in range(3):
            layers.append(Block(channels, width, 2 if width > 16 and block == 0 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def unet(dim: int, base: int, norm: bool = False) -> Callable[[Any, Any], Any]:
    """U-Net with three resolutions, transposed-convolution upsampling and concatenated skips;
    ``norm``: batch normalisation behind each 3x3 convolution, which then has no bias."""

    def build(nn: Any, cat: Any) -> Any:
        conv = getattr(nn, f"Conv{dim}d")
        pool = getattr(nn, f"MaxPool{dim}d")
        up = getattr(nn, f"ConvTranspose{dim}d")
        batch_norm = getattr(nn, f"BatchNorm{dim}d")

        def double(c: int, k: int) -> Any:
            layers: list[Any] = []
            for channels in (c, k):
                layers.append(conv(channels, k, 3, padding=1, bias=not norm))
                layers += [batch_norm(k), nn.ReLU()] if norm else [nn.ReLU()]
            return nn.Sequential(*layers)

        class UNet(nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.down1, self.down2 = double(1, base), double(base, 2 * base)
                self.middle = double(2 * base, 4 * base)
                self.pool1, self.pool2 = pool(2), pool(2)
                self.up2 = up(4 * base, 2 * base, 2, stride=2)
                self.up1 = up(2 * base, base, 2, stride=2)
                self.merge2, self.merge1 = double(4 * base, 2 * base), double(2 * base, base)
                self.head = conv(base, 4, 1)

            def forward(self, x: Any) -> Any:
                a = self.down1(x)
                b = self.down2(self.pool1(a))
                c = self.middle(self.pool2(b))
                b = self.merge2(cat([self.up2(c), b], 1))
                a = self.merge1(cat([self.up1(b), a], 1))
                return self.head(a)

        return UNet()

    return build


WORKLOADS = {
    w.name: w
    for w in (
        Workload("conv1d-150", conv1d_150, (128, 1, 150), 5, lr=0.05, seed=1),
        Workload("mlp", mlp, (64, 1, 28, 28), 10),
        Workload("lenet", lenet, (64, 1, 28, 28), 10, lr=0.1),
        Workload("vgg-cifar", vgg_cifar, (64, 3, 32, 32), 10, lr=0.03, seed=6, signal=8.0),
        Workload("resnet20", resnet20, (64, 3, 32, 32), 10, lr=0.02, seed=1),
        Workload("unet2d", unet(2, 16), (4, 1, 128, 128), 4, dense=True, lr=0.2),
        Workload("unet3d", unet(3, 8), (1, 1, 48, 48, 48), 4, dense=True, lr=0.2),
    )
}
