"""Races training steps or inference of the workloads against the peers that are installed.

A race counts only if both sides compute the same: from equal weights every parameter gradient of
step 1 agrees to 1e-3 in relative norm, every parameter and buffer after 10 steps too (see
:func:`check`), and the loss has fallen by 10 %. Each peer is timed in turn with convgrad, and the
fastest one counts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from convgrad.bench.timing import in_turn, median
from convgrad.bench.trainers import Trainer, peers_of, trainer
from convgrad.bench.workloads import Workload

__all__ = ["OURS", "NotARaceError", "check", "race", "worst_difference"]

OURS, OURS_CAPTURED = "convgrad", "convgrad captured"
TOLERANCE = 1e-3
CHECKED_STEPS = 10
LOSS_FALL = 0.1
BATCHES = 5


class NotARaceError(Exception):
    """The sides do not compute the same, or do not learn."""


def worst_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest relative norm of a difference, over all entries; infinite where NaN appears."""
    if ours.keys() != theirs.keys():
        raise NotARaceError(f"the names differ: {sorted(ours.keys() ^ theirs.keys())}")
    worst = 0.0
    for name, value in theirs.items():
        expected = np.asarray(value, np.float64)
        difference = np.linalg.norm(ours[name] - expected)
        relative = float(difference / (np.linalg.norm(expected) + 1e-12))
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


def _sides(
    workload: Workload, compiled: bool, device: str, inference: bool = False
) -> dict[str, Trainer]:
    """convgrad and its peers with equal weights, convgrad last: the first peer's are loaded. On a
    GPU training steps are captured into CUDA graphs, too."""
    sides: dict[str, Trainer] = {}
    state = None
    captured = device != "cpu" and not inference
    for peer in peers_of(workload, compiled, device, captured):
        sides[peer.name] = peer.make(workload, state, device)
        if state is None:
            state = sides[peer.name].state()
    if captured:
        sides[OURS_CAPTURED] = trainer(workload, state, device, captured=True)
    sides[OURS] = trainer(workload, state, device)
    return sides


def _fastest(ms: Mapping[str, float], captured: bool) -> str | None:
    """The fastest peer, of those whose steps are captured, or not."""
    peers = [n for n in ms if n not in (OURS, OURS_CAPTURED)]
    chosen = [n for n in peers if n.endswith(" captured") == captured]
    return min(chosen, key=lambda name: ms[name], default=None)


def check(
    workload: Workload, inference: bool = False, compiled: bool = False, device: str = "cpu"
) -> dict[str, float]:
    """Trains all sides from equal weights; NotARaceError unless they agree and learn.

    A ReLU whose input is nearly 0 flips with the last bits, whoever rounds them, and each flip
    changes gradients by some 1e-3. So where PyTorch's own two layouts differ by more than the
    tolerance (ResNet-20, amplified by BatchNorm), twice their difference is allowed, and where a
    batch does not agree the next one is tried, BATCHES in all: a wrong kernel agrees on none.
    """
    errors = []
    for seed in range(workload.seed, workload.seed + BATCHES):
        try:
            batch = dataclasses.replace(workload, seed=seed)
            found = _check_batch(batch, inference, compiled, device)
        except NotARaceError as error:
            errors.append(error)
        else:
            return found | {"batch": seed}
    raise errors[0]


def _check_batch(
    workload: Workload, inference: bool, compiled: bool, device: str
) -> dict[str, float]:
    """check() on the workload's own batch."""
    sides = _sides(workload, compiled, device, inference)
    values: dict[str, dict[str, Any]] = {}
    if inference:
        values["output"] = {name: side.eval().output() for name, side in sides.items()}
        found = {}
    else:
        losses = {name: [side.step()] for name, side in sides.items()}
        values["gradient"] = {name: side.gradients() for name, side in sides.items()}
        for _ in range(CHECKED_STEPS - 1):
            for name, side in sides.items():
                losses[name].append(side.step())
        values["state"] = {name: side.state() for name, side in sides.items()}
        fall = 1 - losses[OURS][-1] / losses[OURS][0]
        found = {"loss_fall": fall}
        if not fall >= LOSS_FALL:  # NaN too
            raise NotARaceError(
                f"[{workload.name}] not a race: the loss fell by {fall:.0%} in {CHECKED_STEPS} "
                f"steps, {LOSS_FALL:.0%} needed."
            )
    peers = peers_of(workload, device=device, captured=True)
    own = {peer.name for peer in peers if peer.same_as}
    for kind, of in values.items():
        reference, *others = of
        differences = {name: worst_difference(of[name], of[reference]) for name in others}
        spread = max([differences[name] for name in others if name in own], default=0.0)
        allowed = max(TOLERANCE, 2 * spread)
        for name in others:
            if name not in own and differences[name] > allowed:
                raise NotARaceError(
                    f"[{workload.name}] not a race: the {kind}s of {name} and {reference} differ "
                    f"by {differences[name]:.1e}; allowed {allowed:.1e}."
                )
        if reference != OURS:
            found[kind] = differences[OURS]
            found[f"torch_{kind}"] = spread
    return found


def race(
    workload: Workload,
    rounds: int,
    seconds: float,
    inference: bool = False,
    compiled: bool = False,
    agreement: dict[str, float] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Checks, then times all sides in turn, ``rounds`` blocks of ``seconds`` each.

    "ms" are medians; "ratio" is the fastest peer's to convgrad's, "ratios" the same of each round,
    None without a peer. "captured", on a GPU: the fastest captured peer's to our captured step.
    ``agreement`` is what an earlier check of the same sides found.
    """
    if agreement is None:
        agreement = check(workload, inference, compiled, device)
    sides = _sides(workload, compiled, device, inference)
    calls = {name: side.eval().infer if inference else side.step for name, side in sides.items()}
    blocks = in_turn(calls, rounds, seconds, device)
    ms = {name: 1e3 * median(times) for name, times in blocks.items()}
    best, best_captured = _fastest(ms, captured=False), _fastest(ms, captured=True)
    return {
        "workload": workload.name,
        "ms": ms,
        "best": best,
        "ratio": ms[best] / ms[OURS] if best else None,
        "ratios": [
            statistics.median(theirs) / statistics.median(ours)
            for theirs, ours in zip(blocks[best], blocks[OURS])
        ]
        if best
        else None,
        "captured": ms[best_captured] / ms[OURS_CAPTURED] if best_captured else None,
        "agreement": agreement,
    }
