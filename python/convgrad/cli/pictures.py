"""Pictures and .npy files as input of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convgrad.cli.errors import UserError
from convgrad.extras import require

__all__ = ["read_image"]


def read_image(path: Path, shape: tuple[int, int], invert: bool = False) -> np.ndarray:
    """The image as float32 (H, W) = shape in [0, 1]; UserError if it cannot be read."""
    pixels = _read_npy(path) if path.suffix == ".npy" else _read_picture(path)
    if pixels.shape != shape:
        image = require("PIL.Image")
        size = shape[1], shape[0]  # pillow's order
        resized = image.fromarray(pixels).resize(size, image.Resampling.BILINEAR)
        pixels = np.asarray(resized, np.float32)
    return 1 - pixels if invert else pixels


def _read_npy(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a .npy file of numbers: {error}") from None
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or not pixels.size:
        got = getattr(pixels, "shape", type(pixels).__name__)
        raise UserError(f"'{path}' must hold one grey image (H, W). Got {got}.")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if pixels.dtype.kind != "f":
        raise UserError(f"'{path}' must hold uint8 or floats. Got {pixels.dtype}.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"'{path}' holds floats, which must be in [0, 1]. Got {pixels.min():g} to "
            f"{pixels.max():g}."
        )
    return pixels.astype(np.float32)


def _read_picture(path: Path) -> np.ndarray:
    image = require("PIL.Image")
    try:
        with image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # 16 bits per pixel
                return np.asarray(picture, np.float32) / 65535
            return np.asarray(picture.convert("L"), np.float32) / 255
    except image.UnidentifiedImageError:
        raise UserError(f"'{path}' is not an image that pillow can read.") from None
