"""The tape: what was computed, and how gradients walk back through it.

Each differentiable operation is a subclass of :class:`Op`, its forward and backward side by side.
One instance is one call: it keeps what its backward needs and knows where its inputs came from.
There are no closures and no reference cycles; dropping the last tensor of a graph frees the graph.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from convgrad import backend

if TYPE_CHECKING:
    from convgrad.tensor import Tensor
else:
    Tensor = None  # set by tensor.py, which imports this module

__all__ = ["Op", "enable_grad", "grad", "is_grad_enabled", "no_grad", "run_backward"]

Array = Any  # a backend's array: numpy.ndarray, one day cupy.ndarray


class _GradMode(threading.local):
    enabled = True


_mode = _GradMode()


def is_grad_enabled() -> bool:
    """Whether operations are recorded, in this thread."""
    return _mode.enabled


F = TypeVar("F", bound=Callable[..., Any])


class _set_grad_mode:
    """A context manager and decorator; remembers the mode per use, so that it nests."""

    enabled = True

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_mode.enabled)
        _mode.enabled = self.enabled

    def __exit__(self, *_: object) -> None:
        _mode.enabled = self._before.pop()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with type(self)():
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


class no_grad(_set_grad_mode):
    """``with no_grad():`` or ``@no_grad()``: nothing is recorded, in this thread."""

    enabled = False


class enable_grad(_set_grad_mode):
    """``with enable_grad():`` or ``@enable_grad()``: record again inside ``no_grad``."""

    enabled = True


class Op:
    """One differentiable operation; an instance is one call of it, a node of the tape.

    A subclass defines ``forward(self, *arrays, *params)``, which returns an array (or a tuple of
    them) and puts what backward needs into ``self.saved`` (arrays) or plain attributes, and
    ``backward(self, dy)``, which returns a gradient array or None per input, in order (or the bare
    gradient when there is one input). ``self.needs[i]`` says whether input i wants a gradient.

    ``fresh = True`` promises that backward's arrays are new and referenced nowhere else, so that a
    leaf may keep them without a copy.
    """

    fresh = False
    outputs = 1
    saved: tuple[Any, ...] = ()
    needs: tuple[bool, ...] = ()
    edges: tuple[Any, ...] | None = None  # per input: (Op or leaf Tensor, output index) or None
    guards: tuple[Any, ...] = ()

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError

    def backward(self, *dy: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def apply(cls, inputs: Sequence[Any], *params: Any) -> Any:
        """Runs the op on tensors (or None, or plain numbers) and records it if any needs it."""
        node = cls()
        needs = tuple([isinstance(t, Tensor) and t.requires_grad for t in inputs])
        record = _mode.enabled and True in needs
        node.needs = needs if record else (False,) * len(needs)
        out = node.forward(*[t.array if isinstance(t, Tensor) else t for t in inputs], *params)
        if not record:
            if isinstance(out, tuple):
                return tuple([Tensor(a) for a in out])
            return Tensor(out)
        node.edges = tuple(
            [
                None if not need else (t, 0) if t.node is None else (t.node, t.index)
                for t, need in zip(inputs, needs)
            ]
        )
        if node.saved:
            node._guard(inputs)
        if isinstance(out, tuple):
            node.outputs = len(out)
            return tuple([_output(a, node, i) for i, a in enumerate(out)])
        return _output(out, node, 0)

    def _guard(self, inputs: Sequence[Any]) -> None:
        """Remembers the versions of saved leaves: a later change in place must be noticed."""
        guards = [
            (t.version, t.version[0], t.array.shape)
            for t in inputs
            if isinstance(t, Tensor) and t.node is None and any(t.array is a for a in self.saved)
        ]
        if guards:
            self.guards = tuple(guards)

    def run_backward(self, grads: list[Any]) -> tuple[Any, ...]:
        """Checks that the saved arrays are still what they were, and calls backward."""
        if self.edges is None:
            raise RuntimeError(
                f"[backward] The graph of this {type(self).__name__} was already walked and its "
                "saved arrays freed. Pass retain_graph=True to the first backward() to walk it "
                "twice."
            )
        for version, before, shape in self.guards:
            if version[0] != before:
                raise RuntimeError(
                    f"[backward] A tensor of shape {shape} saved by {type(self).__name__} was "
                    f"changed in place: it is at version {version[0]}, the forward pass saw "
                    f"{before}."
                )
        with no_grad():
            out = self.backward(*grads)
        return out if isinstance(out, tuple) else (out,)

    def release(self) -> None:
        """Frees everything the forward pass kept."""
        self.__dict__.clear()


def _output(array: Array, node: Op, index: int) -> Tensor:
    t = Tensor(array)
    # Integer results (indices) never carry gradients.
    if array.dtype.kind == "f":
        t.requires_grad = True
        t.node = node
        t.index = index
    return t


def _count_uses(roots: Sequence[Any]) -> dict[Any, int]:
    """How many edges lead to each node and leaf reachable from the roots (iteratively)."""
    uses: dict[Any, int] = {}
    stack = list(roots)
    for root in roots:
        uses[root] = uses.get(root, 0) + 1
    seen = set(roots)
    stack = list(seen)
    while stack:
        target = stack.pop()
        if not isinstance(target, Op) or target.edges is None:
            continue
        for edge in target.edges:
            if edge is None:
                continue
            uses[edge[0]] = uses.get(edge[0], 0) + 1
            if edge[0] not in seen:
                seen.add(edge[0])
                stack.append(edge[0])
    return uses


def run_backward(
    tensors: Sequence[Tensor],
    gradients: Sequence[Array],
    retain_graph: bool,
    wanted: dict[tuple[Any, int], Array | None] | None = None,
) -> None:
    """Walks the graph from ``tensors`` back, each node once, after all of its consumers.

    Leaves accumulate into ``.grad``; with ``wanted`` (keys: (node or leaf, output index)) nothing
    accumulates and the gradients of those places are put there instead.
    """
    targets = [t if t.node is None else t.node for t in tensors]
    uses = _count_uses(targets)
    # Per target: a gradient per output, and whether the sum is ours to add into.
    pending: dict[Any, list[Any]] = {}
    ready: list[Any] = []

    def arrive(target: Any, index: int, gradient: Array | None, ours: bool) -> None:
        slots = pending.get(target)
        if slots is None:
            outputs = target.outputs if isinstance(target, Op) else 1
            slots = pending[target] = [None, False] * outputs
        if gradient is not None:
            if slots[2 * index] is None:
                slots[2 * index], slots[2 * index + 1] = gradient, ours
            else:
                slots[2 * index] = backend.of(gradient).lib.add(slots[2 * index], gradient)
                slots[2 * index + 1] = True
        uses[target] -= 1
        if uses[target] == 0:
            ready.append(target)

    # A root given twice counts twice, so it becomes ready only when both have arrived.
    for t, target, gradient in zip(tensors, targets, gradients):
        arrive(target, t.index, gradient, False)

    while ready:
        target = ready.pop()
        slots = pending.pop(target)
        if wanted is not None:
            for index in range(len(slots) // 2):
                if (target, index) in wanted:
                    wanted[target, index] = slots[2 * index]
        if not isinstance(target, Op):
            if wanted is None and slots[0] is not None:
                target._accumulate(slots[0], owned=slots[1])
            continue
        grads = slots[::2]
        if any(g is not None for g in grads):
            inputs = target.run_backward(grads)
        else:
            inputs = (None,) * len(target.edges or ())
        edges, fresh = target.edges, target.fresh
        if not retain_graph:
            target.release()
        del slots, grads
        for edge, gradient in zip(edges or (), inputs):
            if edge is not None:
                arrive(edge[0], edge[1], gradient, fresh)
        del inputs


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    retain_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``outputs`` with respect to ``inputs``, returned instead of accumulated.

    Args as ``torch.autograd.grad``; there is no double backward. An input that the outputs do not
    depend on raises unless ``allow_unused``, which gives None for it.
    """
    outs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    ins = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor):
        given: Sequence[Any] = (grad_outputs,) * len(outs)
    else:
        given = tuple(grad_outputs)
    if len(given) != len(outs):
        raise ValueError(
            f"[grad] grad_outputs must have one entry per output, {len(outs)}. Got {len(given)}."
        )
    for t in ins:
        if not t.requires_grad:
            raise RuntimeError("[grad] One of the inputs does not require a gradient.")
    wanted: dict[tuple[Any, int], Array | None] = {
        (t if t.node is None else t.node, t.index): None for t in ins
    }
    run_backward(outs, [t._start_gradient(g) for t, g in zip(outs, given)], retain_graph, wanted)
    result = [wanted[t if t.node is None else t.node, t.index] for t in ins]
    if not allow_unused and any(g is None for g in result):
        missing = [i for i, g in enumerate(result) if g is None]
        raise RuntimeError(
            f"[grad] The outputs do not depend on input {missing}. Pass allow_unused=True to get "
            "None for it."
        )
    return tuple([None if g is None else Tensor(g) for g in result])
