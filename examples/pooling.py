"""Pooling's partial invariance, measured: how much feature maps change when the image moves, turns
or grows a little, by the size of the pooling window."""

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad.tasks.images import warp

WINDOWS = (1, 2, 4, 8, 32)  # 1: no pooling, 32: the whole map
CHANGES = {"shift 1 pixel": (1, 0, 0), "rotation 5 degrees": (0, 5, 0), "scale 5 %": (0, 0, 0.05)}


def pictures(n=16, size=32, seed=0):
    """Smooth random strokes in the middle of an empty image: (n, 1, size, size)."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, 1, size, size)).astype(np.float32)
    smooth = F.avg_pool2d(cg.tensor(noise), 5, stride=1, padding=2).numpy()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.where(y**2 + x**2 < (size / 3) ** 2, 5 * np.abs(smooth), 0).astype(np.float32)


def features(images, seed=1):
    """8 random 3x3 feature maps of the images, each kernel with mean 0 (an edge detector)."""
    w = np.random.default_rng(seed).standard_normal((8, 1, 3, 3)).astype(np.float32)
    w -= w.mean((2, 3), keepdims=True)
    return F.relu(F.conv2d(cg.tensor(images), cg.tensor(w), padding=1))


def relative_change(before, after, window):
    """|pooled after - pooled before| / |pooled before|, max pooling."""
    a, b = (np.asarray(F.max_pool2d(maps, window).numpy()) for maps in (before, after))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def measure():
    """{change: [relative change of the pooled maps for each window]}"""
    images = pictures()
    before = features(images)
    table = {}
    for name, (shift, degrees, scale) in CHANGES.items():
        draws = np.ones((len(images), 4)) * [1, 1, 1, 0]  # the shift goes down only
        after = features(warp(images, draws, shift, degrees, scale))
        table[name] = [relative_change(before, after, window) for window in WINDOWS]
    return table


def main():
    print("relative change of feature maps   " + "".join(f"{f'{w}x{w}':>8}" for w in WINDOWS))
    for name, row in measure().items():
        print(f"  {name:32}" + "".join(f"{value:8.3f}" for value in row))
    print(
        "Larger windows change less: invariance, but partial; and what is left says less of where."
    )


if __name__ == "__main__":
    main()
