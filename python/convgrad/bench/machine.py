"""The machine: what it is, and its ceilings of arithmetic and of copying."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import _cpu
from convgrad.bench.trainers import PEERS

__all__ = ["about", "ceilings", "copy_bandwidth", "fma_peak"]

COPY_MEGABYTES = (1, 8, 64)  # read and written together: in L2, in L3, in memory


def about() -> dict[str, Any]:
    """What figures are measured on and with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "convgrad": convgrad.__version__,
        "commit": _commit(),
        "isa": _cpu.isa_name(),
        "threads": convgrad.get_num_threads(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "peers": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    for package in dict.fromkeys(peer.package for peer in PEERS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _commit() -> str | None:
    """The checkout's commit, or None for an installed package."""
    root = Path(convgrad.__file__).resolve().parents[2]
    if not (root / "csrc" / "ops.h").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fma_peak(seconds: float = 0.1) -> float:
    """FLOP/s of multiply-adds on registers alone, float32, by all threads; the best of many runs.

    The best, not the median: it is a ceiling.
    """
    y = np.empty(4 * convgrad.get_num_threads(), np.float32)  # work items
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        start = time.perf_counter()
        flops = _cpu.fma_rounds(y, 2000)
        best = max(best, flops / (time.perf_counter() - start))
    return best


def copy_bandwidth(megabytes: float, seconds: float = 0.1) -> float:
    """Bytes per second read and written by a copy of two arrays of ``megabytes`` together."""
    x = np.ones(max(1, int(megabytes * 1e6 / 8)), np.float32)
    y = np.ones_like(x)
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        start = time.perf_counter()
        _cpu.copy_dense(x, y)
        best = max(best, 2 * x.nbytes / (time.perf_counter() - start))
    return best


def ceilings(seconds: float = 0.1) -> dict[str, Any]:
    """{"fma_gflops", "copy_gbytes": {megabytes: GB/s}} for the threads now set."""
    return {
        "fma_gflops": fma_peak(seconds) / 1e9,
        "copy_gbytes": {mb: copy_bandwidth(mb, seconds) / 1e9 for mb in COPY_MEGABYTES},
    }
