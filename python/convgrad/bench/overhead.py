"""What a call costs: microseconds on tiny inputs on one thread, and seconds to import.

The arrays are so small that the kernels hardly matter.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import convgrad
from convgrad.bench.ops import libraries
from convgrad.bench.timing import in_turn, median
from convgrad.bench.trainers import set_threads

__all__ = ["calls", "imports"]


def _cases(functional: Any, tensor: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """Each op on tensors that want gradients."""
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> Any:
        return tensor(rng.standard_normal(shape).astype(np.float32)).requires_grad_()

    a, b, x = leaf(4, 4), leaf(4, 4), leaf(1, 4, 4, 4)
    w, bias, kernel = leaf(4, 4), leaf(4), leaf(4, 4, 3, 3)
    target = tensor(np.arange(4))
    return {
        "add": lambda: a + b,
        "mul": lambda: a * b,
        "relu": lambda: functional.relu(a),
        "sum": lambda: a.sum(),
        "reshape": lambda: a.reshape(16),
        "linear": lambda: functional.linear(a, w, bias),
        "conv2d": lambda: functional.conv2d(x, kernel, bias, padding=1),
        "max_pool2d": lambda: functional.max_pool2d(x, 2),
        "cross_entropy": lambda: functional.cross_entropy(a, target),
    }


def _both(call: Callable[[], Any], gradient: Any) -> Callable[[], None]:
    return lambda: call().backward(gradient)


def calls(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """{"op", "forward_us": {side: us}, "both_us": the same with backward}; threads are set to 1."""
    threads = convgrad.get_num_threads()
    set_threads(1)
    sides = {
        name: (library.root, _cases(library.functional, library.tensor))
        for name, library in libraries().items()
        if "channels_last" not in name
    }
    rows = []
    for op in next(iter(sides.values()))[1]:
        forward = {name: cases[op] for name, (_, cases) in sides.items()}
        both = {
            name: _both(forward[name], root.ones_like(forward[name]()))
            for name, (root, _) in sides.items()
        }
        row: dict[str, Any] = {"op": op}
        for kind, timed in (("forward_us", forward), ("both_us", both)):
            blocks = in_turn(timed, rounds, seconds)
            row[kind] = {name: 1e6 * median(times) for name, times in blocks.items()}
        rows.append(row)
    set_threads(threads)
    return rows


def imports(repeats: int = 5) -> dict[str, float]:
    """Milliseconds that `import` takes beyond starting Python, medians of fresh processes in turn.

    convgrad's is counted with NumPy's own, which is also a row.
    """
    packages = [p for p in ("numpy", "convgrad", "torch") if importlib.util.find_spec(p)]
    statements = {"": "pass", **{package: f"import {package}" for package in packages}}
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(repeats + 1):
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # files cached by then
    return {name: 1e3 * (medians[name] - medians[""]) for name in packages}
