"""``python -m bench.tissue``: a training step of the 3-D tissue network beside PyTorch's, and, with
``--reference``, how good the same 2-D network becomes in PyTorch.

The race is that of `convgrad bench`: equal weights, gradients and parameters compared first, then
both timed in turn. The batch is simulated scans, two patches of 32x32x32. Convolutions before a
normalisation have no bias here: its gradient is 0 but for rounding, and could not be compared.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

import convgrad
from convgrad.bench import machine, report
from convgrad.bench.race import race
from convgrad.bench.trainers import set_threads
from convgrad.bench.workloads import Workload, unet
from convgrad.tasks import tissue

BASE_3D, BASE_2D = 8, 16
ITERATIONS, BATCH, LR = 150, 4, 3e-3  # of the reference


@dataclass(frozen=True)
class Tissue(Workload):
    """A step of `convgrad train tissue --model unet3d`."""

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        draws = self.input_shape[0]
        patches = tissue.SimulatedPatches(tissue.part("train", 3), draws, self.seed)
        x, t = patches.batch(range(draws))
        return x.numpy(copy=True), t.numpy(copy=True)


TISSUE = Tissue(
    "tissue unet3d", unet(3, BASE_3D, norm=True), (2, 1, *tissue.PATCH), 4, dense=True, lr=0.05
)


def step_time(rounds: int, seconds: float) -> None:
    """Prints the race as `convgrad bench` does."""
    settings = {"exact": False, "precision": "highest", "rounds": rounds, "seconds": seconds}
    row = race(TISSUE, rounds, seconds)
    print(report.markdown({"about": machine.about() | settings, "training": [row]}))
    print(f"\nAgreement: {row['agreement']}")


def reference(seeds: int) -> None:
    """Prints the test figures of the same U-Net, trained by PyTorch on the same draws."""
    import torch

    test = tissue.scans("test", 2)
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = unet(2, BASE_2D, norm=True)(torch.nn, torch.cat)
        draws = tissue.SimulatedSlices(tissue.part("train", 2), BATCH * ITERATIONS, seed)
        order = np.random.default_rng(seed).permutation(len(draws)).reshape(ITERATIONS, BATCH)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        for indices in order:
            x, t = (torch.from_numpy(a.numpy(copy=True)) for a in draws.batch(indices))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), t).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(test.images[:, None]))
        rows.append(tissue.measure(logits.argmax(1).numpy(), test.labels, 1.0))
        print(f"PyTorch, seed {seed}: {_line(rows[-1])}", flush=True)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    print(f"PyTorch, mean of {seeds}: {_line(means)}")


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=convgrad.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block")
    parser.add_argument(
        "--reference", type=int, metavar="SEEDS", help=f"train {ITERATIONS} steps in PyTorch"
    )
    args = parser.parse_args()
    set_threads(args.threads)
    if args.reference:
        reference(args.reference)
    else:
        step_time(args.rounds, args.seconds)


if __name__ == "__main__":
    main()
