"""What was computed, with every intermediate value and gradient: the A, B, C, D, E of the lecture.

The tape keeps what the backward pass needs and no more. A recording keeps every result beside it.
"""

from __future__ import annotations

import itertools
import os
import re
import string
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convgrad.autograd import Op, describe, run_backward
from convgrad.backend import host
from convgrad.tensor import Tensor
from convgrad.viz import drawing

__all__ = ["Graph", "Node", "record"]

FUNCTIONS = ("convgrad.functional.", "convgrad.penalty")  # where they are defined
INFIX = {"MatMul": "@", "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Pow": "**"}


@dataclass(frozen=True)
class Node:
    """One value of a graph.

    Attributes:
        name: "A", "B", ... in forward order, or as given.
        formula: what it was computed by, as in "W1 @ B"; empty for what was given.
        inputs: the nodes it was computed from, by their place in :attr:`Graph.nodes`.
        value: a copy of it, in C order.
        gradient: of the loss with respect to it, of the same shape; None if it needs none.
    """

    name: str
    formula: str
    inputs: tuple[int, ...]
    value: np.ndarray
    gradient: np.ndarray | None


@dataclass(frozen=True)
class Graph:
    """The computational graph of a loss: ``nodes`` in forward order, the loss last."""

    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Node:
        """The node of this name; KeyError lists the names there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"[graph] The names are {', '.join(n.name for n in self.nodes)}.")

    def __str__(self) -> str:
        """A line per node: what it is, its value, its gradient."""
        return drawing.as_text(self)

    def mermaid(self) -> str:
        """As Mermaid text, which GitHub and many editors draw: formula, shape, value, gradient."""
        return drawing.mermaid(self)

    def draw(self, path: str | os.PathLike[str], title: str = "") -> None:
        """As a PNG file, forwards from top to bottom: values are blue, gradients red.

        ValueError for more than 60 nodes.
        """
        drawing.draw(self, path, title)


class _Call(NamedTuple):
    """One call of an operation: tensors are kept, so that their identities stay theirs."""

    op: type[Op]
    name: str
    inputs: tuple[Any, ...]
    params: tuple[Any, ...]
    outputs: tuple[Tensor, ...]


_lock = threading.Lock()
_running: list[record] = []


def _recorded_apply(cls: type[Op], inputs: Any, /, *params: Any) -> Any:
    """Op.apply while there is a recording."""
    out = super(Op, cls).apply(inputs, *params)
    outputs = out if isinstance(out, tuple) else (out,)
    call = _Call(cls, _function_name(cls, params), tuple(inputs), params, outputs)
    for recording in list(_running):
        if recording.thread == threading.get_ident():
            recording.calls.append(call)
    return out


def _function_name(op: type[Op], params: tuple[Any, ...]) -> str:
    """Of the public function that makes this call, such as 'conv2d'; else the operation's."""
    if params and isinstance(params[0], type):  # a Function of the user's own
        return params[0].__name__
    frame = sys._getframe(2)  # behind _recorded_apply
    while frame is not None and frame.f_globals["__name__"].startswith(FUNCTIONS):
        name = frame.f_code.co_name
        if not name.startswith("_"):
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op.__name__).lower()


class record:
    """``with viz.record() as tape:`` keeps every operation of this thread, and its results.

    ::

        with viz.record() as tape:
            loss = F.mse_loss(w @ x, t)
        graph = tape.graph(loss, {"w": w, "x": x, "t": t})  # before loss.backward()
        print(graph["A"].value, graph["A"].gradient, graph.mermaid())
        graph.draw("graph.png")

    Outside of it nothing is slower. Inside, results that would have been computed together with
    what follows are still the same bits, and none is released before the recording is.
    """

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.thread = 0

    def __enter__(self) -> record:
        self.thread = threading.get_ident()
        with _lock:
            if not _running:
                Op.apply = classmethod(_recorded_apply)  # type: ignore[assignment]
            _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _running.remove(self)
            if not _running:
                del Op.apply  # the base class's again

    def graph(self, loss: Tensor, names: Mapping[str, Tensor] | None = None) -> Graph:
        """Everything that ``loss`` was computed from, with values and gradients.

        Args:
            loss: one number, computed inside the recording. The tape is walked for the gradients
                and stays: ``loss.backward()`` can follow, and no ``.grad`` changes.
            names: what tensors are called, such as ``dict(model.named_parameters())``. Results
                without a name are A, B, C, ... in forward order, the loss "loss", parameters p0,
                p1, ..., constants c0, c1, ...

        RuntimeError if the loss was computed elsewhere, requires no gradient, or was walked
        already; ValueError for a name of a tensor that the loss does not come from.
        """
        _check_loss(loss)
        made = {_key(t): (call, i) for call in self.calls for i, t in enumerate(call.outputs)}
        if _key(loss) not in made:
            raise RuntimeError(
                "[graph] The loss must be computed inside `with viz.record() as tape:`. Got one "
                "that no recorded call returned."
            )
        order = _forward_order(loss, made)
        titles = _titles(loss, order, made, names or {})
        places = {key: i for i, key in enumerate(order)}
        gradients = _gradients(loss, order.values())
        return Graph(
            tuple(
                Node(
                    titles[key],
                    _formula(*made[key], titles) if key in made else "",
                    tuple(places[_key(t)] for t in _tensors(made[key][0])) if key in made else (),
                    _copy(tensor.array),
                    gradients.get(key),
                )
                for key, tensor in order.items()
            )
        )


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"[graph] loss must be a tensor of one element. Got {describe(loss)}.")
    if loss.node is None:
        raise RuntimeError(
            "[graph] The loss must be computed from a tensor with requires_grad=True. Got one that "
            "requires no gradient."
        )
    if loss.node.edges is None:
        raise RuntimeError(
            "[graph] The graph of this loss was already walked and its saved arrays freed: ask "
            "for it before loss.backward()."
        )


def _key(tensor: Tensor) -> tuple[int, int]:
    """What tells a value from others: its place on the tape, or for a leaf the tensor itself."""
    return (id(tensor), -1) if tensor.node is None else (id(tensor.node), tensor.index)


def _tensors(call: _Call) -> list[Tensor]:
    return [t for t in call.inputs if isinstance(t, Tensor)]


Key = tuple[int, int]
Made = dict[Key, tuple[_Call, int]]


def _forward_order(loss: Tensor, made: Made) -> dict[Key, Tensor]:
    """What the loss comes from: what was given when it was first used, results when computed."""
    wanted = {_key(loss)}
    reached = []
    calls = {id(call): call for call, _ in made.values()}
    for call in reversed(calls.values()):
        if any(_key(t) in wanted for t in call.outputs):
            reached.append(call)
            wanted |= {_key(t) for t in _tensors(call)}
    order: dict[Key, Tensor] = {}
    for call in reversed(reached):
        for tensor in (*_tensors(call), *call.outputs):
            if _key(tensor) in wanted:
                order.setdefault(_key(tensor), tensor)
    return order


def _titles(
    loss: Tensor, order: Mapping[Key, Tensor], made: Made, names: Mapping[str, Tensor]
) -> dict[Key, str]:
    """A name for each value, no two alike."""
    titles = {}
    for name, tensor in names.items():
        if not isinstance(tensor, Tensor) or _key(tensor) not in order:
            raise ValueError(
                f"[graph] names must be of tensors that the loss was computed from. Got {name!r}: "
                f"{describe(tensor)}."
            )
        titles[_key(tensor)] = name
    titles.setdefault(_key(loss), "loss")
    taken = set(titles.values())

    def free(candidates: Iterator[str]) -> Iterator[str]:
        return (name for name in candidates if name not in taken)

    letters, parameters = free(_letters()), free(f"p{i}" for i in itertools.count())
    constants = free(f"c{i}" for i in itertools.count())
    for key, tensor in order.items():
        if key not in titles:
            kind = letters if key in made else parameters if tensor.requires_grad else constants
            titles[key] = next(kind)
    return titles


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def _gradients(loss: Tensor, tensors: Any) -> dict[Key, np.ndarray]:
    """Of the loss with respect to each tensor that has one."""
    places = {_key(t): (t if t.node is None else t.node, t.index) for t in tensors}
    needed = {_key(t) for t in tensors if t.requires_grad}
    wanted: dict[tuple[Any, int], Any] = {places[key]: None for key in needed}
    run_backward((loss,), (loss._start_gradient(None),), True, wanted)
    found = {key: wanted[places[key]] for key in needed}
    return {key: _copy(gradient) for key, gradient in found.items() if gradient is not None}


def _copy(array: Any) -> np.ndarray:
    return np.array(host(array), order="C")


def _formula(call: _Call, index: int, titles: Mapping[Key, str]) -> str:
    """As one would write it: 'W1 @ B', 'sigmoid(A)', 'relu(conv(x, W, b))'."""
    given = [t for t in call.inputs if t is not None]
    words = [titles[_key(t)] if isinstance(t, Tensor) else _literal(t) for t in given]
    symbol = INFIX.get(call.op.__name__)
    if symbol and len(words) == 2 and not call.params:
        return f" {symbol} ".join(words)
    text = f"{call.name}({', '.join(words)})"
    node = call.outputs[index].node
    if node is not None and node.rectified and not call.op.rectified:
        text = f"relu({text})"  # computed in the same pass
    return text if len(call.outputs) == 1 else f"{text}[{index}]"


def _literal(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
