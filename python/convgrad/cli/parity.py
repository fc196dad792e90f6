"""``convgrad parity``: a few operations and a training step, compared with PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import convgrad as cg
from convgrad import functional, nn, optim
from convgrad.extras import require

__all__ = ["add_parser", "run"]

TOLERANCE = 1e-4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "parity",
        help="compare results and gradients with PyTorch",
        description="Compares values and gradients of a few operations, and the weights after a "
        "training step, with PyTorch (of the extra 'parity'). The error is max |difference| / "
        f"max |PyTorch's|; above {TOLERANCE:g} the row fails and the exit code is 1.",
    )
    parser.set_defaults(run=run)


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinite if the shapes differ or NaN appears."""
    if ours.shape != theirs.shape:
        return float("inf")
    worst = float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))
    return worst if worst == worst else float("inf")


# name, shapes of the inputs, f(functional, *tensors): both libraries spell it the same way.
CASES: tuple[tuple[str, tuple[tuple[int, ...], ...], Callable[..., Any]], ...] = (
    ("linear", ((8, 30), (20, 30), (20,)), lambda F, x, w, b: F.linear(x, w, b)),
    ("conv1d", ((4, 3, 50), (8, 3, 5), (8,)), lambda F, x, w, b: F.conv1d(x, w, b, padding=2)),
    (
        "conv2d, stride 2, groups 2",
        ((4, 8, 17, 15), (12, 4, 3, 3), (12,)),
        lambda F, x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2),
    ),
    (
        "conv3d, dilation 2",
        ((2, 3, 9, 8, 7), (4, 3, 3, 3, 3), (4,)),
        lambda F, x, w, b: F.conv3d(x, w, b, padding=2, dilation=2),
    ),
    (
        "conv_transpose2d, stride 2",
        ((2, 6, 7, 5), (6, 4, 3, 3), (4,)),
        lambda F, x, w, b: F.conv_transpose2d(x, w, b, stride=2),
    ),
    ("max_pool2d", ((2, 4, 9, 9),), lambda F, x: F.max_pool2d(x, 3, 2, 1)),
    ("avg_pool3d", ((2, 4, 6, 6, 6),), lambda F, x: F.avg_pool3d(x, 2)),
    ("relu", ((4, 99),), lambda F, x: F.relu(x)),
    ("gelu", ((4, 99),), lambda F, x: F.gelu(x)),
    ("log_softmax", ((4, 99),), lambda F, x: F.log_softmax(x, 1)),
    ("layer_norm", ((4, 99), (99,), (99,)), lambda F, x, w, b: F.layer_norm(x, (99,), w, b)),
)


def _compare(torch: Any, shapes: Any, function: Callable[..., Any]) -> float:
    """The worst error of the value and of every gradient."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ours = [cg.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = function(functional, *ours), function(torch.nn.functional, *theirs)
    dy = rng.standard_normal(tuple(expected.shape)).astype(np.float32)
    y.backward(cg.tensor(dy))
    expected.backward(torch.tensor(dy))
    pairs = [(y.detach(), expected.detach())] + [(a.grad, b.grad) for a, b in zip(ours, theirs)]
    return max(error(np.asarray(a.numpy()), b.numpy()) for a, b in pairs)


def _network(layers: Any) -> Any:
    return layers.Sequential(
        layers.Conv2d(1, 8, 3, padding=1),
        layers.BatchNorm2d(8),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Conv2d(8, 16, 3, padding=1),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(256, 10),
    )


def _training_step(torch: Any) -> float:
    """The worst error of a parameter or buffer after a step of SGD from equal weights."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 10, 16)
    theirs, ours = _network(torch.nn), _network(nn)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    for model, library, optimizer, make in (
        (ours, nn, optim.SGD, cg.tensor),
        (theirs, torch.nn, torch.optim.SGD, torch.tensor),
    ):
        step = optimizer(model.parameters(), lr=0.1, momentum=0.9)
        library.CrossEntropyLoss()(model(make(images)), make(labels)).backward()
        step.step()
    expected = theirs.state_dict()
    return max(
        error(np.asarray(value.numpy()), expected[name].numpy())
        for name, value in ours.state_dict().items()
    )


def run(args: argparse.Namespace) -> int:
    """Prints a table of errors; 1 if one is above the tolerance."""
    torch = require("torch", "parity")
    rows = [(name, _compare(torch, shapes, function)) for name, shapes, function in CASES]
    rows.append(("a training step of a CNN", _training_step(torch)))
    width = max(len(name) for name, _ in rows)
    print(f"{'against PyTorch ' + torch.__version__:{width}}  error")
    failed = 0
    for name, worst in rows:
        failed += worst > TOLERANCE
        print(f"{name:{width}}  {worst:.1e}  {'FAILED' if worst > TOLERANCE else 'ok'}")
    print(f"{len(rows) - failed} of {len(rows)} agree")
    return 1 if failed else 0
