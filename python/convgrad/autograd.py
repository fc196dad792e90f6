"""The tape: what was computed, and how gradients walk back through it.

Each differentiable operation is a subclass of :class:`Op`, its forward and backward side by side.
One instance is one call: it keeps what its backward needs and knows where its inputs came from.
There are no closures and no reference cycles; dropping the last tensor of a graph frees the graph.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from convgrad import _tape
from convgrad.backend import lib_of, of
from convgrad.deferred import Pending

if TYPE_CHECKING:
    from convgrad.tensor import Deferred, Tensor
else:
    Tensor = None  # see connect()

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


def is_grad_enabled() -> bool:
    """Whether operations are recorded, in this thread."""
    return _tape.is_recording()


F = TypeVar("F", bound=Callable[..., Any])


class _set_grad_mode:
    """A context manager and decorator; remembers the mode per use, so that it nests."""

    enabled = True

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_tape.set_recording(self.enabled))

    def __exit__(self, *_: object) -> None:
        _tape.set_recording(self._before.pop())

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
        self._outer = _tape.set_recording(self.enabled)

    def __enter__(self) -> None:
        self._before.append(self._outer)
        _tape.set_recording(self.enabled)

    def __call__(self, function: F) -> F:
        _tape.set_recording(self._outer)
        mode = self.enabled

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(mode):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


class Op(_tape.OpBase):
    """One differentiable operation; an instance is one call of it, a node of the tape.

    A subclass defines ``forward(self, *arrays, *params)``, which returns an array (or a tuple of
    them) and puts what backward needs into ``self.saved`` (a tuple of arrays) or plain attributes,
    and ``backward(self, dy)``, which returns a gradient array or None per input, in order (or the
    bare gradient when there is one input). ``self.needs[i]`` says whether input i wants a gradient.

    ``apply(inputs, *params)`` runs the op on tensors (or None, or plain numbers) and records it if
    any needs it: then ``edges`` say where the inputs came from, per input (Op or leaf Tensor,
    output index) or None. ``apply`` and the walk back are csrc/tape/.

    ``absorbs = True``: forward takes inputs that are not computed yet, as deferred.Pending.
    ``fresh = True`` promises that backward's arrays are new and referenced nowhere else, so that a
    leaf may keep them without a copy. ``view = True`` says that the output may lie in the first
    input's memory.

    A ReLU's backward pass is a mask: the gradient counts only where the output is positive. An op
    after a ReLU can often apply it while it writes its gradient, which saves a pass over memory.
    ``rectified`` says that the (only) output is a ReLU's; ``can_mask``, that backward is able to
    drop the gradient of the first input where that input is <= 0; ``after_relu``, that the first
    input is such an output. Whether it shall in this walk is ``masks``.

    For each walk, too: ``owned``, whether the gradient handed to backward is this op's alone, to
    write on as it likes, and ``masked``, whether all that were added up in it are masked by the
    output already.
    """

    absorbs = False
    fresh = False
    view = False
    rectified = False
    can_mask = False

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError

    def backward(self, *dy: Any) -> Any:
        raise NotImplementedError


def _refused(error: Exception, op: type[Op], inputs: Sequence[Any]) -> Exception | None:
    """What to raise for an error in an op's forward that is in NumPy's or pybind11's words: the
    public function's name, and every argument it got. None if the words are the library's own, or
    the user's."""
    if op is _Call:
        return None
    devices = sorted({str(t.device) for t in inputs if isinstance(t, Tensor)})
    if len(devices) > 1:
        return ValueError(
            f"[{_public_caller().f_code.co_name}] All tensors must be on one device. Got "
            f"{' and '.join(devices)}."
        )
    text = str(error)
    if "which CUDA alone" in text:  # an array of 16 bits on the CPU
        return TypeError(f"[{_public_caller().f_code.co_name}] {text.partition('] ')[2]}")
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
    frame = sys._getframe(2)  # behind _refused; apply is not a Python frame
    while frame.f_code.co_name.startswith("_") and frame.f_back is not None:
        frame = frame.f_back
    return frame


def describe(value: Any) -> str:
    """A value as error messages show it: tensors and arrays by dtype and shape."""
    if isinstance(value, Tensor):
        return f"Tensor {value.dtype} {value.shape}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    _tape.walk(tensors, gradients, retain_graph, wanted)


# ---- what the walk (csrc/tape/) calls where it is not the plain case ----


def _sum(total: Array, gradient: Array, owned: bool) -> Array:
    """total + gradient, written into ``total`` if it is ours and fits."""
    lib = lib_of(gradient)
    if owned and lib.is_channels_last(total) and lib.is_channels_last(gradient):
        return lib.add(total, gradient, total)
    return lib.add(total, gradient)


def _hooked(op: Op, gradients: list[Any]) -> list[Any]:
    """The gradients of an op's outputs after the hooks on these."""
    hooks = op.hooks or {}
    return [
        g if g is None or i not in hooks else run_hooks(hooks[i], g)
        for i, g in enumerate(gradients)
    ]


def _collect(
    target: Any, gradients: list[Any], wanted: dict[tuple[Any, int], Array | None]
) -> None:
    """Copies what is wanted of the gradients of a leaf, or of an op's outputs."""
    for index, gradient in enumerate(gradients):
        if gradient is not None and (target, index) in wanted:
            hooks = target.hooks if isinstance(target, Tensor) else None
            if hooks:
                gradient = run_hooks(hooks, gradient)
            wanted[target, index] = copied(gradient)


def connect(tensor: type[Tensor], deferred: type[Deferred]) -> None:
    """Tells this module, and the tape, of the classes of tensor.py, which imports it."""
    global Tensor
    Tensor = tensor  # type: ignore[misc]
    _tape.connect(
        tensor=tensor,
        deferred=deferred,
        pending=Pending,
        refused=_refused,
        total=_sum,
        hooked=_hooked,
        collect=_collect,
    )


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
