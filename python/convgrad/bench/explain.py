"""Which algorithm each convolution gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import convgrad
from convgrad import backend, nn
from convgrad.bench.workloads import Workload

__all__ = ["PASSES", "Convolution", "convolutions"]

PASSES = ("forward", "backward_input", "backward_weight")
Ints = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """Shapes and settings as conv1d to conv3d take them; `padding` may be a word too.

    A transposed one is described by the convolution whose adjoint it is: x_shape is its output's.
    """

    x_shape: Ints
    w_shape: Ints
    stride: int | Ints = 1
    padding: int | Ints | str = 0
    dilation: int | Ints = 1
    groups: int = 1
    transposed: bool = False

    def algorithms(self, device: str = "cpu") -> dict[str, str]:
        """Of each pass: the name of the algorithm for float32 on this processor or GPU."""
        lib = backend.by_device(device).lib
        args = (
            self.x_shape, self.w_shape, self.stride, self.padding, self.dilation, self.groups
        )  # fmt: skip
        # What is the forward pass of one is backward_input of the other.
        other = {"forward": "backward_input", "backward_input": "forward"}
        computed = [other.get(name, name) if self.transposed else name for name in PASSES]
        return {name: lib.conv_algorithm(*args, b) for name, b in zip(PASSES, computed)}

    def __str__(self) -> str:
        kind = "conv_transpose" if self.transposed else "conv"
        kernel, size = "x".join(map(str, self.w_shape[2:])), "x".join(map(str, self.x_shape[2:]))
        k, c = self.w_shape[0], self.x_shape[1]
        channels = f"{k}->{c}" if self.transposed else f"{c}->{k}"
        text = f"{kind}{len(self.x_shape) - 2}d {kernel} {channels} @{size} batch {self.x_shape[0]}"
        for name in ("stride", "dilation", "groups"):
            value = getattr(self, name)
            values = set(value) if isinstance(value, tuple) else {value}
            if values != {1}:
                text += f" {name} {values.pop() if len(values) == 1 else value}"
        return text


def convolutions(workload: Workload) -> list[Convolution]:
    """Those of one forward pass, in order."""
    found: list[Convolution] = []

    def record(module: Any, args: Any, output: Any) -> None:
        transposed = isinstance(
            module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        )
        found.append(
            Convolution(
                tuple((output if transposed else args[0]).shape),
                tuple(module.weight.shape),
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
                transposed,
            )
        )

    model = workload.build(nn, convgrad.cat)
    for module in model.modules():
        if type(module).__name__.startswith("Conv"):
            module.register_forward_hook(record)
    with convgrad.no_grad():
        model(convgrad.tensor(workload.batch()[0]))
    return found
