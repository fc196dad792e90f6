"""``convgrad train tumour`` beside the same TwoPathCNN in PyTorch.

python -m bench.tumour --race      step by step in turn: equal gradients, medians of the times
python -m bench.tumour --seed 0    trains in PyTorch: same slices, crops, first weights, settings
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import convgrad as cg
from convgrad import data
from convgrad.tasks import tumour
from convgrad.tasks.tumour import DEFAULTS, REGIONS
from convgrad.tasks.tumour_slices import Simulated, Slices

PIECES = 2


class Maxout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, PIECES)).amax(2)


class TwoPath(nn.Module):
    """convgrad.models.TwoPathCNN, with its state dict's keys."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        shapes = {name: p.shape for name, p in like.named_parameters()}

        def block(name: str, pool: int) -> nn.Sequential:
            maps, channels, kernel, _ = shapes[f"{name}.0.weight"]
            layers: list[nn.Module] = [nn.Conv2d(channels, maps, kernel), Maxout()]
            return nn.Sequential(*layers, *([nn.MaxPool2d(pool, 1)] if pool > 1 else []))

        self.local1, self.local2, self.wide = (
            block("local1", 4),
            block("local2", 2),
            block("wide", 1),
        )
        classes, features, kernel, _ = shapes["head.weight"]
        self.head = nn.Conv2d(features, classes, kernel)
        state = {name: torch.tensor(v.numpy(copy=True)) for name, v in like.state_dict().items()}
        self.load_state_dict(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.local2(self.local1(x)), self.wide(x)], 1))


def loss_of(phase: int, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    weight = None
    if phase == 1:
        weight = 1 / torch.bincount(target.flatten(), minlength=output.shape[1]).clamp(min=1)
    return nn.functional.cross_entropy(output, target, weight)


def optimizer_of(net: Any, phase: int) -> torch.optim.Optimizer:
    lr = DEFAULTS.lr[phase - 1]
    head = list(net.head.parameters())
    if phase == 2:
        return torch.optim.Adam(head, lr=lr)
    rest = [p for name, p in net.named_parameters() if not name.startswith("head.")]
    return torch.optim.Adam(
        [{"params": rest}, {"params": head, "lr": lr * DEFAULTS.head_lr}], lr=lr
    )


def fit(net: Any, slices: Slices, phase: int, seed: int, layout: Any) -> None:
    """convgrad.tasks.tumour.fit, in PyTorch."""
    net.requires_grad_(phase == 1)
    net.head.requires_grad_(True)
    if phase == 2:
        with torch.no_grad():
            net.head.bias += torch.from_numpy(tumour.log_parts(slices.labels))
    total = DEFAULTS.epochs[phase - 1] * DEFAULTS.steps
    optimizer = optimizer_of(net, phase)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: tumour.schedule(step, total, DEFAULTS.warm_up)
    )
    count = DEFAULTS.steps * DEFAULTS.batch_size
    crops = tumour.crops(slices, count, 2 * seed + phase, balanced=phase == 1)
    loader = data.DataLoader(crops, DEFAULTS.batch_size, num_workers=1)
    for epoch in range(DEFAULTS.epochs[phase - 1]):
        start, losses = time.perf_counter(), []
        for x, target in loader:
            batch = torch.from_numpy(x.numpy()).to(memory_format=layout)
            loss = loss_of(phase, net(batch), torch.from_numpy(target.numpy()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        print(
            f"phase {phase} epoch {epoch + 1} loss {np.mean(losses):.4f} {seconds:.1f} s",
            flush=True,
        )


def test_dice(net: Any, slices: Slices, layout: Any) -> dict[str, float]:
    with torch.no_grad():
        predicted = [
            net(torch.from_numpy(x[None]).to(memory_format=layout)).argmax(1).numpy()
            for x in slices.images
        ]
    return tumour.region_dice(np.concatenate(predicted), slices.labels)


def train(width: float, seed: int, count: int, layout: Any) -> None:
    cg.manual_seed(seed)
    net = TwoPath(tumour.network("twopath", width)).to(memory_format=layout)
    source = Simulated(seed, count, tumour.margin_of("twopath"))
    slices = source.training()
    test = None
    for phase in (1, 2):
        fit(net, slices, phase, seed, layout)
        test = test or source.test()[0].slices
        dice = test_dice(net, test, layout)
        print(f"PyTorch, phase {phase}  " + "  ".join(f"{n} {dice[n]:.4f}" for n in REGIONS))


def race(width: float, rounds: int) -> None:
    """Both libraries' training steps on one batch of crops, in turn."""
    rng = np.random.default_rng(0)
    side = tumour.CROP + 2 * tumour.margin_of("twopath")
    x = rng.standard_normal((DEFAULTS.batch_size, 4, side, side)).astype(np.float32)
    target = rng.integers(0, 4, (DEFAULTS.batch_size, tumour.CROP, tumour.CROP))
    cg.manual_seed(0)
    ours = tumour.network("twopath", width)
    theirs = {
        "contiguous": TwoPath(ours),
        "channels_last": TwoPath(ours).to(memory_format=torch.channels_last),
    }

    our_optimizer = cg.optim.Adam(ours.parameters())

    def step_ours() -> None:
        our_optimizer.zero_grad()
        tumour.balanced_cross_entropy(ours(cg.tensor(x)), cg.tensor(target)).backward()
        our_optimizer.step()

    def step_theirs(name: str, optimizer: Any) -> None:
        layout = getattr(torch, f"{name}_format" if name == "contiguous" else name)
        optimizer.zero_grad()
        batch = torch.from_numpy(x).to(memory_format=layout)
        loss_of(1, theirs[name](batch), torch.from_numpy(target)).backward()
        optimizer.step()

    optimizers = {name: torch.optim.Adam(net.parameters()) for name, net in theirs.items()}
    steps = {"convgrad": step_ours}
    for name in theirs:
        steps[f"PyTorch {name}"] = lambda name=name: step_theirs(name, optimizers[name])
    for step in steps.values():
        step()
    for name, p in ours.named_parameters():
        for net in theirs.values():
            expected = dict(net.named_parameters())[name].grad.numpy()
            error = np.linalg.norm(p.grad.numpy() - expected) / np.linalg.norm(expected)
            assert error < 1e-3, (name, error)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    ours_median = np.median(times["convgrad"])
    for name, each in times.items():
        median = np.median(each)
        print(f"{name:<22} {1e3 * median:7.1f} ms  {median / ours_median:5.2f} times convgrad's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--race", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--width", type=float, default=tumour.WIDTH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cg.set_num_threads(args.threads)
    if args.race:
        race(args.width, args.rounds)
        return
    name = "channels_last" if args.layout == "channels_last" else "contiguous_format"
    train(args.width, args.seed, args.slices, getattr(torch, name))


if __name__ == "__main__":
    main()
