"""MNIST and its relatives (Fashion-MNIST, KMNIST, EMNIST digits): 28x28 images in IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from convgrad.tasks.images import Images, Settings, Splits, split_off

__all__ = ["AUGMENT", "AVERAGED", "CLASSES", "DEFAULTS", "NEEDS_DATA", "SHAPE", "load", "read_idx"]

SHAPE = (28, 28)
CLASSES = tuple("0123456789")
AVERAGED = False  # see images.network
NEEDS_DATA = True

DEFAULTS = {
    "softmax": Settings(epochs=10, batch_size=64, lr=0.1),
    "mlp": Settings(epochs=10, batch_size=64, lr=0.1),
    "cnn": Settings(epochs=5, batch_size=64, lr=0.05, l2=2.5e-4),
}
AUGMENT = {"shift": 2.0, "degrees": 10.0, "scale": 0.1}

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def load(folder: Path | None = None, seed: int = 0) -> Splits:
    """Training, validation (a twelfth of the training files, chosen by ``seed``), and test images.

    ``folder`` holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each plain or with .gz. FileNotFoundError lists what is missing,
    ValueError says what is damaged.
    """
    if folder is None:
        raise ValueError("[mnist] The folder of the IDX files must be given. Got none.")
    paths = {
        (part, kind): _find(folder, f"{part}-{kind}-ubyte")
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }
    missing = [f"{part}-{kind}-ubyte[.gz]" for (part, kind), path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"[mnist] The folder '{folder}' must hold the IDX files. "
            f"{'It does not exist; l' if not folder.is_dir() else 'L'}ooked for "
            f"{', '.join(missing)}."
        )

    def images(part: str) -> Images:
        return _images(paths[part, "images-idx3"], paths[part, "labels-idx1"])

    train = images("train")
    training, validation = split_off(train, max(1, len(train.labels) // 12), seed)
    return Splits(training, validation, lambda: images("t10k"))


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _images(image_path: Path | None, label_path: Path | None) -> Images:
    assert image_path is not None and label_path is not None
    pixels, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != SHAPE:
        raise ValueError(
            f"[mnist] {image_path} must hold images of {SHAPE} bytes. Got {pixels.shape[1:]} "
            f"{pixels.dtype}."
        )
    if len(pixels) != len(labels):
        raise ValueError(
            f"[mnist] {image_path} and {label_path} must be of one length. Got {len(pixels)} "
            f"images and {len(labels)} labels."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(
            f"[mnist] Labels must be in 0..{len(CLASSES) - 1}. Got {labels.min()} to "
            f"{labels.max()} in {label_path}."
        )
    return Images(pixels[:, None].astype(np.float32) / 255, labels.astype(np.int64))


def read_idx(path: Path, rank: int | None = None) -> np.ndarray:
    """An IDX file, gzipped or not, as an array of its shape and type.

    The format (yann.lecun.com/exdb/mnist): two zero bytes, the type, the rank; the sizes as
    big-endian 32-bit numbers; the values, big-endian. ValueError if the file is anything else.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"[read_idx] {path} must be a whole gzip file. Got: {error}."
            ) from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(
            "[read_idx] An IDX file starts with 00 00, a type of "
            f"{', '.join(f'{t:02x}' for t in IDX_TYPES)}, and the rank. Got "
            f"{data[:4].hex(' ') or 'nothing'} in {path}."
        )
    dtype, ndim = np.dtype(IDX_TYPES[data[2]]), data[3]
    if rank is not None and ndim != rank:
        raise ValueError(f"[read_idx] {path} must have rank {rank}. Got {ndim} (wrong file?).")
    start = 4 + 4 * ndim
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4", len(data[4:start]) // 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(shape) != ndim or len(data) != expected:
        raise ValueError(
            f"[read_idx] {path} must have {expected} bytes for shape {shape} "
            f"{dtype.name}. Got {len(data)}: it is truncated or damaged."
        )
    values = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
