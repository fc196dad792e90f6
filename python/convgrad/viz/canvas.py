"""What every picture starts from and ends in."""

from __future__ import annotations

import io
import os
import textwrap
from typing import Any

import numpy as np

from convgrad.extras import require
from convgrad.io import write_atomically

__all__ = [
    "BLUE",
    "BYTES",
    "COLOURS",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "VERMILION",
    "new_figure",
    "write",
]

# Colours that stay apart for colour-blind readers (Okabe and Ito).
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, ORANGE = "#56B4E9", "#F0E442", "#E69F00"
COLOURS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, VERMILION, BLUE)

DPI = (120, 100, 84, 70)  # the sharpest that stays within so many bytes is written
BYTES = 150_000
LETTER, LINE = 0.08, 0.2  # inches of a title


def new_figure(width: float, height: float, title: str = "") -> Any:
    """A matplotlib figure of this size in inches and as much above it as its title needs."""
    # The object interface: no display, no global state of pyplot.
    lines = _wrapped(title, max(12, int(width / LETTER)))
    figure = require("matplotlib.figure").Figure(
        figsize=(width, height + LINE * len(lines)), layout="constrained"
    )
    figure.get_layout_engine().set(hspace=0.01, wspace=0.01)
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    if lines:
        figure.suptitle("\n".join(lines), fontsize=10)
    return figure


def _wrapped(title: str, letters: int) -> list[str]:
    """Lines of at most so many letters, about equally long."""
    lines = textwrap.wrap(title, letters)
    for narrower in range(len(title) // max(len(lines), 1), letters):
        even = textwrap.wrap(title, max(narrower, 1))
        if len(even) == len(lines):
            return even
    return lines


def write(figure: Any, path: str | os.PathLike[str]) -> None:
    """The figure as a PNG file of at most 256 colours, whole or not at all."""
    for dpi in DPI:
        data = _png(figure, dpi)
        if len(data) <= BYTES:
            break
    write_atomically(path, data)


def _png(figure: Any, dpi: int) -> bytes:
    image = require("PIL.Image")
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    # Of the ways to choose 256 colours the one that keeps rare ones, such as a legend's.
    method = image.Quantize.MAXCOVERAGE
    palette = pixels.quantize(256, method=method, dither=image.Dither.NONE)
    buffer = io.BytesIO()
    palette.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
