"""The tape: what was computed, and how gradients walk back through it.

Each differentiable operation is a subclass of :class:`Op`, its forward and backward side by side.
One instance is one call: it keeps what its backward needs and knows where its inputs came from.
There are no closures and no reference cycles; dropping the last tensor of a graph frees the graph.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from convgrad.backend import lib_of, of
from convgrad.deferred import Pending

if TYPE_CHECKING:
    from convgrad.tensor import Deferred, Tensor
else:
    Tensor = Deferred = None  # set by tensor.py, which imports this module

__all__ = [
    "Function",
    "FunctionContext",
    "Op",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "run_backward",
    "set_grad_enabled",
]

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


class set_grad_enabled(_set_grad_mode):
    """``with set_grad_enabled(mode):``, or a plain call: sets whether this thread records."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.enabled = bool(mode)
        # A plain call takes effect at once; used as a context, leaving it restores the mode.
        self._outer = _mode.enabled
        _mode.enabled = self.enabled

    def __enter__(self) -> None:
        self._before.append(self._outer)
        _mode.enabled = self.enabled

    def __call__(self, function: F) -> F:
        _mode.enabled = self._outer
        mode = self.enabled

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(mode):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


class Op:
    """One differentiable operation; an instance is one call of it, a node of the tape.

    A subclass defines ``forward(self, *arrays, *params)``, which returns an array (or a tuple of
    them) and puts what backward needs into ``self.saved`` (arrays) or plain attributes, and
    ``backward(self, dy)``, which returns a gradient array or None per input, in order (or the bare
    gradient when there is one input). ``self.needs[i]`` says whether input i wants a gradient.

    ``absorbs = True``: forward takes inputs that are not computed yet, as deferred.Pending.
    ``fresh = True`` promises that backward's arrays are new and referenced nowhere else, so that a
    leaf may keep them without a copy. ``view = True`` says that the output may lie in the first
    input's memory.

    A ReLU's backward pass is a mask: the gradient counts only where the output is positive. An op
    after a ReLU can often apply it while it writes its gradient, which saves a pass over memory.
    ``rectified`` says that the (only) output is a ReLU's; ``can_mask``, that backward is able to
    drop the gradient of the first input where that input is <= 0; ``after_relu``, that the first
    input is such an output. Whether it shall in this walk is ``masks``.
    """

    absorbs = False
    fresh = False
    view = False
    outputs = 1
    rectified = False
    can_mask = False
    after_relu = False
    # For each walk: see above; whether the gradient handed to backward is this op's alone, to write
    # on as it likes, and whether all that were added up in it are masked by the output already.
    masks = False
    owned = False
    masked = False
    saved: tuple[Any, ...] = ()
    needs: Sequence[bool] = ()
    edges: list[Any] | None = None  # per input: (Op or leaf Tensor, output index) or None
    guards: Sequence[Any] = ()  # (version, its count at the forward pass, id of the array)
    hooks: dict[int, dict[int, Any]] | None = None  # per output: gradient hooks

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError

    def backward(self, *dy: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def apply(cls, inputs: Sequence[Any], *params: Any) -> Any:
        """Runs the op on tensors (or None, or plain numbers) and records it if any needs it."""
        node = cls()
        absorbs = cls.absorbs
        enabled = _mode.enabled
        arrays: list[Any] = []
        needs: list[bool] = []
        edges: list[Any] = []
        record = False
        for t in inputs:
            if isinstance(t, Tensor):
                arrays.append(t.pending if absorbs and type(t) is Deferred else t.array)
                if enabled and t._requires_grad:
                    record = True
                    needs.append(True)
                    source = t.node
                    edges.append((t if source is None else source, t.index))
                    continue
            else:
                arrays.append(t)
            needs.append(False)
            edges.append(None)
        node.needs = needs
        if record and cls.can_mask and edges[0] is not None:
            node.after_relu = edges[0][0].rectified
        try:
            out = node.forward(*arrays, *params)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            refused = None if cls is _Call else _refused(error, inputs)
            if refused is None:
                raise
            raise refused from error
        if type(out) is tuple:
            outs = out
            result: Any = tuple([Tensor(array) for array in out])
            outputs = result
            node.outputs = len(out)
        else:
            outs = (out,)
            result = Deferred(out) if type(out) is Pending else Tensor(out)
            outputs = (result,)
        if cls.view:
            _share_version(inputs[0], outputs)
        if record:
            node.edges = edges
            for index, t in enumerate(outputs):
                if outs[index].dtype.kind == "f":  # integer results (indices) carry no gradients
                    t._requires_grad = True
                    t.node = node
                    t.index = index
            if node.saved:
                guards = []
                for t, array in zip((*inputs, *outputs), (*arrays, *outs)):
                    if isinstance(t, Tensor):
                        version = t.version
                        guards.append((version, version[0], id(array)))
                node.guards = guards
        return result

    def run_backward(self, grads: list[Any], owned: bool, masked: bool, masks: bool) -> Any:
        """Checks that the saved arrays are still what they were, and calls backward."""
        if self.edges is None:
            raise RuntimeError(
                f"[backward] The graph of this {type(self).__name__} was already walked and its "
                "saved arrays freed. Pass retain_graph=True to the first backward() to walk it "
                "twice."
            )
        for version, before, array_id in self.guards:
            if version[0] != before:
                self._raise_if_saved(version[0], before, array_id)
        if self.hooks is not None:
            grads = [
                g if g is None or i not in self.hooks else run_hooks(self.hooks[i], g)
                for i, g in enumerate(grads)
            ]
            owned = masked = False
        self.owned, self.masked, self.masks = owned, masked, masks
        return self.backward(*grads)

    def _raise_if_saved(self, now: int, before: int, array_id: int) -> None:
        """An array that is saved is alive, so its id is still its own."""
        for array in self.saved:
            if id(array) == array_id:
                raise RuntimeError(
                    f"[backward] A tensor of shape {array.shape} saved by {type(self).__name__} "
                    f"was changed in place: it is at version {now}, the forward pass saw {before}."
                )

    def release(self) -> None:
        """Frees everything the forward pass kept."""
        self.__dict__.clear()


def _refused(error: Exception, inputs: Sequence[Any]) -> Exception | None:
    """What to raise for an error in an op's forward that is in NumPy's or pybind11's words: the
    public function's name, and every argument it got. None if the words are the library's own."""
    devices = sorted({str(t.device) for t in inputs if isinstance(t, Tensor)})
    if len(devices) > 1:
        return ValueError(
            f"[{_public_caller().f_code.co_name}] All tensors must be on one device. Got "
            f"{' and '.join(devices)}."
        )
    text = str(error)
    inner = text.startswith(("[convgrad]", "[channels_last]", "[contiguous]"))
    if text.startswith("[") and not inner:
        return None
    kind = type(error)
    foreign = kind is AttributeError or inner
    foreign |= "incompatible function arguments" in text or "numpy" in kind.__module__
    known = (Tensor, int, float, np.generic, type(None))
    if not foreign and all(isinstance(t, known) for t in inputs):
        return None
    frame = _public_caller()
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    given = ", ".join(f"{n}={describe(frame.f_locals.get(n))}" for n in names)
    return TypeError(f"[{code.co_name}] An argument is of the wrong type. Got {given}.")


def _public_caller() -> Any:
    """The frame of the public function that called an op whose forward failed."""
    frame = sys._getframe(3)
    while frame.f_code.co_name.startswith("_") and frame.f_back is not None:
        frame = frame.f_back
    return frame


def describe(value: Any) -> str:
    """A value as error messages show it: tensors and arrays by dtype and shape."""
    if isinstance(value, Tensor):
        return f"Tensor {value.dtype} {value.shape}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _share_version(source: Tensor, outputs: Sequence[Tensor]) -> None:
    """Views are changed when their base is."""
    array = source.array
    for t in outputs:
        base = t.array.base
        if t.array is array or base is array or (base is not None and base is array.base):
            t.version = source.version


def run_hooks(hooks: dict[int, Any], gradient: Array) -> Array:
    """Each hook sees the gradient and may return another one of the same shape in its place."""
    for hook in list(hooks.values()):
        out = hook(Tensor(gradient))
        if out is None:
            continue
        if not isinstance(out, Tensor) or out.shape != gradient.shape:
            raise ValueError(
                "[register_hook] A hook must return None or a tensor of the gradient's shape, "
                f"{gradient.shape}. Got {out!r}."
            )
        gradient = out.array
    return gradient


def _count_uses(roots: Sequence[Any]) -> dict[Any, int]:
    """How many edges lead to each node and leaf reachable from the roots (iteratively)."""
    uses: dict[Any, int] = {}
    stack = []
    for root in roots:
        if root in uses:
            uses[root] += 1
        else:
            uses[root] = 1
            stack.append(root)
    while stack:
        target = stack.pop()
        edges = target.edges
        if edges is None:  # a leaf, or an op that was released
            continue
        for edge in edges:
            if edge is not None:
                source = edge[0]
                if source in uses:
                    uses[source] += 1
                else:
                    uses[source] = 1
                    stack.append(source)
    return uses


def run_backward(
    tensors: Sequence[Tensor],
    gradients: Sequence[Array],
    retain_graph: bool,
    wanted: dict[tuple[Any, int], Array | None] | None = None,
) -> None:
    """Walks the graph from ``tensors`` back, each node once, after all of its consumers.

    Leaves accumulate into ``.grad``; with ``wanted`` (keys: (node or leaf, output index)) nothing
    accumulates and copies of the gradients of those places are put there instead.
    """
    roots = [t if t.node is None else t.node for t in tensors]
    uses = _count_uses(roots)
    # Per target: a gradient per output; then whether the only one is ours to keep, and whether the
    # target's ReLU has masked it (see Op).
    pending: dict[Any, list[Any]] = {}
    ready: list[Any] = []
    # The roots' gradients arrive as those of a node before them would.
    edges: Any = [(root, t.index) for root, t in zip(roots, tensors)]
    inputs: Any = tuple(gradients)
    fresh = masks = False
    before, _mode.enabled = _mode.enabled, False
    try:
        while True:
            if type(inputs) is not tuple:
                inputs = (inputs,)
            for edge, gradient in zip(edges, inputs):
                if edge is None:
                    continue
                source, index = edge
                if gradient is not None:
                    slots = pending.get(source)
                    if slots is None:
                        slots = pending[source] = [None] * source.outputs
                        slots += (fresh, masks)
                    elif not masks:
                        slots[-1] = False
                    if slots[index] is None:
                        slots[index] = gradient
                    else:
                        slots[index] = _sum(slots[index], gradient, slots[-2])
                        slots[-2] = True
                masks = False  # of the first input alone
                left = uses[source] = uses[source] - 1
                if left == 0:
                    ready.append(source)
            del inputs
            gradient = slots = None  # keep no gradient alive longer than it is needed
            if not ready:
                return
            target = ready.pop()
            slots = pending.pop(target, None)
            if wanted is not None and slots is not None:
                _collect(target, slots, wanted)
            if isinstance(target, Tensor):
                if wanted is None and slots is not None:
                    target._accumulate(slots[0], slots[-2])
                edges = inputs = ()
                continue
            edges = target.edges or ()
            if slots is not None:
                masks = target.after_relu and _may_mask(edges[0], wanted)
                masked, owned = slots.pop(), slots.pop()
                inputs = target.run_backward(slots, owned, masked, masks)
            else:
                inputs = (None,) * len(edges)
            fresh = target.fresh
            if not retain_graph:
                target.release()
    finally:
        _mode.enabled = before


def _sum(total: Array, gradient: Array, owned: bool) -> Array:
    """total + gradient, written into ``total`` if it is ours and fits."""
    lib = lib_of(gradient)
    if owned and lib.is_channels_last(total) and lib.is_channels_last(gradient):
        return lib.add(total, gradient, total)
    return lib.add(total, gradient)


def _may_mask(edge: Any, wanted: dict[tuple[Any, int], Array | None] | None) -> bool:
    """Whether nobody looks at the gradient of the ReLU's output before the ReLU itself does."""
    return edge[0].hooks is None and (wanted is None or edge not in wanted)


def _collect(target: Any, slots: list[Any], wanted: dict[tuple[Any, int], Array | None]) -> None:
    for index, gradient in enumerate(slots[:-2]):
        if gradient is not None and (target, index) in wanted:
            hooks = target.hooks if isinstance(target, Tensor) else None
            if hooks:
                gradient = run_hooks(hooks, gradient)
            wanted[target, index] = copied(gradient)


def copied(array: Array) -> Array:
    """A new channels-last array with the values of ``array``."""
    out = lib_of(array).empty_like(array)
    out[...] = array
    return out


def refuse_create_graph(op: str, create_graph: bool) -> None:
    if create_graph:
        raise RuntimeError(
            f"[{op}] create_graph=True is not supported: convgrad has no double backward."
        )


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``outputs`` with respect to ``inputs``, returned instead of accumulated.

    Args as ``torch.autograd.grad``; there is no double backward (``create_graph`` raises). An input
    that the outputs do not depend on raises unless ``allow_unused``, which gives None for it.
    """
    refuse_create_graph("grad", create_graph)
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
    for i, t in enumerate(ins):
        if not t.requires_grad:
            raise RuntimeError(
                f"[grad] Input {i}, of shape {t.shape}, does not require a gradient."
            )
    wanted: dict[tuple[Any, int], Array | None] = {
        (t if t.node is None else t.node, t.index): None for t in ins
    }
    starts = [t._start_gradient(g) for t, g in zip(outs, given)]
    run_backward(outs, starts, bool(retain_graph), wanted)
    result = [wanted[t if t.node is None else t.node, t.index] for t in ins]
    missing = [i for i, g in enumerate(result) if g is None]
    if missing and not allow_unused:
        raise RuntimeError(
            f"[grad] The outputs do not depend on input {missing}. Pass allow_unused=True to get "
            "None for it."
        )
    return tuple([None if g is None else Tensor(g) for g in result])


# ---- ops of the user's own ----


class FunctionContext:
    """What a :class:`Function`'s forward hands to its backward; any attribute may be added."""

    def __init__(self, needs_input_grad: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs_input_grad)
        self._saved: tuple[Tensor | None, ...] = ()
        self._constant: set[int] = set()
        self._materialize = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps inputs, outputs or intermediate tensors. A change in place before backward raises.

        They come back detached, so that an output saved by the call that made it is no cycle.
        """
        self._saved = tuple([None if t is None else t.detach() for t in tensors])

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        return self._saved

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """These outputs carry no gradient."""
        self._constant = {id(t) for t in tensors}

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward sees zeros (the default) or None for an output nobody used."""
        self._materialize = value


class Function:
    """An operation of the user's own, as ``torch.autograd.Function``.

    A subclass defines the static methods ``forward(ctx, *args)``, on tensors, and
    ``backward(ctx, *grads)``, which returns a gradient tensor or None per argument of forward; it
    is called as ``MyFunction.apply(*args)``.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        raise NotImplementedError("[Function] A subclass must define forward(ctx, *args).")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("[Function] A subclass must define backward(ctx, *grads).")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        out = _Call.apply(args, cls, args)
        for t in out if isinstance(out, tuple) else (out,):
            if t.node is not None and t.index in t.node.constant:
                t.node, t._requires_grad = None, False
        return out


def _zeros(backend: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    out = backend.empty(shape, dtype)
    out[...] = 0
    return out


class _Call(Op):
    """A call of a :class:`Function`."""

    def forward(self, *args: Any) -> Any:
        self.function, inputs = args[-2:]
        self.inputs: list[Any] = [
            (t.shape, t.array.dtype) if isinstance(t, Tensor) else None for t in inputs
        ]
        self.context = FunctionContext(self.needs)
        with no_grad():
            out = self.function.forward(self.context, *inputs)
        outs = out if isinstance(out, tuple) else (out,)
        for t in outs:
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"[{self.function.__name__}] forward must return tensors. Got "
                    f"{type(t).__name__}."
                )
        self.saved = tuple([t.array for t in self.context._saved if t is not None])
        self.like = [(of(t.array), t.shape, t.array.dtype) for t in outs]
        self.constant = {i for i, t in enumerate(outs) if id(t) in self.context._constant}
        arrays = tuple([t.array for t in outs])
        return arrays if isinstance(out, tuple) else arrays[0]

    def backward(self, *dy: Array | None) -> tuple[Array | None, ...]:
        context = self.context
        grads = [
            Tensor(g) if g is not None else Tensor(_zeros(*like)) if context._materialize else None
            for g, like in zip(dy, self.like)
        ]
        out = self.function.backward(context, *grads)
        outs = out if isinstance(out, tuple) else (out,)
        name = self.function.__name__
        if len(outs) != len(self.inputs):
            raise RuntimeError(
                f"[{name}] backward must return one gradient (or None) per argument of forward, "
                f"{len(self.inputs)}. Got {len(outs)}."
            )
        return tuple(
            [
                self._checked(name, i, g) if need and g is not None else None
                for i, (g, need) in enumerate(zip(outs, self.needs))
            ]
        )

    def _checked(self, name: str, i: int, gradient: Any) -> Array:
        shape, dtype = self.inputs[i]
        if not isinstance(gradient, Tensor) or gradient.shape != shape:
            raise ValueError(
                f"[{name}] backward must return a tensor of shape {shape} for argument {i}. Got "
                f"{gradient!r}."
            )
        return gradient.array.astype(dtype, copy=False)
