"""Pictures of training runs and of benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from convgrad.viz.canvas import BLUE, VERMILION, new_figure, write

__all__ = ["confusion_matrix", "learning_curves", "ratios"]


def learning_curves(
    history: Sequence[Mapping[str, float]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Loss and every metric of a history (a row per epoch, as ``train.fit`` returns) by epoch.

    A key ``k`` and its validation twin ``val_k`` share one plot; either may be missing from rows.
    """
    skipped = ("epoch", "seconds", "lr")
    names = list(dict.fromkeys(k.removeprefix("val_") for row in history for k in row))
    names = [k for k in names if k not in skipped]
    if not names:
        raise ValueError("[learning_curves] history must have a row with a loss. Got none.")
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(4.6 * columns, 3.4 * rows, title)
    epochs = [row["epoch"] for row in history]
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in panels[len(names) :]:
        spare.set_axis_off()
    for axes, name in zip(panels, names):
        for key, label, colour in (
            (name, "training", BLUE),
            (f"val_{name}", "validation", VERMILION),
        ):
            points = [(e, row[key]) for e, row in zip(epochs, history) if key in row]
            if points:
                axes.plot(*zip(*points), label=label, color=colour, marker=".", markersize=4)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    write(figure, path)


def confusion_matrix(
    matrix: np.ndarray, path: str | os.PathLike[str], classes: Sequence[str], title: str = ""
) -> None:
    """Counts, rows = true classes, columns = predicted ones."""
    size = max(4.0, 0.45 * len(classes) + 1.5)
    figure = new_figure(size, size, title)
    axes = figure.subplots()
    # Colour by the share of the row, so that rare classes are as readable as common ones.
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.5 else "black",
            )
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    write(figure, path)


def ratios(
    values: Mapping[str, float], path: str | os.PathLike[str], title: str = "", label: str = ""
) -> None:
    """Bars from top to bottom, each with its value, and a line where the ratio is 1."""
    figure = new_figure(7.2, 0.42 * len(values) + 1.2, title)
    axes = figure.subplots()
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color=BLUE)
    axes.axvline(1, color=VERMILION, linewidth=1, zorder=0)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line
    axes.bar_label(bars, fmt="%.2f", padding=3, bbox=paper)
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    write(figure, path)
