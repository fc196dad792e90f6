"""F = sigma(x * W): feature maps of a real photograph. What a CNN calls convolution is a
cross-correlation: the kernel is not flipped."""

import numpy as np

import convgrad as cg
import convgrad.functional as F

# Five 3x3 kernels: horizontal and vertical edges, diagonals, and a blob.
KERNELS = {
    "horizontal edge": [[1, 1, 1], [0, 0, 0], [-1, -1, -1]],
    "vertical edge": [[1, 0, -1], [1, 0, -1], [1, 0, -1]],
    "diagonal": [[0, 1, 1], [-1, 0, 1], [-1, -1, 0]],
    "other diagonal": [[1, 1, 0], [1, 0, -1], [0, -1, -1]],
    "blob": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
}


def cross_correlation(x, w):
    """y[i, j] = sum over a, b of w[a, b] x[i + a, j + b]."""
    rows, columns = x.shape[0] - w.shape[0] + 1, x.shape[1] - w.shape[1] + 1
    y = np.zeros((rows, columns), x.dtype)
    for a, b in np.ndindex(*w.shape):
        y += w[a, b] * x[a : a + rows, b : b + columns]
    return y


def conv2d(x, w):
    """convgrad's, of one image (H, W) and one kernel."""
    return F.conv2d(cg.tensor(x[None, None]), cg.tensor(w[None, None])).numpy()[0, 0]


def feature_maps(image):
    """K = 5 maps (1, 5, H - 2, W - 2): one layer, 5 x 9 = 45 weights, whatever the image's size."""
    kernels = np.array(list(KERNELS.values()), np.float32)[:, None]
    return F.relu(F.conv2d(cg.tensor(image[None, None]), cg.tensor(kernels)))


def main():
    from sklearn.datasets import load_sample_images

    photo = load_sample_images().images[0].mean(2).astype(np.float32)[::2, ::2] / 255
    w = np.arange(9, dtype=np.float32).reshape(3, 3)
    difference = np.abs(conv2d(photo, w) - cross_correlation(photo, w)).max()
    flipped = np.abs(conv2d(photo, w) - cross_correlation(photo, w[::-1, ::-1])).max()
    print(f"conv2d against the cross-correlation: largest difference {difference:.0e}")
    print(f"conv2d against the textbook convolution (kernel flipped): {flipped:.0e}")
    maps = feature_maps(photo)
    print(f"a photograph {photo.shape} -> {maps.shape[1]} feature maps {tuple(maps.shape[2:])}")
    for name, feature_map in zip(KERNELS, maps.numpy()[0]):
        share = (feature_map > 0.3).mean()
        print(f"  {name:16} answers (above 0.3) at {share:6.2%} of the pixels")


if __name__ == "__main__":
    main()
