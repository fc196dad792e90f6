"""Races the seven training workloads against PyTorch: ``python -m bench.training``.

A race counts only if both sides compute the same: from equal weights every parameter gradient of
step 1 agrees to 1e-3 in relative norm, every parameter and buffer after 10 steps too (see check),
and the loss has fallen by 10 %. Steps are then timed in turn, one block of each side after the
other, and the medians compared; PyTorch runs in its default and its channels_last layout and the
better counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.workloads import WORKLOADS, Workload

Step = Callable[[], float]
TOLERANCE = 1e-3
CHECKED_STEPS = 10


class Side:
    """One library training one workload: ``step()`` trains once and returns the loss."""

    def __init__(self, model: Any, optimizer: Any, step: Step, gradients: Any, state: Any) -> None:
        self.model, self.optimizer, self.step = model, optimizer, step
        self.gradients, self.state = gradients, state


def torch_side(workload: Workload, channels_last: bool) -> Side:
    import torch

    torch.manual_seed(0)
    model = workload.build(torch.nn, torch.cat)
    x, t = (torch.from_numpy(a) for a in workload.batch())
    if channels_last:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
        model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    loss_fn = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Side(
        model, optimizer, step,
        lambda: {n: p.grad.numpy().copy() for n, p in model.named_parameters()},
        lambda: {n: v.numpy().copy() for n, v in model.state_dict().items()},
    )  # fmt: skip


def convgrad_side(workload: Workload, state: dict[str, np.ndarray]) -> Side:
    import convgrad as cg

    model = workload.build(cg.nn, cg.cat)
    model.load_state_dict(state)
    x, t = (cg.tensor(a) for a in workload.batch())
    loss_fn = cg.nn.CrossEntropyLoss()
    optimizer = cg.optim.SGD(model.parameters(), lr=workload.lr, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return Side(
        model, optimizer, step,
        lambda: {n: p.grad.numpy(copy=True) for n, p in model.named_parameters()},
        lambda: {n: np.array(v.numpy(copy=True)) for n, v in model.state_dict().items()},
    )  # fmt: skip


def worst_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest relative norm of a difference, over all entries."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    worst = 0.0
    for name, theirs_value in theirs.items():
        difference = np.linalg.norm(np.asarray(ours[name], np.float64) - theirs_value)
        worst = max(worst, float(difference / (np.linalg.norm(theirs_value) + 1e-12)))
    return worst


def check(workload: Workload) -> dict[str, float]:
    """Trains both sides from equal weights; raises unless they agree and learn.

    Where PyTorch's own two layouts differ by more than the tolerance (a pre-activation near 0 whose
    ReLU flips, amplified by BatchNorm: ResNet-20), twice their difference is allowed.
    """
    theirs = torch_side(workload, channels_last=False)
    ours = convgrad_side(workload, theirs.state())
    sides = [theirs, ours]
    if len(workload.input_shape) > 3:
        sides.append(torch_side(workload, channels_last=True))
    first = [side.step() for side in sides]
    gradients = [side.gradients() for side in sides]
    for _ in range(CHECKED_STEPS - 1):
        last = [side.step() for side in sides]
    states = [side.state() for side in sides]
    found = {"loss_fall": 1 - last[1] / first[1]}
    for name, values in (("gradient", gradients), ("state", states)):
        found[name] = worst_difference(values[1], values[0])
        own = 2 * worst_difference(values[-1], values[0]) if len(sides) > 2 else 0.0
        found[f"torch_{name}"] = own
        if found[name] > max(TOLERANCE, own):
            raise SystemExit(
                f"[{workload.name}] not a race: {name}s differ by {found[name]:.1e}; allowed "
                f"{TOLERANCE}, or twice PyTorch's own difference between its layouts, {own:.1e}."
            )
    if found["loss_fall"] < 0.1:
        raise SystemExit(
            f"[{workload.name}] not a race: the loss fell by {found['loss_fall']:.0%} in "
            f"{CHECKED_STEPS} steps, 10 % needed."
        )
    return found


def timed(step: Step, seconds: float, minimum: int = 3) -> list[float]:
    """Times of single steps, for about ``seconds``, without the first one's cold caches."""
    step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < minimum or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def race(workload: Workload, rounds: int, seconds: float) -> dict[str, Any]:
    """Times all sides in turn, ``rounds`` times ``seconds`` each; medians in milliseconds."""
    agreement = check(workload)
    sides = {"torch": torch_side(workload, channels_last=False)}
    if len(workload.input_shape) > 3:
        sides["torch channels_last"] = torch_side(workload, channels_last=True)
    sides["convgrad"] = convgrad_side(workload, sides["torch"].state())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name] += timed(side.step, seconds)
    ms = {name: 1e3 * float(np.median(t)) for name, t in times.items()}
    best = min(v for name, v in ms.items() if name != "convgrad")
    return {
        "workload": workload.name, "ms": ms, "best_torch_ms": best,
        "ratio": best / ms["convgrad"], "agreement": agreement,
    }  # fmt: skip


def environment(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    import convgrad as cg
    from convgrad import _cpu

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit, "cpu": cpu, "threads": threads,
        "isa": _cpu.isa_name(), "load": os.getloadavg()[0], "convgrad": cg.__version__,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def table(results: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = [
        f"convgrad {about['convgrad']} ({about['commit']}, {about['isa']}) against PyTorch "
        f"{about['torch']}, {about['threads']} threads, {about['cpu']}, {about['date']}, load "
        f"{about['load']:.1f}",
        "",
        "| workload | PyTorch ms | channels_last ms | convgrad ms | ratio | gradients differ |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        last = r["ms"].get("torch channels_last")
        lines.append(
            f"| {r['workload']} | {r['ms']['torch']:.2f} | {'-' if last is None else f'{last:.2f}'}"
            f" | {r['ms']['convgrad']:.2f} | {r['ratio']:.2f} | {r['agreement']['gradient']:.0e} |"
        )
    ratios = [r["ratio"] for r in results]
    lines += ["", f"Geometric mean of the ratios: {np.exp(np.mean(np.log(ratios))):.2f}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="which (all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="blocks of steps per side")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    unknown = [name for name in args.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workloads {unknown}; known: {', '.join(WORKLOADS)}")
    try:
        import torch
    except ImportError:
        raise SystemExit("The race needs PyTorch: pip install '.[parity]'") from None
    import convgrad as cg

    torch.set_num_threads(args.threads)
    cg.set_num_threads(args.threads)
    about, results = environment(args.threads), []
    for name in args.workloads:
        results.append(race(WORKLOADS[name], args.rounds, args.seconds))
        print(f"{name}: {results[-1]['ratio']:.2f}x", file=sys.stderr, flush=True)
    print(table(results, about))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
