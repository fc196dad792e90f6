"""``convgrad predict RUN IMAGE...``: what a trained network sees in images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from convgrad import train
from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.options import add_machine_options, apply_machine_options
from convgrad.extras import require

__all__ = ["add_parser", "read_image", "run"]

FORMATS = """An image file (PNG, JPEG, ... whatever pillow reads) is made grey, resized to the size
that the network was trained on, and scaled to [0, 1]. A .npy file holds one image (H, W), uint8 in
0..255 or float in [0, 1]; it is resized too. The networks learned bright strokes on a dark ground:
for dark ink on bright paper add --invert."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="classify images with a trained network",
        description="Prints a line per image: its path, the class, the class's probability. "
        + FORMATS.replace("\n", " "),
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image or .npy file")
    parser.add_argument("--invert", action="store_true", help="the images are dark on bright")
    add_machine_options(parser)
    parser.set_defaults(run=run)


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


def run(args: argparse.Namespace) -> int:
    """Prints path, class and probability of each image."""
    apply_machine_options(args)
    _, task, model = run_folder.open_run(args.folder)
    model.to(args.device)
    pixels = np.stack([read_image(path, task.SHAPE, args.invert) for path in args.images])
    logits = train.predict(model, pixels[:, None])
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    for path, row in zip(args.images, probabilities):
        print(f"{path}  {task.CLASSES[row.argmax()]}  {row.max():.4f}")
    return 0
