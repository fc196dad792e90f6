"""Times single operations beside PyTorch and beside the machine's ceilings."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import convgrad
from convgrad.bench.cases import Case, Library
from convgrad.bench.timing import in_turn, median
from convgrad.extras import require

__all__ = ["CONVGRAD", "OURS", "libraries", "measure"]

OURS = "convgrad"
CONVGRAD = Library(convgrad, convgrad.functional, convgrad.tensor)  # on the CPU
WINOGRAD = "winograd"  # algorithms with this in their name do fewer multiplications than counted


def libraries(device: str = "cpu") -> dict[str, Library]:
    """convgrad, and PyTorch in both layouts where it is installed."""
    ours = functools.partial(convgrad.tensor, device=device)
    found = {OURS: dataclasses.replace(CONVGRAD, tensor=ours)}
    if importlib.util.find_spec("torch") is not None:
        torch = require("torch")
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}

        def last(tensor: Any) -> Any:
            layout = formats.get(tensor.ndim)
            return tensor if layout is None else tensor.contiguous(memory_format=layout)

        def tensor(array: Any) -> Any:
            return torch.from_numpy(array).to(device)

        plain = torch.nn.functional
        found["torch"] = Library(torch, plain, tensor)
        found["torch channels_last"] = Library(torch, plain, tensor, last)
    return found


def _ceiling(case: Case, ceilings: Mapping[str, Any]) -> tuple[float, str]:
    """The seconds that the machine needs at least, and which ceiling says so.

    Copy bandwidth is that of the measured size nearest to the case's.
    """
    sizes = ceilings["copy_gbytes"]
    nearest = min(sizes, key=lambda mb: abs(math.log(mb * 1e6 / case.bytes)))
    seconds = {
        "fma": case.flops / (1e9 * ceilings["fma_gflops"]),
        "copy": case.bytes / (1e9 * sizes[nearest]),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def measure(
    cases: Iterable[Case],
    ceilings: Mapping[str, Any],
    rounds: int,
    seconds: float,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row per case: "ms" per side, "ratio" of the faster torch layout to ours, rates.

    "percent" is the share of the nearer ceiling ("bound": fma or copy) that convgrad reaches: above
    100 where an algorithm multiplies less than the direct one, or where the data lies in a faster
    cache than the copy's did.
    """
    rows = []
    sides = libraries(device)
    for case in cases:
        calls = {name: case.make(library) for name, library in sides.items()}
        blocks = in_turn(calls, rounds, seconds, device)
        times = {name: median(block) for name, block in blocks.items()}
        ours = times[OURS]
        theirs = min((t for name, t in times.items() if name != OURS), default=None)
        floor, bound = _ceiling(case, ceilings)
        rows.append(
            {
                "op": case.op,
                "what": case.what,
                "pass": case.pass_,
                "algorithm": case.algorithm(device),
                "ms": {name: 1e3 * t for name, t in times.items()},
                "ratio": theirs / ours if theirs is not None else None,
                "gflops": case.flops / ours / 1e9,
                "gbytes": case.bytes / ours / 1e9,
                "percent": 100 * floor / ours,
                "bound": bound,
                "winograd": WINOGRAD in case.algorithm(device),
            }
        )
    return rows
