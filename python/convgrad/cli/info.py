"""``convgrad info``: what this installation is and runs on."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

import numpy as np

import convgrad
from convgrad import _cpu, backend

__all__ = ["add_parser", "run"]

OPTIONAL = ("scikit-learn", "matplotlib", "tqdm", "safetensors", "pillow", "torch")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="show version, instruction set, threads, GPU",
        description="Shows what this installation is and what it runs on.",
    )
    parser.set_defaults(run=run)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run(args: argparse.Namespace) -> int:
    """Prints a table."""
    rows = {
        "convgrad": convgrad.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "instruction set": f"{_cpu.isa_name()} (of {', '.join(_cpu.isa_names())}; "
        "CONVGRAD_ISA chooses)",
        "threads": f"{convgrad.get_num_threads()} (CONVGRAD_NUM_THREADS chooses)",
        "gpu": backend.cuda_status(),
        "numpy": np.__version__,
        **{package: _version(package) for package in OPTIONAL},
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    return 0
