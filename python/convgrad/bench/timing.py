"""Timing several callables in turn, so that a change of the machine's speed meets them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["Blocks", "in_turn", "median"]

Blocks = dict[str, list[list[float]]]  # per name, per round: seconds of one call, many times
GROUP = 1e-4  # seconds: shorter calls are timed several at once, or the clock's cost would show
MINIMUM = 2  # samples per block


def _block(call: Callable[[], object], seconds: float) -> list[float]:
    call()  # brings its data into the caches, after the others' block
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    group = max(1, int(GROUP / max(once, 1e-9)))
    samples = [once] if group == 1 else []
    end = start + seconds
    while len(samples) < MINIMUM or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(group):
            call()
        samples.append((time.perf_counter() - start) / group)
    return samples


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> Blocks:
    """Times each call for about ``seconds``, then the next one, ``rounds`` times over."""
    blocks: Blocks = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            blocks[name].append(_block(call, seconds))
    return blocks


def median(blocks: list[list[float]]) -> float:
    """Of all samples of all rounds."""
    return statistics.median(sample for block in blocks for sample in block)
