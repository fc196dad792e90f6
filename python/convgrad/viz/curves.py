"""The activation functions and their gradients, as on the slides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convgrad import functional as F
from convgrad.tensor import Tensor, tensor
from convgrad.viz.canvas import BLUE, COLOURS, VERMILION, new_figure, write

__all__ = ["ACTIVATIONS", "SATURATION", "activations", "curve", "saturated"]

Function = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Function] = {
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "ReLU": F.relu,
    "leaky ReLU": F.leaky_relu,
    "PReLU, a = 0.25": lambda x: F.prelu(x, tensor(np.array([0.25], x.dtype))),
    "ELU": F.elu,
    "SiLU": F.silu,
    "GELU": F.gelu,
    "softplus": F.softplus,
}
# A neuron is saturated where less than this of the gradient passes (leaky ReLU's 0.01 counts not).
SATURATION = 0.01
REACH = 6.0  # inputs shown, to both sides of 0


def curve(function: Function, at: Any) -> tuple[np.ndarray, np.ndarray]:
    """A function of one number and its derivative, by the tape, at every element of ``at``.

    Both float64, of the shape of ``at``.
    """
    x = tensor(np.asarray(at, np.float64), requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert x.grad is not None
    return y.detach().numpy(copy=True), x.grad.numpy(copy=True)


def saturated(slope: np.ndarray) -> np.ndarray:
    """Where a gradient (n,), sampled from left to right, is below SATURATION and stays so to that
    end; a gradient that only changes its sign is none of it."""
    low = np.abs(slope) < SATURATION
    left = np.logical_and.accumulate(low)
    return left | np.logical_and.accumulate(low[::-1])[::-1]


def activations(
    path: str | os.PathLike[str],
    functions: Mapping[str, Function] | None = None,
    title: str = "",
) -> None:
    """Each function (blue) with its gradient (red, dashed) from -6 to 6; the ground is shaded where
    it is saturated: less than 1 % of the gradient passes, so that what is before does not learn.

    Args:
        path: the PNG file to write.
        functions: names and functions of a tensor, elementwise; by default those of the lecture
            (sigmoid, tanh, ReLU, leaky and parametric ReLU) and ELU, SiLU, GELU and softplus.

    ValueError if there are none.
    """
    chosen = ACTIVATIONS if functions is None else functions
    if not chosen:
        raise ValueError("[activations] functions must not be empty. Got none.")
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(2.5 * columns, 1.9 * rows + 0.4, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, function) in zip(panels, chosen.items()):
        _panel(axes, name, function)
    for spare in panels[len(chosen) :]:
        spare.set_axis_off()
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    write(figure, path)


def _panel(axes: Any, name: str, function: Function) -> None:
    x = np.linspace(-REACH, REACH, 481)
    y, slope = curve(function, x)
    axes.fill_between(
        x, 0, 1, where=saturated(slope), transform=axes.get_xaxis_transform(),
        color=COLOURS[1], alpha=0.3, linewidth=0, label="gradient below 0.01",
    )  # fmt: skip
    axes.axhline(0, color="#AAAAAA", linewidth=0.7)
    axes.axvline(0, color="#AAAAAA", linewidth=0.7)
    axes.plot(x, y, color=BLUE, label="value")
    axes.plot(x, slope, color=VERMILION, linestyle="--", label="gradient")
    axes.set_ylim(-1.25, 2.25)
    axes.set_xlim(-REACH, REACH)
    axes.set_xticks([-6, -3, 0, 3, 6])
    axes.set_yticks([-1, 0, 1, 2])
    axes.tick_params(labelsize=8)
    axes.set_title(name, fontsize=9)
