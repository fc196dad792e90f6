"""``convgrad evaluate RUN``: a trained network on its test data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convgrad.cli import train
from convgrad.cli.options import add_machine_options, apply_machine_options

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a trained network on its test data",
        description="Reads a run folder and measures its network on the task's test data, as "
        "`convgrad train` did at the end: for a classifier precision and recall of each class, "
        "loss, accuracy.",
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


def run(args: argparse.Namespace) -> int:
    """Prints a table, as the run's family of tasks does."""
    apply_machine_options(args)
    config, family, model = train.open_run(args.folder)
    family.evaluate(args, config, model.to(args.device))
    return 0
