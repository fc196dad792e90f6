"""``convgrad train <task>``: trains a network and leaves a run folder."""

from __future__ import annotations

from typing import Any

from convgrad.cli.train import classification

__all__ = ["add_parser"]

# A family of tasks is a module with add_parsers(names), which adds one parser per task.
FAMILIES = (classification,)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a network on a task",
        description="Trains a network, measures it once on the test data, and leaves a run "
        "folder with weights, metrics, configuration and pictures.",
    )
    names = parser.add_subparsers(metavar="TASK", required=True)
    for family in FAMILIES:
        family.add_parsers(names)
