"""Peak memory of a training step, each library in a process of its own.

The figure is the high-water mark of resident memory (VmHWM) over a few steps, above the resident
memory before the model is made: weights, gradients, activations, workspaces, pools. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import convgrad
from convgrad.bench.race import OURS
from convgrad.bench.trainers import State, Trainer, peers_of, set_threads, trainer
from convgrad.bench.workloads import WORKLOADS, Workload

__all__ = ["measure", "peak_megabytes"]

STEPS = 5
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(field: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_megabytes(workload: Workload, side: str, threads: int) -> float:
    """In this process, which should be fresh: its memory now is the level to count from."""
    make: Callable[[Workload, State | None, str], Trainer] = trainer
    if side == OURS:
        convgrad.set_num_threads(threads)
    else:
        make = next(peer.make for peer in peers_of(workload) if peer.name == side)
        set_threads(threads)  # imports the library: its code does not count
    CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts anew
    before = _kilobytes("VmRSS")
    model = make(workload, None, "cpu")
    for _ in range(STEPS):
        model.step()
    return (_kilobytes("VmHWM") - before) / 1024


def measure(workload: Workload) -> dict[str, Any]:
    """{"workload", "mb": {side: MB}, "ratio": the smallest peer's to convgrad's, or None}."""
    if not STATUS.exists():
        raise OSError(f"[memory] Peak memory is read from {STATUS}, which is not here.")
    threads, megabytes = convgrad.get_num_threads(), {}
    for side in (*(peer.name for peer in peers_of(workload)), OURS):
        command = [sys.executable, "-m", __name__, workload.name, side, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"[memory] {side} failed: {done.stderr.strip().splitlines()[-1:]}")
        megabytes[side] = float(done.stdout)
    best = min((mb for side, mb in megabytes.items() if side != OURS), default=None)
    ratio = best / megabytes[OURS] if best is not None else None
    return {"workload": workload.name, "mb": megabytes, "ratio": ratio}


if __name__ == "__main__":
    print(peak_megabytes(WORKLOADS[sys.argv[1]], sys.argv[2], int(sys.argv[3])))
