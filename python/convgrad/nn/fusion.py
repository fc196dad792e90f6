"""Neighbours in a Sequential that run as one op: the same bits in fewer passes over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convgrad.nn.activation import ReLU
from convgrad.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from convgrad.nn.linear import Linear
from convgrad.nn.module import Module

__all__ = ["run"]

# (type, type of its successor) -> what does the work of both, given the first module and its input.
# A layer's forward_relu writes max(0, y) where its forward writes y.
FUSED: dict[tuple[type, type], Callable[[Any, Any], Any]] = {
    (layer, ReLU): layer.forward_relu
    for layer in (
        Linear,
        Conv1d,
        Conv2d,
        Conv3d,
        ConvTranspose1d,
        ConvTranspose2d,
        ConvTranspose3d,
    )
}


def _is_plain(module: Module) -> bool:
    """Whether calling the module is calling its class's forward: no hooks, nothing replaced."""
    return not module._hooked and "forward" not in module.__dict__


def run(modules: Sequence[Module], input: Any) -> Any:
    """Calls the modules one after another, neighbours in FUSED by one call."""
    last = len(modules) - 1
    i = 0
    while i <= last:
        module = modules[i]
        if i < last:
            both = FUSED.get((type(module), type(modules[i + 1])))
            if both is not None and _is_plain(module) and _is_plain(modules[i + 1]):
                input = both(module, input)
                i += 2
                continue
        input = module(input)
        i += 1
    return input
