"""The fully convolutional network for cardiac segmentation (Tran, "A fully convolutional neural
network for cardiac segmentation in short-axis MRI", 2016, arXiv:1604.00494; layers as in the
author's own code)."""

from __future__ import annotations

from convgrad import nn
from convgrad.functional import center_crop, pad
from convgrad.tensor import Tensor

__all__ = ["CardiacFCN"]

PADDING = 5  # around the image, for what the "valid" poolings cut off
# Mean-variance normalisation per sample and channel. The author adds 1e-6 to the standard
# deviation; here as much is added to the variance as makes no difference beside it.
MVN_EPS = 1e-12


def _stage(channels: int, width: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.InstanceNorm2d(width, eps=MVN_EPS),
        ]
        channels = width
    return nn.Sequential(*layers)


class CardiacFCN(nn.Module):
    """(N, channels, H, W) -> (N, classes, H, W): 10,917,024 parameters for 1 channel and 1 class.

    A 100x100 image is 110 with its border, then 54, 26 and 12 pixels wide, and 25, 51 and 103 on
    the way up, where the scores of each resolution are averaged.
    """

    def __init__(self, channels: int = 1, classes: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        self.normalise = nn.InstanceNorm2d(channels, eps=MVN_EPS)
        self.stage1 = _stage(channels, 64, 3)
        self.stage2 = _stage(64, 128, 4)
        self.stage3 = _stage(128, 256, 4)
        self.stage4 = _stage(256, 512, 4)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.score15 = nn.Conv2d(512, classes, 1)
        self.score11 = nn.Conv2d(256, classes, 1)
        self.score7 = nn.Conv2d(128, classes, 1)
        self.up4, self.up3, self.up2 = (
            nn.ConvTranspose2d(classes, classes, 3, stride=2, bias=False) for _ in range(3)
        )
        self.head = nn.Conv2d(classes, classes, 1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        y = pad(self.normalise(x), (PADDING,) * 4)
        y = self.pool(self.stage1(y))
        conv7 = self.stage2(y)
        conv11 = self.stage3(self.pool(conv7))
        conv15 = self.dropout(self.stage4(self.dropout(self.pool(conv11))))
        score = self._fuse(self.up4(self.score15(conv15)), self.score11(conv11))
        score = self._fuse(self.up3(score), self.score7(conv7))
        return self.head(center_crop(self.up2(score), size))

    @staticmethod
    def _fuse(above: Tensor, skip: Tensor) -> Tensor:
        """The average of the upsampled scores and the finer ones, cropped to them."""
        return (above + center_crop(skip, above.shape[2:])) * 0.5
