"""Timing several callables in turn, so that a change of the machine's speed meets them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import convgrad

__all__ = ["Blocks", "in_turn", "median"]

Blocks = dict[str, list[list[float]]]  # per name, per round: seconds of one call, many times
# Seconds: shorter calls are timed several at once, or what the clock costs, and waiting for a GPU,
# would show.
GROUP = {"cpu": 1e-4, "cuda": 2e-3}
MINIMUM = 2  # samples per block


def _done() -> None:
    """A call on a CPU has nothing left to wait for."""


def _block(
    call: Callable[[], object], seconds: float, finish: Callable[[], object], at_once: float
) -> list[float]:
    call()  # brings its data into the caches, after the others' block
    finish()
    start = time.perf_counter()
    call()
    finish()
    once = time.perf_counter() - start
    group = max(1, int(at_once / max(once, 1e-9)))
    samples = [once] if group == 1 else []
    end = start + seconds
    while len(samples) < MINIMUM or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(group):
            call()
        finish()
        samples.append((time.perf_counter() - start) / group)
    return samples


def in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float, device: str = "cpu"
) -> Blocks:
    """Times each call for about ``seconds``, then the next one, ``rounds`` times over.

    On a GPU a sample ends when the device is done with what was called.
    """
    finish = convgrad.cuda.synchronize if device == "cuda" else _done
    blocks: Blocks = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            blocks[name].append(_block(call, seconds, finish, GROUP[device]))
    return blocks


def median(blocks: list[list[float]]) -> float:
    """Of all samples of all rounds."""
    return statistics.median(sample for block in blocks for sample in block)
