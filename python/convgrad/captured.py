"""Training steps as CUDA graphs: ``cuda.capture``."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from convgrad.tensor import Tensor  # the first: what it imports imports mixed_precision

# isort: split
from convgrad import _tape
from convgrad.backend import CudaBackend, is_array, of
from convgrad.capturing import Recorder, recorder, recording
from convgrad.mixed_precision import autocast_dtype, own_casts

__all__ = ["CapturedStep", "capture"]

Step = Callable[..., Any]


def capture(step: Step | None = None, *, warmup: int = 3) -> Any:
    """The training step as a CUDA graph, which a call replays: for networks so small that
    launching kernels takes longer than running them.

    ``step(*args)`` holds all that happens between two batches: zero_grad, forward pass, loss,
    backward, optimizer.step. The result is called as the step itself, and does the same to the
    last bit: its first ``warmup`` calls run the step, the next one captures it, and from then on
    the arguments are copied into the graph's own and the graph is replayed. Tensors and tuples,
    lists and dicts of them may be arguments and results; whatever else an argument is, and each new
    shape or dtype, starts a graph of its own after as many calls. Also a decorator,
    ``@cg.cuda.capture``.

    - Results are the graph's own: the next call overwrites them. ``clone()`` what is to be kept.
    - What Python decides is decided once, by the call that captures: print, if, counters, a
      module's train() and eval().
    - Learning rates and other options of the optimizers, and random draws of dropout, are brought
      up to date for each call; schedulers step outside.
    - What reads values (``item()``, ``numpy()``, ``if loss > 1``), or copies from the host, is a
      RuntimeError that names it.
    - All of it happens on one GPU. With arguments on the CPU the step is called as it is.

    ValueError unless ``warmup`` >= 1: optimizers make their buffers in their first step, and
    kernels are loaded.
    """
    if not isinstance(warmup, int) or warmup < 1:
        raise ValueError(f"[capture] warmup must be an int >= 1. Got {warmup!r}.")
    if step is None:
        return functools.partial(capture, warmup=warmup)
    if not callable(step):
        raise TypeError(f"[capture] step must be callable. Got {type(step).__name__}.")
    return CapturedStep(step, warmup)


class CapturedStep:
    """What :func:`capture` returns."""

    def __init__(self, step: Step, warmup: int) -> None:
        functools.update_wrapper(self, step, updated=())
        self.step = step
        self.warmup = warmup
        self._graphs: dict[Any, _Graph] = {}  # by the arguments' structure, shapes and dtypes

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        form = _flattened((args, kwargs), tensors)
        backend = _backend_of(tensors)
        if backend is None or recorder() is not None:  # in another captured step: part of that
            return self.step(*args, **kwargs)
        key = backend.index, _tape.is_recording(), autocast_dtype(), form
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _Graph(self.step, backend, form, self.warmup)
        return graph.call(tensors)


# ---- arguments and results ----


def _flattened(value: Any, tensors: list[Tensor]) -> Any:
    """The value's structure, hashable, its tensors put into the list."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                "[capture] An argument must not require a gradient: detach() it. Got one of shape "
                f"{value.shape}."
            )
        tensors.append(value)
        return Tensor, value.shape, value.dtype
    if is_array(value):
        raise TypeError("[capture] Arguments must be tensors. Got an array; cg.tensor() makes one.")
    if isinstance(value, (tuple, list)):
        return type(value), tuple([_flattened(v, tensors) for v in value])
    if isinstance(value, dict):
        return dict, tuple([(k, _flattened(v, tensors)) for k, v in value.items()])
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"[capture] An argument that is no tensor must be hashable. Got {type(value).__name__}."
        ) from None
    return None, type(value), value


def _rebuilt(form: Any, tensors: list[Tensor]) -> Any:
    """The value of a structure, taking its tensors from the front of the list."""
    kind, *about = form
    if kind is Tensor:
        return tensors.pop(0)
    if kind is dict:
        return {k: _rebuilt(v, tensors) for k, v in about[0]}
    if kind is None:
        return about[1]
    parts = [_rebuilt(v, tensors) for v in about[0]]
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def _detached(value: Any, tensors: list[Tensor]) -> Any:
    """The value with its tensors computed and off the tape; they are put into the list."""
    if isinstance(value, Tensor):
        tensors.append(Tensor(value.array))
        return tensors[-1]
    if isinstance(value, (tuple, list)):
        parts = [_detached(v, tensors) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {k: _detached(v, tensors) for k, v in value.items()}
    return value


def _backend_of(tensors: list[Tensor]) -> CudaBackend | None:
    """The GPU that all tensors are on, None for the CPU."""
    if not tensors:
        raise ValueError("[capture] At least one argument must be a tensor. Got none.")
    found = {of(t.array) for t in tensors}
    if len(found) > 1:
        names = " and ".join(sorted([b.device for b in found]))
        raise ValueError(f"[capture] All arguments must be on one device. Got {names}.")
    (backend,) = found
    return backend if isinstance(backend, CudaBackend) else None


# ---- the graph ----


class _Graph:
    """One step, for arguments of one form.

    Everything that the step allocates comes from a memory pool of its own, kept as long as the
    graph: what dies in the step is used again by the step alone, and no other work gets to write
    where a replay does.
    """

    def __init__(self, step: Step, backend: CudaBackend, form: Any, warmup: int) -> None:
        cuda = backend.xp.cuda
        self.step, self.backend, self.form, self.warmup = step, backend, form, warmup
        self.pool = cuda.MemoryPool()
        with backend.current():
            # Not ordered with the default stream but by events: that one may be in use elsewhere.
            self.stream = cuda.Stream(non_blocking=True)
        self.graph: Any = None
        self.used_on: Any = None  # the stream of the last call, and where it had got to
        self.done: Any = None

    def call(self, tensors: list[Tensor]) -> Any:
        with self.backend.current():
            if self.graph is None and self.warmup > 0:
                self.warmup -= 1
                return self._warm_up(tensors)
            if self.graph is None:
                self._capture(tensors)
            return self._replay(tensors)

    def _run(self, tensors: list[Tensor], results: list[Tensor]) -> Any:
        """The step's result; its tensors are put into the second list."""
        args, kwargs = _rebuilt(self.form, list(tensors))
        with own_casts():  # a cast made before would be the parameter's value of then
            return _detached(self.step(*args, **kwargs), results)

    def _warm_up(self, tensors: list[Tensor]) -> Any:
        """The step itself, between two events of the caller's stream."""
        cuda = self.backend.xp.cuda
        here = cuda.get_current_stream()
        self.stream.wait_event(here.record())
        with cuda.using_allocator(self.pool.malloc), self.stream:
            result = self._run(tensors, [])
        here.wait_event(self.stream.record())
        return result

    def _capture(self, tensors: list[Tensor]) -> None:
        cuda = self.backend.xp.cuda
        self.recorder = Recorder(self.backend)
        results: list[Tensor] = []

        def malloc(size: int) -> Any:
            memory = self.pool.malloc(size)
            self.recorder.allocated.add(memory.ptr)
            return memory

        with cuda.using_allocator(malloc), self.stream:
            self.inputs = [Tensor(self.backend.empty(t.shape, t.dtype)) for t in tensors]
            self.stream.begin_capture()
            try:
                with recording(self.recorder):
                    self.result = self._run(self.inputs, results)
            except BaseException:
                self._abandon()
                raise
            self.graph = self.stream.end_capture()
        self.recorder.changed += [t.version for t in results]

    def _abandon(self) -> None:
        """Ends a capture that failed; CUDA may say so once more."""
        try:
            self.stream.end_capture()
        except Exception:  # the step's own error is on its way
            return

    def _replay(self, tensors: list[Tensor]) -> Any:
        here = self.backend.xp.cuda.get_current_stream()
        if self.used_on is not None and self.used_on != here:
            here.wait_event(self.done)
        for own, given in zip(self.inputs, tensors):
            if own.array is not given.array:
                own.array[...] = given.array
        self.recorder.refresh()
        self.graph.launch(here)
        self.used_on, self.done = here, here.record(self.done)
        return self.result
