"""Brain tumour segmentation by patches (Havaei et al., "Brain tumor segmentation with deep neural
networks", Medical Image Analysis 2017, arXiv:1505.03540).

Every convolution and pooling is "valid" and of stride 1, so a network that maps a 33x33 patch to
the class of its centre maps a whole slice to the classes of all its pixels, 16 from the border.
The paper's parameter counts are those of ``pieces=1, bias=False``. ``width`` multiplies the paper's
numbers of maps.
"""

from __future__ import annotations

from convgrad import nn
from convgrad.functional import center_crop, softmax
from convgrad.functional.shape import cat
from convgrad.tensor import Tensor

__all__ = [
    "GlobalPathCNN",
    "InputCascadeCNN",
    "LocalCascadeCNN",
    "LocalPathCNN",
    "MFCascadeCNN",
    "TwoPathCNN",
]

LOCAL, GLOBAL = 64, 160  # channels of the two paths
HEAD = 21  # size of the last convolution, and of the maps that it covers for one patch
MARGIN = 16  # pixels on each side that a TwoPathCNN needs around the one it classifies


class _Block(nn.Sequential):
    """Convolution, maxout over ``pieces`` maps per output, and for pool > 1 pooling of stride 1."""

    def __init__(
        self, channels: int, out: int, kernel: int, pool: int, pieces: int, bias: bool
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, out * pieces, kernel, bias=bias),
            nn.Maxout(pieces),
        ]
        if pool > 1:
            layers.append(nn.MaxPool2d(pool, stride=1))
        super().__init__(*layers)


class _Paths(nn.Module):
    """A TwoPathCNN into which ``early`` channels more come after the first local block and ``late``
    ones before the last convolution."""

    has_local = has_wide = True

    def __init__(
        self,
        channels: int = 4,
        classes: int = 5,
        pieces: int = 2,
        bias: bool = True,
        width: float = 1.0,
        *,
        early: int = 0,
        late: int = 0,
    ) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"[{type(self).__name__}] width must be > 0. Got {width}.")
        local_maps, wide_maps = (max(1, round(maps * width)) for maps in (LOCAL, GLOBAL))
        self.local1 = self.local2 = self.wide = None
        if self.has_local:
            self.local1 = _Block(channels, local_maps, 7, 4, pieces, bias)
            self.local2 = _Block(local_maps + early, local_maps, 3, 2, pieces, bias)
        if self.has_wide:
            self.wide = _Block(channels, wide_maps, 13, 1, pieces, bias)
        features = local_maps * self.has_local + wide_maps * self.has_wide + late
        self.head = nn.Conv2d(features, classes, HEAD, bias=bias)
        self._initialise()

    def _initialise(self) -> None:
        """Kernels uniform in +-0.005, biases 0, as the paper does."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -0.005, 0.005)

    def forward(self, x: Tensor, early: Tensor | None = None, late: Tensor | None = None) -> Tensor:
        maps = []
        if self.local1 is not None and self.local2 is not None:
            y = self.local1(x)
            maps.append(self.local2(y if early is None else cat([y, early], 1)))
        if self.wide is not None:
            maps.append(self.wide(x))
        if late is not None:
            maps.append(late)
        return self.head(maps[0] if len(maps) == 1 else cat(maps, 1))


class TwoPathCNN(_Paths):
    """(N, channels, H, W) -> (N, classes, H - 32, W - 32): a local path of 7x7 and 3x3
    convolutions beside a path of one 13x13 convolution. 651,488 weights as the paper counts."""


class LocalPathCNN(_Paths):
    """:class:`TwoPathCNN` without its wide path."""

    has_wide = False


class GlobalPathCNN(_Paths):
    """:class:`TwoPathCNN` without its local path."""

    has_local = False


class _Cascade(nn.Module):
    """A second network that also sees what a first one, already trained, says of a larger patch.

    ``first`` gets no gradients: freeze it by ``requires_grad_(False)`` and train the rest.
    """

    joins = ""  # where the first one's probabilities come in: "channels", "early" or "late"

    def __init__(
        self,
        first: nn.Module,
        channels: int = 4,
        classes: int = 5,
        pieces: int = 2,
        bias: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.first = first
        more = {"channels": 0, "early": 0, "late": 0, self.joins: classes}
        self.second = _Paths(
            channels + more["channels"],
            classes,
            pieces,
            bias,
            width,
            early=more["early"],
            late=more["late"],
        )

    def opinion(self, x: Tensor) -> Tensor:
        """The first network's probabilities (N, classes, H - 32, W - 32)."""
        return softmax(self.first(x), 1)


class InputCascadeCNN(_Cascade):
    """(N, channels, H, W) -> (N, classes, H - 64, W - 64): probabilities join the image itself.

    The second network has 802,368 weights as the paper counts.
    """

    joins = "channels"

    def joined(self, x: Tensor) -> Tensor:
        """What the second network sees, (N, channels + classes, H - 32, W - 32)."""
        said = self.opinion(x)
        return cat([center_crop(x, said.shape[2:]), said], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.joined(x))


class LocalCascadeCNN(_Cascade):
    """(N, channels, H, W) -> (N, classes, H - 55, W - 55): probabilities join the first local
    block's maps. 654,368 weights as the paper counts. 56x56 is its patch."""

    joins = "early"

    def forward(self, x: Tensor) -> Tensor:
        said = self.opinion(x)
        # A block of 7x7 and pool 4 makes maps 9 smaller: 33x33 -> 24x24.
        size = [n + 9 for n in said.shape[2:]]
        return self.second(center_crop(x, size), early=said)


class MFCascadeCNN(_Cascade):
    """(N, channels, H, W) -> (N, classes, H - 52, W - 52): probabilities join the maps before the
    last convolution, like a mean field. 662,513 weights as the paper counts. 53x53 is its patch."""

    joins = "late"

    def forward(self, x: Tensor) -> Tensor:
        said = self.opinion(x)
        size = [n + 12 for n in said.shape[2:]]  # 33x33 -> 21x21
        return self.second(center_crop(x, size), late=said)
