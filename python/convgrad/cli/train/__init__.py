"""``convgrad train <task>``: trains a network and leaves a run folder.

A family of tasks is a module with

TASKS                            the tasks' names
add_parsers(names)               adds one parser per task
build(config)                    the network that a run's config.json describes
evaluate(args, config, model)    prints how good it is on its test data (args.data: where from)
predict(args, config, model)     prints or writes what it says about args.files; optional
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.train import cade, classification, filters, tissue, tumour

__all__ = ["add_parser", "open_run"]

FAMILIES = (classification, tissue, tumour, cade, filters)


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


def open_run(path: Path) -> tuple[dict[str, Any], Any, Any]:
    """(configuration, family of tasks, trained network in evaluation mode) of a run folder."""
    config, weights = run_folder.read(path)
    families = {name: family for family in FAMILIES for name in family.TASKS}
    try:
        family = families[config["task"]]
        model = family.build(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path / run_folder.CONFIG}' is damaged: {error!r}.") from None
    try:
        model.load_state_dict(weights)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"'{path / run_folder.WEIGHTS}' does not hold this run's weights: {error}"
        ) from None
    return config, family, model.eval()
