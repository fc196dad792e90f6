"""``convgrad evaluate RUN``: a trained network on its test images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from convgrad import functional, metrics, tensor, train
from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.options import add_machine_options, apply_machine_options
from convgrad.tasks.images import Images

__all__ = ["add_parser", "measure", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a trained network on its test images",
        description="Reads a run folder and measures its network on the task's test images: "
        "precision and recall of each class, loss, accuracy.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the data files (default: the one it was trained on)",
    )
    add_machine_options(parser)
    parser.set_defaults(run=run)


def measure(model: Any, test: Images, classes: int) -> tuple[dict[str, float], np.ndarray]:
    """({'loss', 'accuracy'}, confusion matrix) of a model on images."""
    logits = train.predict(model, test.images)
    loss = functional.cross_entropy(tensor(logits), tensor(test.labels))
    row = {"loss": float(loss.item()), "accuracy": metrics.accuracy(logits, test.labels)}
    return row, metrics.confusion_matrix(test.labels, logits.argmax(1), classes)


def run(args: argparse.Namespace) -> int:
    """Prints a table; the last line is the test accuracy."""
    apply_machine_options(args)
    config, task, model = run_folder.open_run(args.folder)
    model.to(args.device)
    data = args.data or (config.get("data") and Path(config["data"]))
    try:
        test = task.load(data, config["seed"]).test()
    except ValueError as error:
        raise UserError(str(error)) from None
    row, matrix = measure(model, test, len(task.CLASSES))
    precision, recall = metrics.precision_recall(matrix)
    print("class  images  precision  recall")
    for i, name in enumerate(task.CLASSES):
        print(f"{name:>5}  {matrix[i].sum():6}  {precision[i]:9.4f}  {recall[i]:6.4f}")
    print(f"test loss {row['loss']:.4f}")
    print(f"test accuracy {row['accuracy']:.4f}")
    return 0
