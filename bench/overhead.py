"""What a call costs: microseconds on tiny inputs beside PyTorch: ``python -m bench.overhead``.

The arrays are so small that the kernels hardly matter. Both sides run in turn on one thread;
medians of blocks of calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CALLS = 500
BLOCKS = 15


def cases(lib: Any, functional: Any, tensor: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """Each op on tensors that want gradients."""
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> Any:
        return tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)

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


def microseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / CALLS


def step(call: Callable[[], Any], gradient: Any) -> Callable[[], None]:
    return lambda: call().backward(gradient)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    import convgrad as cg
    import convgrad.functional as F

    cg.set_num_threads(1)
    sides = {"convgrad": (cg, cases(cg, F, cg.tensor))}
    try:
        import torch

        torch.set_num_threads(1)
        sides["torch"] = (torch, cases(torch, torch.nn.functional, torch.tensor))
    except ImportError:
        print("PyTorch is not installed: convgrad alone.")
    print(f"us per call: {', '.join(sides)}; forward | forward and backward")
    for name in sides["convgrad"][1]:
        times: dict[str, list[list[float]]] = {side: [[], []] for side in sides}
        for _ in range(BLOCKS):
            for side, (lib, ops) in sides.items():
                call = ops[name]
                times[side][0].append(microseconds(call))
                times[side][1].append(microseconds(step(call, lib.ones_like(call()))))
        forward, both = (
            "  ".join(f"{statistics.median(times[side][i]):6.2f}" for side in sides) for i in (0, 1)
        )
        print(f"{name:14} {forward}  |  {both}")


if __name__ == "__main__":
    main()
