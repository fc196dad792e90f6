"""What the parsers and the runs of all tasks share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import convgrad
from convgrad import _cpu
from convgrad.cli import run_folder
from convgrad.cli.options import add_machine_options, non_negative_int

__all__ = ["add_run_options", "say", "timed", "write_config", "write_row"]


def add_run_options(parser: argparse.ArgumentParser, seeded: str, name: str) -> None:
    """--seed, what it is of in words; --threads, --device; --out, by default runs/``name``-TIME."""
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        metavar="N",
        help=f"of {seeded} (default: 0)",
    )
    add_machine_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"the run folder to create (default: runs/{name}-TIME)",
    )


def write_config(folder: Path, settings: dict[str, Any], model: Any) -> None:
    """config.json: the settings, and what else decides the result."""
    config = {
        **settings,
        "threads": convgrad.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "convgrad": convgrad.__version__,
        "instruction_set": _cpu.isa_name(),
    }
    (folder / run_folder.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_row(folder: Path, row: dict[str, Any]) -> None:
    """A row more at the end of metrics.jsonl."""
    with open(folder / run_folder.METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def say(line: str) -> None:
    """Prints at once: somebody may be watching a pipe."""
    print(line, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says afterwards how long the body took: '``what`` in 1.5 s'."""
    start = time.perf_counter()
    yield
    say(f"{what} in {time.perf_counter() - start:.1f} s")
