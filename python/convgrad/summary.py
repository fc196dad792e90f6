"""A model in a table: one line per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convgrad.autograd import no_grad
from convgrad.backend import for_new, of
from convgrad.dtypes import FLOATS
from convgrad.nn.module import Module
from convgrad.tensor import Tensor

__all__ = ["LayerSummary", "Summary", "summary"]


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int  # of the layer itself, not of its children
    output_bytes: int


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` found; printing it gives the table."""

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: list[LayerSummary] = field(default_factory=list)
    parameters: int = 0
    trainable: int = 0
    parameter_bytes: int = 0

    @property
    def activation_bytes(self) -> int:
        """Bytes of all the leaves' outputs: about what the forward pass keeps for backward."""
        return sum(layer.output_bytes for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "type", "output shape", "parameters")]
        rows += [
            (
                layer.name,
                layer.type,
                "" if layer.output_shape is None else str(layer.output_shape),
                f"{layer.parameters:,}",
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  "
            f"{row[3]:>{widths[3]}}"
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        shapes = ", ".join(map(str, self.input_shapes))
        return "\n".join(
            [
                f"{self.model}, input {shapes}",
                rule,
                lines[0],
                rule,
                *lines[1:],
                rule,
                f"parameters   {self.parameters:,} ({self.trainable:,} trainable), "
                f"{_size(self.parameter_bytes)}",
                f"activations  {_size(self.activation_bytes)}",
            ]
        )

    __repr__ = __str__


def summary(
    model: Module, input_shape: Sequence[int] | Sequence[Sequence[int]], dtype: Any = None
) -> Summary:
    """Runs ``model`` once on zeros and lists its layers in the order they were called.

    input_shape: with the batch axis, ``(1, 3, 32, 32)``; for several inputs a list of shapes.
    dtype: of the input; the first floating parameter's if left out. The model is in evaluation
    mode during the run and nothing of it changes; shared layers appear once per call.
    """
    shapes = _shapes(input_shape)
    if dtype is None:
        floats = (p.array.dtype for p in model.parameters() if p.array.dtype.kind in FLOATS)
        dtype = next(floats, np.dtype(np.float32))
    home = next((of(p.array) for p in model.parameters()), for_new(None))
    result = Summary(
        type(model).__name__,
        shapes,
        parameters=sum(p.array.size for p in model.parameters()),
        trainable=sum(p.array.size for p in model.parameters() if p.requires_grad),
        parameter_bytes=sum(p.array.nbytes for p in model.parameters()),
    )
    seen: set[int] = set()  # parameters listed already: a shared one counts once
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    for name, module in model.named_modules():
        own = any(True for _ in module.parameters(recurse=False))
        if not own and any(True for _ in module.children()):
            continue  # a container: its layers say it all
        handles.append(
            module.register_forward_hook(_Recorder(name or type(model).__name__, result, seen))
        )
    try:
        model.eval()
        with no_grad():
            model(*[Tensor(home.put(np.zeros(shape, dtype))) for shape in shapes])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return result


class _Recorder:
    """The forward hook that writes one line."""

    def __init__(self, name: str, result: Summary, seen: set[int]) -> None:
        self.name, self.result, self.seen = name, result, seen

    def __call__(self, module: Module, args: Any, output: Any) -> None:
        own = [p for p in module.parameters(recurse=False) if id(p) not in self.seen]
        self.seen.update(map(id, own))
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        is_tensor = isinstance(first, Tensor)
        self.result.layers.append(
            LayerSummary(
                self.name,
                type(module).__name__,
                tuple(first.shape) if is_tensor else None,
                sum(p.array.size for p in own),
                first.array.nbytes if is_tensor else 0,
            )
        )


def _shapes(input_shape: Any) -> tuple[tuple[int, ...], ...]:
    try:
        items = list(input_shape)
        if items and all(not np.isscalar(item) for item in items):
            return tuple(tuple(int(n) for n in shape) for shape in items)
        return (tuple(int(n) for n in items),)
    except TypeError:
        raise TypeError(
            f"[summary] input_shape must be a shape or a list of shapes. Got {input_shape!r}."
        ) from None


def _size(n: int) -> str:
    size = float(n)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
