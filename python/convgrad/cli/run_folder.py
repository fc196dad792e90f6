"""What a training run leaves behind, and how to open it again.

config.json            task, model and every setting, version and instruction set
metrics.jsonl          a row per epoch; the last row is the test
model.safetensors      the weights after the last epoch
learning_curves.png    loss and metrics by epoch
and further pictures of the task, such as confusion_matrix.png of a classifier's test images, or
filters.png and feature_maps.png of a convolutional one's first layer, and heat_maps.png of its last
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from convgrad import io
from convgrad.cli.errors import UserError

__all__ = ["CONFIG", "METRICS", "WEIGHTS", "create", "read"]

CONFIG, METRICS, WEIGHTS = "config.json", "metrics.jsonl", "model.safetensors"


def create(path: Path | None, name: str) -> Path:
    """A new run folder: ``path``, or runs/<name>-<time>."""
    if path is None:
        stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        candidates = [Path("runs", stamp)] + [Path("runs", f"{stamp}-{i}") for i in range(2, 100)]
        path = next(candidate for candidate in candidates if not candidate.exists())
    if (path / CONFIG).exists():
        raise UserError(f"'{path}' already holds a run: give another --out, or remove it first.")
    if path.exists() and not path.is_dir():
        raise UserError(f"--out must be a folder. Got the file '{path}'.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, weights) of a run folder; UserError if it is not a finished run."""
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(
                f"'{path}' is not a finished run: it has no {name}. "
                "A run folder comes from `convgrad train`."
            )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path / CONFIG}' is damaged: {error!r}.") from None
    try:
        return config, io.load(path / WEIGHTS)
    except ValueError as error:
        raise UserError(f"'{path / WEIGHTS}' does not hold this run's weights: {error}") from None
