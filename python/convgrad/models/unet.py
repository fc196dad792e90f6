"""U-Net, in 2-D and 3-D (Ronneberger, Fischer and Brox, "U-Net: convolutional networks for
biomedical image segmentation", 2015; Cicek et al., "3D U-Net", 2016), with padded convolutions."""

from __future__ import annotations

from convgrad import nn
from convgrad.functional.shape import cat
from convgrad.tensor import Tensor

__all__ = ["UNet", "UNet2d", "UNet3d"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _double(spatial: int, in_channels: int, out_channels: int, norm: bool) -> nn.Sequential:
    """Two 3x3 convolutions, each normalised and rectified."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(_CONV[spatial](channels, out_channels, 3, padding=1))
        if norm:
            layers.append(_NORM[spatial](out_channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(N, channels, ...) -> (N, classes, ...), the same size.

    Args:
        spatial: 2 or 3.
        channels: of the input.
        classes: of the output.
        base: channels at full resolution; they double with each halving of the size.
        depth: number of resolutions. Every size must be a multiple of 2**(depth - 1).
        norm: whether to normalise by batch after each convolution.
    """

    def __init__(
        self,
        spatial: int,
        channels: int = 1,
        classes: int = 2,
        base: int = 16,
        depth: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth)]
        inputs = [channels, *widths]
        self.down = nn.ModuleList(
            [_double(spatial, c, k, norm) for c, k in zip(inputs, widths[:-1])]
        )
        self.pool = _POOL[spatial](2)
        self.middle = _double(spatial, inputs[depth - 1], widths[-1], norm)
        self.up = nn.ModuleList(
            [_UP[spatial](2 * k, k, 2, stride=2) for k in reversed(widths[:-1])]
        )
        self.merge = nn.ModuleList(
            [_double(spatial, 2 * k, k, norm) for k in reversed(widths[:-1])]
        )
        self.head = _CONV[spatial](base, classes, 1)
        self.multiple = 2 ** (depth - 1)

    def forward(self, x: Tensor) -> Tensor:
        if any(size % self.multiple for size in x.shape[2:]):
            raise ValueError(
                f"[UNet] Every size must be a multiple of {self.multiple}, as it is halved and "
                f"doubled again. Got input shape {x.shape}."
            )
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for up, merge in zip(self.up, self.merge):
            x = merge(cat([up(x), skips.pop()], 1))
        return self.head(x)


class UNet2d(UNet):
    """:class:`UNet` on images (N, channels, H, W)."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        base: int = 16,
        depth: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__(2, channels, classes, base, depth, norm)


class UNet3d(UNet):
    """:class:`UNet` on volumes (N, channels, D, H, W)."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        base: int = 8,
        depth: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__(3, channels, classes, base, depth, norm)
