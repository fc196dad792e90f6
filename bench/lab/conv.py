"""``python -m bench.lab``: checks every version of the convolution in this folder and, on a GPU,
times it beside the library's own kernels and PyTorch's. Without a GPU the simulator runs them: then
they are checked, and nothing is timed. Exit code 1 if a version is wrong, 2 if nothing can run.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad import backend
from convgrad.bench.timing import in_turn, median

__all__ = ["Shape", "calls_of_others", "calls_of_versions", "check", "integers", "main", "takes"]


class Shape(NamedTuple):
    """x (n, h, w, c) by k filters of r x r, r odd, padded to y (n, h, w, k)."""

    n: int
    h: int
    w: int
    c: int
    k: int
    r: int

    def flops(self) -> int:
        """Of the direct algorithm: two per multiply-add."""
        return 2 * self.n * self.h * self.w * self.k * self.r * self.r * self.c

    def __str__(self) -> str:
        return (
            f"{self.n} x {self.h} x {self.w} pixels, {self.c} -> {self.k} channels, "
            f"{self.r} x {self.r}"
        )


# ResNet's two ends, and a first layer.
ON_A_CARD = (
    Shape(32, 56, 56, 64, 64, 3),
    Shape(32, 14, 14, 256, 256, 3),
    Shape(32, 112, 112, 3, 64, 7),
)
SIMULATED = (Shape(1, 9, 16, 8, 12, 3), Shape(1, 7, 6, 3, 5, 5))


def integers(shape: Shape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x (n, h, w, c) and weights (r, r, c, k) of small whole numbers: float32 sums are exact."""
    draw = np.random.default_rng(seed).integers
    x = draw(-3, 4, (shape.n, shape.h, shape.w, shape.c))
    weight = draw(-3, 4, (shape.r, shape.r, shape.c, shape.k))
    return x.astype(np.float32), weight.astype(np.float32)


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What they should compute, in float64 by NumPy: a matrix product per tap."""
    n, h, w, _ = x.shape
    r = len(weight)
    padded = np.pad(x.astype(np.float64), [(0, 0), (r // 2, r // 2), (r // 2, r // 2), (0, 0)])
    y = np.zeros((n, h, w, weight.shape[3]))
    for i in range(r):
        for j in range(r):
            y += padded[:, i : i + h, j : j + w] @ weight[i, j].astype(np.float64)
    return y


Call = Callable[[], object]
Calls = dict[str, tuple[Call, Callable[[], np.ndarray]]]  # per name: one run, and y (n, h, w, k)


def takes(multiple: int, shape: Shape) -> bool:
    """Whether a version that wants channels in such multiples takes the shape."""
    return shape.c % multiple == 0 and shape.k % multiple == 0


def calls_of_versions(lab: Any, shape: Shape, x: np.ndarray, weight: np.ndarray) -> Calls:
    """The lab's versions that take the shape."""
    device_x, device_weight = lab.upload(x), lab.upload(weight)
    size = (*x.shape[:3], shape.k)
    calls: Calls = {}
    for name, multiple in lab.versions():
        if not takes(multiple, shape):
            continue
        y = lab.upload(np.full(size, np.nan, np.float32))
        calls[name] = (
            lambda name=name, y=y: lab.run(name, shape, device_x, device_weight, y),
            lambda y=y: lab.download(y, size),
        )
    return calls


@contextmanager
def _precision(name: str) -> Iterator[None]:
    before = backend.get_float32_precision()
    cg.set_float32_precision(name)
    try:
        yield
    finally:
        cg.set_float32_precision(before)


def _library(x: Any, weight: Any, precision: str) -> Any:
    with _precision(precision), cg.no_grad():
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def calls_of_others(x: np.ndarray, weight: np.ndarray) -> Calls:
    """convgrad's own kernels on its CUDA device, and PyTorch's where it has one too."""
    nchw = np.moveaxis(x, -1, 1)
    kcrr = np.moveaxis(weight, (3, 2), (0, 1))
    ours = cg.tensor(nchw, device="cuda"), cg.tensor(kcrr, device="cuda")
    calls: Calls = {
        f"convgrad, {precision}": (
            lambda precision=precision: _library(*ours, precision),
            lambda precision=precision: np.moveaxis(_library(*ours, precision).numpy(), 1, -1),
        )
        for precision in ("highest", "tf32")
    }
    try:
        import torch
    except ImportError:
        return calls
    if not torch.cuda.is_available():
        return calls
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    layout = {"memory_format": torch.channels_last}
    a = torch.from_numpy(nchw.copy()).cuda().to(**layout)
    b = torch.from_numpy(kcrr.copy()).cuda().to(**layout)

    def run() -> Any:
        return torch.nn.functional.conv2d(a, b, padding=len(weight) // 2)

    calls["PyTorch, float32"] = (run, lambda: run().permute(0, 2, 3, 1).cpu().numpy())
    return calls


def check(calls: Calls, expected: np.ndarray) -> list[str]:
    """The names of those whose result is not exactly the expected one."""
    wrong = []
    for name, (run, result) in calls.items():
        run()
        if not np.array_equal(result(), expected):
            wrong.append(name)
    return wrong


def _print_times(calls: Calls, wrong: list[str], shape: Shape, rounds: int, seconds: float) -> None:
    right = {name: run for name, (run, _) in calls.items() if name not in wrong}
    blocks = in_turn(right, rounds, seconds, "cuda")
    for name in calls:
        if name in wrong:
            print(f"  {name:20s} WRONG, not timed")
        else:
            time = median(blocks[name])
            print(f"  {name:20s} {time * 1e3:9.3f} ms {shape.flops() / time / 1e9:10.1f} GFLOP/s")


def _module() -> tuple[Any, bool]:
    """The versions compiled for the GPU, if there is one, or for the simulator; whether for a GPU.
    ImportError if there are none."""
    on_card = os.environ.get("CONVGRAD_CUDA_SIM") != "1" and cg.cuda.is_available()
    return importlib.import_module(f"convgrad._cuda{'' if on_card else '_sim'}_lab"), on_card


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lab", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of timing, in turn (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="per round and version")
    args = parser.parse_args(arguments)
    try:
        lab, on_card = _module()
    except ImportError as error:
        print(f"{error}: build the lab by `make cuda` for a GPU, `make sim` for the simulator.")
        return 2
    if not on_card:
        print("No GPU is used: the simulator checks the versions, and nothing is timed.")
    failed = False
    for shape in ON_A_CARD if on_card else SIMULATED:
        x, weight = integers(shape)
        calls = calls_of_versions(lab, shape, x, weight)
        if on_card:
            calls |= calls_of_others(x, weight)
        wrong = check(calls, convolved(x, weight))
        failed = failed or bool(wrong)
        print(shape)
        if on_card:
            _print_times(calls, wrong, shape, args.rounds, args.seconds)
        else:
            print(*(f"  {n:20s} {'WRONG' if n in wrong else 'right'}" for n in calls), sep="\n")
    return int(failed)
