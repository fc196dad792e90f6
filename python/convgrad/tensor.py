"""The tensor: an array, and where it came from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from convgrad import _tape, autograd, backend, capturing, dtypes
from convgrad.deferred import Pending
from convgrad.dtypes import FLOATS, is_half

__all__ = [
    "HookHandle",
    "Tensor",
    "array_of",
    "as_array",
    "as_tensor",
    "checked_dtype",
    "tensor",
]

Array = Any
# Tensor has methods of these names.
_bool = bool
_int = int
_float = float


class HookHandle:
    """What registering a hook returns; ``remove()`` takes the hook away again."""

    __slots__ = ("_hooks",)

    def __init__(self, hooks: dict[_int, Any], hook: Any) -> None:
        self._hooks = hooks
        hooks[id(self)] = hook

    def remove(self) -> None:
        self._hooks.pop(id(self), None)


class Tensor(_tape.TensorBase):
    """An array with a place on the tape; names and semantics are ``torch.Tensor``'s.

    ``array`` is the backend's own (NumPy, CuPy), physically channels-last where it is an activation
    or a weight: axis 1 has stride 1. ``node`` is the :class:`~convgrad.autograd.Op` that made it,
    None for a leaf, and ``index`` says which of the op's outputs it is. ``version`` is a list of
    one number shared by all tensors that share memory; changes in place count it up.
    """

    __slots__ = ()
    __array_priority__ = 1000  # numpy_array * tensor calls Tensor.__rmul__

    # ---- what it is ----

    @property
    def shape(self) -> tuple[_int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def device(self) -> backend.device:
        return backend.device(backend.of(self.array).device)

    @property
    def ndim(self) -> _int:
        return self.array.ndim

    @property
    def is_leaf(self) -> _bool:
        return self.node is None

    @property
    def grad_fn(self) -> autograd.Op | None:
        """The op that made the tensor."""
        return self.node

    @property
    def requires_grad(self) -> _bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: _bool) -> None:
        if value and self.array.dtype.kind not in FLOATS:
            raise TypeError(
                f"[requires_grad] Only float tensors can require gradients. Got {self.array.dtype}."
            )
        if self.node is not None and not value:
            raise RuntimeError(
                "[requires_grad] Only a leaf's flag can be taken away. Got a result of "
                f"{type(self.node).__name__}; use detach()."
            )
        self._requires_grad = _bool(value)

    def requires_grad_(self, requires_grad: _bool = True) -> Tensor:
        """Sets requires_grad; TypeError for tensors that are not float."""
        self.requires_grad = requires_grad
        return self

    @property
    def data(self) -> Tensor:
        """The same memory off the tape: ``detach()``. Assigning to it replaces the array."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.array = value.array
        self.version[0] += 1

    def size(self, dim: _int | None = None) -> Any:
        """The shape, or one entry of it."""
        return self.array.shape if dim is None else self.array.shape[dim]

    def dim(self) -> _int:
        """The number of axes."""
        return self.array.ndim

    def numel(self) -> _int:
        """The number of elements."""
        return self.array.size

    def element_size(self) -> _int:
        """Bytes per element."""
        return self.array.dtype.itemsize

    def is_floating_point(self) -> _bool:
        return self.array.dtype.kind in FLOATS

    def is_contiguous(self) -> _bool:
        """Whether the elements lie in row-major (C) order."""
        return self.array.flags.c_contiguous

    # ---- out of the library ----

    def item(self) -> Any:
        """The only element as a Python number; ValueError if there are more or none."""
        if self.array.size != 1:
            raise ValueError(f"[item] The tensor must have one element. Got shape {self.shape}.")
        return backend.host(self.array).item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return backend.host(self.array).tolist()

    def numpy(self, copy: _bool = False, *, force: _bool = False) -> np.ndarray:
        """The NumPy array: the tensor's own memory (strided, logical order), or a C-order copy;
        of a tensor on a GPU always a copy, float32 where the tensor has 16 bits.

        RuntimeError for a tensor that requires a gradient, unless forced: detach() it first.
        """
        if not force:
            self._refuse_gradient("numpy")
        array = backend.host(self.array)
        return np.array(array, order="C") if copy and array is self.array else array

    def _refuse_gradient(self, op: str) -> None:
        if self._requires_grad:
            raise RuntimeError(
                f"[{op}] A tensor that requires a gradient gives no array. Use "
                f"tensor.detach().numpy()."
            )

    def __array__(self, dtype: Any = None, copy: _bool | None = None) -> np.ndarray:
        array = self.numpy()
        converted = array if dtype is None else array.astype(dtype, copy=False)
        if copy is False and converted is not self.array:
            raise ValueError(
                f"[__array__] {self.dtype} on {self.device} as {dtype} needs a copy. Got "
                "copy=False."
            )
        return converted.copy() if copy and converted is self.array else converted

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._shared("__array_interface__").__array_interface__

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._shared("__cuda_array_interface__").__cuda_array_interface__

    def _shared(self, protocol: str) -> Array:
        """The array, for its memory to be shared by the protocol; AttributeError says that it
        cannot, as when a tensor on the CPU is asked for an interface of the GPU."""
        self._refuse_gradient(protocol)
        if not hasattr(self.array, protocol):
            raise AttributeError(f"[{protocol}] A tensor on {self.device} has none.")
        return self.array

    def __dlpack__(self, **kwargs: Any) -> Any:
        self._refuse_gradient("__dlpack__")
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[_int, _int]:
        return self.array.__dlpack_device__()

    def detach(self) -> Tensor:
        """The same memory off the tape: a leaf that requires no gradient."""
        out = Tensor(self.array)
        out.version = self.version
        return out

    def detach_(self) -> Tensor:
        """Takes this tensor off the tape."""
        self.node, self.index, self._requires_grad = None, 0, False
        return self

    def clone(self) -> Tensor:
        """A copy; gradients flow through."""
        return _math.Clone.apply((self,))

    def contiguous(self, memory_format: Any = None) -> Tensor:
        """itself: each op lays its inputs out as it needs them (DESIGN.md, "Layout")."""
        return self

    def to(
        self, *args: Any, dtype: Any = None, device: Any = None, copy: _bool = False, **_: Any
    ) -> Tensor:
        """``to(dtype)``, ``to(device)``, ``to(device, dtype)`` or ``to(other_tensor)``.

        itself if nothing changes and not copy; gradients flow through a conversion. Types of 16
        bits are GPUs' alone: on the CPU such a tensor becomes float32.
        """
        for arg in args:
            if isinstance(arg, Tensor):
                dtype, device = arg.dtype, arg.device
            elif isinstance(arg, str):
                device = arg
            elif not isinstance(arg, _bool):  # to(device, dtype, non_blocking, copy)
                dtype = arg
        out = self
        if device is not None:
            target = backend.by_device(device)
            if target is not backend.of(out.array):
                if target is backend.CPU and is_half(out.dtype):
                    out = _math.cast(out, _math.FLOAT32)
                out = _math.Move.apply((out,), target)
        if dtype is not None:
            out = _math.cast(out, checked_dtype("to", dtype, backend.of(out.array)))
        return out.clone() if copy and out is self else out

    def type(self, dtype: Any) -> Tensor:
        return self.to(dtype)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Tensor:
        """On the GPU; RuntimeError saying why if there is none."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    # ---- the tape ----

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: _bool | None = None,
        create_graph: _bool = False,
    ) -> None:
        """Adds the gradient of this tensor with respect to every leaf into the leaf's ``.grad``.

        Args:
            gradient: d(something)/d(this), of this tensor's shape; may be left out for one element.
            retain_graph: keep the saved arrays, to walk the graph again.
            create_graph: not supported, there is no double backward.
        """
        if create_graph:
            autograd.refuse_create_graph("backward", create_graph)
        start = self._start_gradient(gradient)
        autograd.run_backward((self,), (start,), _bool(retain_graph))

    def _start_gradient(self, gradient: Any) -> Array:
        if not self._requires_grad:
            raise RuntimeError(
                "[backward] This tensor does not require a gradient: none of the tensors it was "
                "computed from has requires_grad=True, or it was computed under no_grad()."
            )
        if gradient is None:
            if self.array.size != 1:
                raise RuntimeError(
                    "[backward] gradient may be left out only for a tensor of one element. Got "
                    f"shape {self.shape}."
                )
            one = backend.lib_of(self.array).empty_like(self.array)
            one.fill(1)
            return one
        array = gradient.array if isinstance(gradient, Tensor) else np.asarray(gradient)
        if array.shape != self.shape or array.dtype != self.array.dtype:
            raise ValueError(
                f"[backward] gradient must have the tensor's shape and dtype, {self.shape} "
                f"{self.array.dtype}. Got {array.shape} {array.dtype}."
            )
        return array

    def _accumulate(self, gradient: Array, owned: _bool) -> None:
        """Adds a finished gradient into ``.grad``; ``owned`` arrays may be kept without a copy."""
        if self.hooks:
            gradient, owned = autograd.run_hooks(self.hooks, gradient), False
        if self.grad is None:
            self.grad = Tensor(gradient if owned else autograd.copied(gradient))
        else:
            capturing.check_gradient(self.grad.array)
            # A new array: whoever holds the old one sees no change.
            self.grad.array = backend.lib_of(gradient).add(self.grad.array, gradient)
            self.grad.version[0] += 1
        if self.post_hooks:
            for hook in list(self.post_hooks.values()):
                hook(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
        """hook(gradient) is called when this tensor's gradient is complete, and may return another
        in its place."""
        if not self._requires_grad:
            raise RuntimeError("[register_hook] The tensor does not require a gradient.")
        if self.node is None:
            if self.hooks is None:
                self.hooks = {}
            return HookHandle(self.hooks, hook)
        if self.node.hooks is None:
            self.node.hooks = {}
        return HookHandle(self.node.hooks.setdefault(self.index, {}), hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> HookHandle:
        """hook(tensor) is called when this leaf's ``.grad`` is complete."""
        if self.node is not None or not self._requires_grad:
            raise RuntimeError(
                "[register_post_accumulate_grad_hook] Only a leaf that requires a gradient "
                "accumulates one."
            )
        if self.post_hooks is None:
            self.post_hooks = {}
        return HookHandle(self.post_hooks, hook)

    def retain_grad(self) -> None:
        """Keeps ``.grad`` of a tensor that is no leaf, too."""
        if self.node is None:
            return
        mine = weakref.ref(self)  # the tape must not hold its own results

        def keep(gradient: Tensor) -> None:
            tensor = mine()
            if tensor is not None:
                tensor.grad = Tensor(autograd.copied(gradient.array))

        self.register_hook(keep)

    # ---- Python's protocols ----

    def __repr__(self) -> str:
        return _printing.text(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.array.ndim == 0 else format(repr(self), spec)

    def __bool__(self) -> _bool:
        if self.array.size != 1:
            raise ValueError(
                "[bool] Only a tensor of one element is true or false. Got shape "
                f"{self.shape}; use any() or all()."
            )
        return _bool(self.item())

    def __int__(self) -> _int:
        return _int(self.item())

    def __float__(self) -> _float:
        return _float(self.item())

    def __index__(self) -> _int:
        if self.array.dtype.kind in FLOATS or self.array.size != 1:
            raise TypeError(
                "[index] Only an integer tensor of one element is an index. Got "
                f"{self.array.dtype} of shape {self.shape}."
            )
        return _int(self.item())

    def __len__(self) -> _int:
        if self.array.ndim == 0:
            raise TypeError("[len] A tensor without axes has no length.")
        return self.array.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.array.ndim == 0:
            raise TypeError("[iter] A tensor without axes cannot be iterated over.")
        return iter([self[i] for i in range(self.array.shape[0])])

    def __contains__(self, item: Any) -> _bool:
        return _bool((self == item).any())

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict[_int, Any]) -> Tensor:
        if self.node is not None:
            raise RuntimeError(
                "[deepcopy] Only a leaf can be copied. Got a result of "
                f"{type(self.node).__name__}; use detach()."
            )
        out = Tensor(_math.duplicate(self.array), self._requires_grad)
        if self.grad is not None:
            out.grad = Tensor(_math.duplicate(self.grad.array))
        memo[id(self)] = out
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (
            np.array(backend.host(self.array), order="C"),
            self._requires_grad,
            str(self.device),
            self.dtype.name,
        )

    # ---- indexing ----

    def __getitem__(self, index: Any) -> Tensor:
        return _shape.index(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        array = self._written("[...] =", value)
        array[_shape.array_index(index)] = operand_for(array, value)

    # ---- in place ----

    def _written(self, op: str, *operands: Any) -> Array:
        """The array, to be written into, its version counted up. RuntimeError if the tape would
        have to know."""
        if autograd.is_grad_enabled():
            for t in (self, *operands):
                if isinstance(t, Tensor) and t._requires_grad:
                    raise RuntimeError(
                        f"[{op}] Changes in place are not recorded: a tensor of shape {t.shape} "
                        "that requires a gradient may be changed, or written elsewhere, only under "
                        "no_grad()."
                    )
        if not _is_writeable(self.array):
            raise ValueError(
                f"[{op}] The tensor of shape {self.shape} lies in read-only or expanded memory; "
                "clone() it first."
            )
        self.version[0] += 1
        return self.array

    def _update(self, op: str, ufunc: Any, *operands: Any) -> Tensor:
        array = self._written(op, *operands)
        if is_half(array.dtype):
            others = [_math.wide(operand_for(array, v)) for v in operands]
            array[...] = _math.convert(ufunc(_math.wide(array), *others), array.dtype)
            return self
        with np.errstate(all="ignore"):
            ufunc(array, *[operand_for(array, v) for v in operands], out=array, casting="same_kind")
        return self

    def zero_(self) -> Tensor:
        return self.fill_(0)

    def fill_(self, value: Any) -> Tensor:
        array = self._written("fill_", value)
        array[...] = operand_for(array, value)
        return self

    def copy_(self, source: Any) -> Tensor:
        """The values of source, broadcast, converted and brought from any device."""
        array = self._written("copy_", source)
        values = as_array(source)
        target = backend.of(array)
        if backend.is_array(values) and backend.of(values) is not target:
            values = target.put(backend.host(values))
        np.copyto(array, values, casting="unsafe")
        return self

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self += alpha * other"""
        if alpha == 1:
            return self._update("add_", np.add, other)
        array = self._written("add_", other)
        return self._update("add_", np.add, np.multiply(operand_for(array, other), alpha))

    def sub_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self -= alpha * other"""
        if alpha == 1:
            return self._update("sub_", np.subtract, other)
        return self.add_(other, alpha=-alpha)

    def mul_(self, other: Any) -> Tensor:
        return self._update("mul_", np.multiply, other)

    def div_(self, other: Any) -> Tensor:
        return self._update("div_", np.true_divide, other)

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:
        if min is not None:
            self._update("clamp_", np.maximum, min)
        return self if max is None else self._update("clamp_", np.minimum, max)

    def _assigned(
        self, other: Any, changed: Callable[..., Tensor], new: Callable[..., Tensor]
    ) -> Tensor:
        """x += other: in place where nothing is recorded, else a new tensor under the old name."""
        recorded = autograd.is_grad_enabled() and (
            (self._requires_grad and self.node is not None)
            or (isinstance(other, Tensor) and other._requires_grad and not self._requires_grad)
        )
        return new(self, other) if recorded else changed(other)

    def __iadd__(self, other: Any) -> Tensor:
        return self._assigned(other, self.add_, _math.add)

    def __isub__(self, other: Any) -> Tensor:
        return self._assigned(other, self.sub_, _math.sub)

    def __imul__(self, other: Any) -> Tensor:
        return self._assigned(other, self.mul_, _math.mul)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._assigned(other, self.div_, _math.div)

    # ---- arithmetic (functional/math.py) ----

    def __add__(self, other: Any) -> Tensor:
        return _math.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _math.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _math.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _math.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _math.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _math.mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _math.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _math.div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _math.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _math.pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _matmul(self, as_operand(other))

    def __rmatmul__(self, other: Any) -> Tensor:
        return _matmul(as_operand(other), self)

    def __neg__(self) -> Tensor:
        return _math.neg(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return _math.abs(self)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _math.compare(np.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _math.compare(np.not_equal, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _math.compare(np.less, self, other)

    def __le__(self, other: Any) -> Tensor:
        return _math.compare(np.less_equal, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _math.compare(np.greater, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _math.compare(np.greater_equal, self, other)

    def __and__(self, other: Any) -> Tensor:
        return _math.logical(np.bitwise_and, self, other)

    def __or__(self, other: Any) -> Tensor:
        return _math.logical(np.bitwise_or, self, other)

    def __xor__(self, other: Any) -> Tensor:
        return _math.logical(np.bitwise_xor, self, other)

    def __invert__(self) -> Tensor:
        return _math.invert(self)

    def add(self, other: Any, *, alpha: Any = 1) -> Tensor:
        return _math.add(self, other, alpha=alpha)

    def sub(self, other: Any, *, alpha: Any = 1) -> Tensor:
        return _math.sub(self, other, alpha=alpha)

    def mul(self, other: Any) -> Tensor:
        return _math.mul(self, other)

    def div(self, other: Any) -> Tensor:
        return _math.div(self, other)

    def pow(self, exponent: Any) -> Tensor:
        return _math.pow(self, exponent)

    def matmul(self, other: Any) -> Tensor:
        return _matmul(self, as_operand(other))

    def maximum(self, other: Any) -> Tensor:
        return _math.maximum(self, other)

    def minimum(self, other: Any) -> Tensor:
        return _math.minimum(self, other)

    def where(self, condition: Tensor, other: Any) -> Tensor:
        """self where condition holds, else other."""
        return _math.where(condition, self, other)

    def neg(self) -> Tensor:
        return _math.neg(self)

    def exp(self) -> Tensor:
        return _math.exp(self)

    def log(self) -> Tensor:
        return _math.log(self)

    def sqrt(self) -> Tensor:
        return _math.sqrt(self)

    def abs(self) -> Tensor:
        return _math.abs(self)

    def sign(self) -> Tensor:
        return _math.sign(self)

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        return _math.clamp(self, min, max)

    def isnan(self) -> Tensor:
        return _math.isnan(self)

    def equal(self, other: Tensor) -> _bool:
        return _math.equal(self, other)

    def allclose(self, other: Tensor, rtol: _float = 1e-5, atol: _float = 1e-8) -> _bool:
        return _math.allclose(self, other, rtol, atol)

    # ---- types ----

    def float(self) -> Tensor:
        return _math.cast(self, np.float32)

    def double(self) -> Tensor:
        return _math.cast(self, np.float64)

    def half(self) -> Tensor:
        """In float16, on a GPU."""
        return self.to(dtype=np.float16)

    def bfloat16(self) -> Tensor:
        """In bfloat16, on a GPU."""
        return self.to(dtype="bfloat16")

    def long(self) -> Tensor:
        return _math.cast(self, np.int64)

    def int(self) -> Tensor:
        return _math.cast(self, np.int32)

    def bool(self) -> Tensor:
        return _math.cast(self, np.bool_)

    # ---- reductions ----

    def sum(self, dim: Any = None, keepdim: _bool = False, *, dtype: Any = None) -> Tensor:
        return _math.sum(self, dim, keepdim, dtype=dtype)

    def mean(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        return _math.mean(self, dim, keepdim)

    def var(
        self,
        dim: Any = None,
        unbiased: _bool = True,
        keepdim: _bool = False,
        *,
        correction: _float | None = None,
    ) -> Tensor:
        return _math.var(self, dim, unbiased, keepdim, correction=correction)

    def std(
        self,
        dim: Any = None,
        unbiased: _bool = True,
        keepdim: _bool = False,
        *,
        correction: _float | None = None,
    ) -> Tensor:
        return _math.std(self, dim, unbiased, keepdim, correction=correction)

    def max(self, dim: Any = None, keepdim: _bool = False) -> Any:
        return _math.max(self, dim, keepdim)

    def min(self, dim: Any = None, keepdim: _bool = False) -> Any:
        return _math.min(self, dim, keepdim)

    def argmax(self, dim: _int | None = None, keepdim: _bool = False) -> Tensor:
        return _math.argmax(self, dim, keepdim)

    def argmin(self, dim: _int | None = None, keepdim: _bool = False) -> Tensor:
        return _math.argmin(self, dim, keepdim)

    def argsort(self, dim: _int = -1, descending: _bool = False) -> Tensor:
        return _math.argsort(self, dim, descending)

    def sort(self, dim: _int = -1, descending: _bool = False) -> Any:
        return _math.sort(self, dim, descending)

    def topk(self, k: _int, dim: _int = -1, largest: _bool = True, sorted: _bool = True) -> Any:
        return _math.topk(self, k, dim, largest, sorted)

    def any(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        return _math.any(self, dim, keepdim)

    def all(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        return _math.all(self, dim, keepdim)

    def cumsum(self, dim: _int) -> Tensor:
        return _math.cumsum(self, dim)

    # ---- shape (functional/shape.py) ----

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return _shape.permute(self, tuple(reversed(range(self.array.ndim))))

    def t(self) -> Tensor:
        """A matrix transposed; a tensor of fewer axes itself."""
        if self.array.ndim > 2:
            raise ValueError(f"[t] There must be at most 2 axes. Got shape {self.shape}.")
        return self.T

    def reshape(self, *shape: Any) -> Tensor:
        return _shape.reshape(self, *shape)

    view = reshape

    def flatten(self, start_dim: _int = 0, end_dim: _int = -1) -> Tensor:
        return _shape.flatten(self, start_dim, end_dim)

    def unflatten(self, dim: _int, sizes: Sequence[_int]) -> Tensor:
        return _shape.unflatten(self, dim, sizes)

    def permute(self, *dims: Any) -> Tensor:
        return _shape.permute(self, *dims)

    def transpose(self, dim0: _int, dim1: _int) -> Tensor:
        return _shape.transpose(self, dim0, dim1)

    swapaxes = transpose

    def movedim(self, source: _int, destination: _int) -> Tensor:
        return _shape.movedim(self, source, destination)

    def squeeze(self, dim: Any = None) -> Tensor:
        return _shape.squeeze(self, dim)

    def unsqueeze(self, dim: _int) -> Tensor:
        return _shape.unsqueeze(self, dim)

    def expand(self, *shape: Any) -> Tensor:
        return _shape.expand(self, *shape)

    def expand_as(self, other: Tensor) -> Tensor:
        return _shape.expand(self, other.shape)

    def repeat(self, *counts: Any) -> Tensor:
        return _shape.repeat(self, *counts)

    def chunk(self, chunks: _int, dim: _int = 0) -> tuple[Tensor, ...]:
        return _shape.chunk(self, chunks, dim)

    def split(self, split_size: Any, dim: _int = 0) -> tuple[Tensor, ...]:
        return _shape.split(self, split_size, dim)

    def gather(self, dim: _int, index: Tensor) -> Tensor:
        return _shape.gather(self, dim, index)


class Deferred(Tensor):
    """A tensor whose array is computed when it is first asked for; then it is an ordinary one."""

    __slots__ = ()

    @property
    def pending(self) -> Pending:
        """What the array is to be."""
        return _array_slot.__get__(self)

    @property
    def array(self) -> Array:
        array = self.pending
        if isinstance(array, Pending):  # else another thread was faster
            array = array.run()
            _array_slot.__set__(self, array)
        self.__class__ = Tensor  # type: ignore[assignment]
        return array

    @array.setter
    def array(self, value: Any) -> None:
        _array_slot.__set__(self, value)

    @property
    def shape(self) -> tuple[_int, ...]:
        return self.pending.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.pending.dtype

    @property
    def ndim(self) -> _int:
        return self.pending.ndim


# Where a tensor keeps its array: Deferred puts a property in front of it.
_array_slot: Any = _tape.TensorBase.__dict__["array"]
autograd.connect(Tensor, Deferred)


def as_array(value: Any) -> Any:
    """A tensor's array; anything else as it is."""
    return value.array if isinstance(value, Tensor) else value


def operand_for(array: Array, value: Any) -> Any:
    """A tensor's array, or a number, to compute with ``array``: one number of another device, and
    NumPy's arrays beside a tensor on a GPU, are brought there."""
    other = as_array(value)
    if type(array) is np.ndarray and not backend.is_array(other):
        return other
    if backend.is_array(other) and backend.of(other) is not backend.of(array):
        if other.ndim == 0:
            return backend.host(other)[()]
        if not isinstance(value, Tensor):
            return backend.of(array).put(np.ascontiguousarray(backend.host(other)))
    return other


def _is_writeable(array: Array) -> _bool:
    """False for read-only memory, and on a GPU, where nothing is, for expanded memory."""
    if type(array) is np.ndarray:
        return array.flags.writeable
    return 0 not in [s for s, n in zip(array.strides, array.shape) if n > 1]


def _rebuilt(array: np.ndarray, requires_grad: _bool, device: str, dtype: str) -> Tensor:
    """A pickled tensor."""
    return Tensor(put(array, backend.by_device(device), dtypes.named(dtype)), requires_grad)


def put(host: np.ndarray, target: backend.Backend, dtype: np.dtype[Any]) -> Array:
    """The NumPy array's values on a device in ``dtype``, which is the array's own or of 16 bits."""
    if not is_half(dtype):
        return target.put(host)
    return backend.convert_float(target.put(host.astype(np.float32, copy=False)), dtype)


def array_of(op: str, value: Any, name: str = "input") -> Any:
    """A tensor's array; TypeError for anything else."""
    if isinstance(value, Tensor):
        return value.array
    hint = " cg.tensor(array) makes a Tensor." if backend.is_array(value) else ""
    raise TypeError(f"[{op}] {name} must be a Tensor. Got {autograd.describe(value)}.{hint}")


def as_operand(value: Any) -> Tensor:
    """A tensor, or an array as a constant."""
    if isinstance(value, Tensor):
        return value
    if backend.is_array(value):
        return Tensor(value)
    raise TypeError(f"[matmul] Both factors must be tensors. Got {type(value).__name__}.")


def checked_dtype(op: str, dtype: Any, target: backend.Backend = backend.CPU) -> np.dtype[Any]:
    """dtype as NumPy's, one of those that tensors have on the target's device; else TypeError."""
    return dtypes.checked(op, dtype, target is not backend.CPU)


def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A new leaf with a copy of ``data`` (numbers, nested lists, an array or a tensor).

    Python floats become float32, ints int64, bools bool; arrays keep their dtype, in native byte
    order. Float arrays of more than two axes are laid out channels-last. Without a device it is on
    the data's own, if that is a tensor or an array of a GPU, else on the default device.
    """
    source = data.array if isinstance(data, Tensor) else data
    own = backend.CPU
    if isinstance(source, (list, tuple)):
        source = _nested(source)
    elif type(source) is not np.ndarray and backend.is_array(source):
        own = backend.of(source)
    stays = device is None and (own is not backend.CPU or isinstance(data, Tensor))
    target = own if stays else backend.for_new(device)
    if own is not backend.CPU:
        if own is target:
            out = Tensor(_copy_of_type(source, checked_dtype("tensor", dtype or source.dtype, own)))
            out.requires_grad = requires_grad
            return out
        source = own.host(source)
    array = np.asarray(source)
    if dtype is None and array.dtype == np.float64 and not hasattr(source, "dtype"):
        dtype = np.float32
    wanted = checked_dtype("tensor", array.dtype if dtype is None else dtype, target)
    on_host = np.dtype(np.float32) if is_half(wanted) else wanted
    if array.ndim > 2 and wanted.kind in FLOATS:
        host = autograd.copied(np.require(array, on_host, ["ALIGNED"]))
    else:
        host = np.array(array, on_host, order="C")
    out = Tensor(put(host, target, wanted))
    out.requires_grad = requires_grad
    return out


def _copy_of_type(array: Array, dtype: Any) -> Array:
    """A copy in ``dtype`` on the array's device, channels-last where that is for floats of more
    than two axes."""
    if array.ndim > 2 and dtype.kind in FLOATS:
        return autograd.copied(_math.convert(array, dtype))
    return _math.duplicate(_math.convert(array, dtype))


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` itself if it is such a tensor; shares an array's memory if its dtype and device
    fit."""
    if isinstance(data, Tensor):
        return data.to(dtype=dtype, device=device)
    if type(data) is np.ndarray and not (data.flags.aligned and data.dtype.isnative):
        return tensor(data, dtype, device)
    if not backend.is_array(data):
        return tensor(data, dtype, device)
    own = backend.of(data)
    target = own if device is None and own is not backend.CPU else backend.for_new(device)
    wanted = checked_dtype("as_tensor", data.dtype if dtype is None else dtype, target)
    if is_half(wanted):
        return tensor(data, wanted, target.device) if own is not target else Tensor(data).to(wanted)
    return Tensor(data.astype(wanted, copy=False)).to(device=target.device)


def _nested(data: Any) -> Any:
    """Nested lists with NumPy's arrays in place of tensors."""
    if isinstance(data, (list, tuple)):
        return [_nested(item) for item in data]
    if isinstance(data, Tensor):
        return backend.host(data.array)
    return backend.host(data) if backend.is_array(data) else data


# What the methods above call is made of tensors itself, so it can be imported only now.
from convgrad import printing as _printing  # noqa: E402
from convgrad.functional import math as _math  # noqa: E402
from convgrad.functional import shape as _shape  # noqa: E402
from convgrad.functional.linear import matmul as _matmul  # noqa: E402
