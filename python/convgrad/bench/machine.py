"""The machine: what it is, and its ceilings of arithmetic and of copying."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import _cpu, backend
from convgrad.bench.trainers import PEERS

__all__ = ["about", "ceilings", "copy_bandwidth", "fma_peak"]

# Read and written together: in L2, in L3, in memory; on a GPU in L2, in memory.
COPY_MEGABYTES = {"cpu": (1, 8, 64), "cuda": (16, 512)}
# Work items that fill the machine: threads, or blocks of a GPU.
ITEMS_PER_THREAD, GPU_ITEMS = 4, 132 * 64


def about(device: str = "cpu") -> dict[str, Any]:
    """What figures are measured on and with."""
    return {
        "device": _card() if device == "cuda" else "cpu",
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


def _card() -> str:
    """Name of the GPU, and the CUDA version that its driver runs."""
    runtime = backend.by_device("cuda").xp.cuda.runtime
    version = runtime.driverGetVersion()
    cuda = f"{version // 1000}.{version % 1000 // 10}"
    return f"{convgrad.cuda.get_device_name()}, driver for CUDA {cuda}"


def _nothing() -> None:
    """A CPU is done when its call returns."""


def _best_rate(call: Callable[[], float], seconds: float, device: str) -> float:
    """What ``call`` says it did, per second; the best of many runs: it is a ceiling."""
    finish = convgrad.cuda.synchronize if device == "cuda" else _nothing
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        finish()
        start = time.perf_counter()
        done = call()
        finish()
        best = max(best, done / (time.perf_counter() - start))
    return best


def fma_peak(seconds: float = 0.1, device: str = "cpu") -> float:
    """FLOP/s of multiply-adds on registers alone, float32, by all threads or the whole GPU."""
    items = GPU_ITEMS if device == "cuda" else ITEMS_PER_THREAD * convgrad.get_num_threads()
    y = convgrad.empty(items, device=device).array
    lib = backend.lib_of(y)
    return _best_rate(lambda: float(lib.fma_rounds(y, 2000)), seconds, device)


def copy_bandwidth(megabytes: float, seconds: float = 0.1, device: str = "cpu") -> float:
    """Bytes per second read and written by a copy of two arrays of ``megabytes`` together."""
    x = convgrad.ones(max(1, int(megabytes * 1e6 / 8)), device=device).array
    y = convgrad.ones_like(convgrad.Tensor(x)).array
    lib = backend.lib_of(x)

    def copy() -> float:
        lib.copy_dense(x, y)
        return 2.0 * x.nbytes

    return _best_rate(copy, seconds, device)


def ceilings(seconds: float = 0.1, device: str = "cpu") -> dict[str, Any]:
    """{"fma_gflops", "copy_gbytes": {megabytes: GB/s}} for the threads now set, or the GPU."""
    copies = {mb: copy_bandwidth(mb, seconds, device) / 1e9 for mb in COPY_MEGABYTES[device]}
    return {"fma_gflops": fma_peak(seconds, device) / 1e9, "copy_gbytes": copies}
