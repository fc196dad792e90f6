"""Types of command-line values: what they accept and how they say no."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

import convgrad
from convgrad import backend
from convgrad.cli.errors import UserError

__all__ = [
    "add_machine_options",
    "apply_machine_options",
    "non_negative_float",
    "non_negative_int",
    "positive_float",
    "positive_int",
]

Number = TypeVar("Number", int, float)


def positive_int(text: str) -> int:
    return _number(text, int, "a whole number above 0", lambda value: value > 0)


def non_negative_int(text: str) -> int:
    return _number(text, int, "a whole number of 0 or more", lambda value: value >= 0)


def positive_float(text: str) -> float:
    return _number(text, float, "a number above 0", lambda value: value > 0)


def non_negative_float(text: str) -> float:
    return _number(text, float, "a number of 0 or more", lambda value: value >= 0)


def _number(
    text: str, kind: Callable[[str], Number], rule: str, accepts: Callable[[Number], bool]
) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not (math.isfinite(value) and accepts(value)):
        raise argparse.ArgumentTypeError(f"must be {rule}, got {text!r}")
    return value


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--threads and --device."""
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads to use (default: the processors this process may use); the results are the "
        "same bits for any number",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def apply_machine_options(args: argparse.Namespace) -> None:
    """Sets the threads; UserError for a device that is not there."""
    try:
        backend.by_device(args.device)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    if args.threads is not None:
        convgrad.set_num_threads(args.threads)
