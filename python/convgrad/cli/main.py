"""Parses the command line, runs a command, turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import convgrad
from convgrad.cli import bench, evaluate, info, parity, predict, train
from convgrad.cli.errors import UserError
from convgrad.extras import MissingPackageError

__all__ = ["main"]

# A command is a module with add_parser(subparsers), which sets run=function(args) -> exit code.
# The packages of the extras are imported when they are needed, not for `convgrad --help`.
COMMANDS = (train, evaluate, predict, bench, info, parity)

EXIT_CODES = (
    "Exit codes: 0 it worked; 1 it failed, and the last line says why; 2 the command line is "
    "wrong; 130 interrupted."
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="convgrad",
        description="Trains convolutional networks on CPUs.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"convgrad {convgrad.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (argparse itself exits with 2 for a wrong usage)."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("convgrad: interrupted", file=sys.stderr)
        return 130
    except (UserError, MissingPackageError, OSError, FloatingPointError) as error:
        print(f"convgrad: {error}", file=sys.stderr)
        return 1
