"""Arithmetic, comparisons, elementwise functions and reductions, with broadcasting.

Type promotion is PyTorch's: numbers and 0-d tensors give way to tensors with axes of the same
category (bool < int < float); float32 is the default. Results are channels-last where an operand
is. What no kernel does for 16 bits is computed in float32 and rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import CPU, Backend, convert_float, host, is_array, lib_of, of, typed
from convgrad.deferred import Pending
from convgrad.dtypes import FLOATS, is_half
from convgrad.functional.activation import Unary
from convgrad.mixed_precision import in_float32
from convgrad.tensor import Deferred, Tensor

__all__ = [
    "abs",
    "add",
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "cast",
    "clamp",
    "cumsum",
    "div",
    "equal",
    "exp",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mul",
    "neg",
    "pow",
    "sign",
    "sort",
    "sqrt",
    "std",
    "sub",
    "sum",
    "topk",
    "var",
    "where",
]

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
Number = bool | int | float
Dims = int | Sequence[int] | None

ndarray = np.ndarray
FLOAT32 = np.dtype(np.float32)
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)

_add_reduce: Any = np.add.reduce


# ---- arrays: layout, broadcasting, sums ----


def empty(shape: tuple[int, ...], dtype: Any, operands: Sequence[Array]) -> Array:
    """Uninitialised; channels-last unless all operands of this shape lie in C order only."""
    like = None
    c_order = len(shape) > 2
    for a in operands:
        if a.shape == shape:
            if like is None or a.dtype == dtype:
                like = a
            if c_order and (not a.flags.c_contiguous or lib_of(a).is_channels_last(a)):
                c_order = False
    if c_order and like is not None:
        return plain_empty(shape, dtype, like)
    if like is not None and like.dtype == dtype:
        return lib_of(like).empty_like(like)
    if len(shape) < 3:
        return plain_empty(shape, dtype, operands[0])
    rank = len(shape)
    out = plain_empty((shape[0], *shape[2:], shape[1]), dtype, operands[0])
    return out.transpose((0, rank - 1, *range(1, rank - 1)))


def plain_empty(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Uninitialised, in C order, where ``like`` is."""
    return (np if type(like) is ndarray else of(like).xp).empty(shape, dtype)


# Ufuncs that never warn, whatever the values: they do without np.errstate, which takes 1 us.
_SILENT = frozenset({np.negative, np.absolute, np.maximum, np.minimum, np.invert})


def elementwise(ufunc: Any, *operands: Any, dtype: Any = None) -> Array:
    """ufunc(*operands) for arrays and numbers, in a new array of ``dtype`` (the arrays' own)."""
    arrays = [a for a in operands if is_array(a)]
    first = arrays[0]
    if is_half(first.dtype):
        result = elementwise(ufunc, *[wide(a) for a in operands], dtype=dtype)
        return convert(result, first.dtype) if dtype is None else result
    shape = first.shape
    for a in arrays:
        if a.shape != shape:
            shape = broadcast_shape(ufunc.__name__, *[a.shape for a in arrays])
            break
    if first.ndim < 3 and first.shape == shape and (dtype is None or dtype == first.dtype):
        out = lib_of(first).empty_like(first)  # what empty() would do, sooner
    else:
        out = empty(shape, first.dtype if dtype is None else dtype, arrays)
    if ufunc in _SILENT:
        return ufunc(*operands, out=out)
    with np.errstate(all="ignore"):
        return ufunc(*operands, out=out)


def empty_last(shape: tuple[int, ...], like: Array) -> Array:
    """Uninitialised, channels-last, of the other's type and where it is."""
    if type(like) is ndarray:
        return CPU.lib.empty_like(np.broadcast_to(like.dtype.type(0), shape))
    return of(like).empty(shape, like.dtype)


def c_order(x: Array) -> Array:
    """x in row-major order: itself if it lies so."""
    return (np if type(x) is ndarray else of(x).xp).ascontiguousarray(x)


def combine(name: str, a: Any, b: Any) -> Array:
    """a op b for arrays and numbers of one type, broadcast; op is a name of ``_UFUNCS``."""
    like = a if type(a) is ndarray or not isinstance(a, (int, float)) else b
    if like.dtype.kind in FLOATS:
        out = getattr(lib_of(like), name)(a, b)
        if out is not None:
            return out
    return elementwise(_UFUNCS[name], a, b)


# What does the kernels' arithmetic for integers and where shapes are broadcast.
_UFUNCS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


def broadcast_shape(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(s) for s in shapes)
        raise ValueError(f"[{op}] The shapes must broadcast. Got {listed}.") from None


def reduce_sum(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """The sum over ``axes``, a new array. float32 accumulates in float64, or in the kernel's blocks
    for the sum per channel; either order follows from the shape and layout alone."""
    rank = x.ndim
    if (
        rank > 1
        and len(axes) == rank - 1
        and 1 not in axes
        and x.dtype.kind in FLOATS
        and x.size > 0
    ):
        out = lib_of(x).channel_sum(x, rank - 2)
        return out.reshape([1, -1] + [1] * (rank - 2)) if keepdims else out
    if is_half(x.dtype):
        return convert(reduce_sum(wide(x), axes, keepdims), x.dtype)
    inner = np.float64 if x.dtype == FLOAT32 else x.dtype
    out = _add_reduce(x, axis=axes, dtype=inner, keepdims=keepdims)
    return typed(out, x.dtype)


def sum_to(dy: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of broadcasting ``shape`` to dy's: dy itself where they are equal."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = tuple(
        [i for i in range(dy.ndim) if i < extra or (shape[i - extra] == 1 and dy.shape[i] != 1)]
    )
    return reduce_sum(dy, axes).reshape(shape)


def check_dim(op: str, dim: Any, rank: int) -> int:
    """dim from 0 to rank - 1; a 0-d tensor counts as having one axis."""
    limit = rank if rank > 0 else 1
    if not isinstance(dim, (int, np.integer)) or not -limit <= dim < limit:
        raise ValueError(
            f"[{op}] dim must be an int from {-limit} to {limit - 1} for a tensor of {rank} axes. "
            f"Got {dim!r}."
        )
    return int(dim) % limit


def check_dims(op: str, dim: Dims, rank: int) -> tuple[int, ...]:
    """dim as a tuple of axes: all of them for None (and for an empty tuple, as PyTorch has it)."""
    if dim is None:
        return tuple(range(rank))
    dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    if not dims:
        return tuple(range(rank))
    checked = tuple([check_dim(op, d, rank) for d in dims])
    if len(set(checked)) != len(checked):
        raise ValueError(f"[{op}] dim must not name an axis twice. Got {dim!r}.")
    return checked if rank > 0 else ()


# ---- types ----


def _category(dtype: np.dtype[Any]) -> int:
    return {"b": 0, "u": 1, "i": 1, "f": 2, "V": 2}[dtype.kind]


def _promote(a: np.dtype[Any] | None, b: np.dtype[Any] | None) -> np.dtype[Any] | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    return promoted(a, b)


def promoted(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """The type of what is made of both: the float one, or the larger; float32 of the two of 16
    bits."""
    if (a.kind in FLOATS) != (b.kind in FLOATS):
        return a if a.kind in FLOATS else b
    if a != b and is_half(a) and is_half(b):
        return FLOAT32
    return np.promote_types(a, b)


def result_type(*operands: Tensor | Number) -> np.dtype[Any]:
    """The type that an operation on these is computed in, as ``torch.result_type``."""
    # By priority: tensors with axes, tensors without, numbers.
    found: list[np.dtype[Any] | None] = [None, None, None]
    for x in operands:
        if isinstance(x, Tensor):
            rank, dtype = (0 if x.array.ndim else 1), x.array.dtype
        else:
            rank = 2
            dtype = BOOL if isinstance(x, bool) else INT64 if isinstance(x, int) else FLOAT32
        found[rank] = _promote(found[rank], dtype)
    result: np.dtype[Any] | None = None
    for dtype_or_none in found:
        if dtype_or_none is None:
            continue
        if result is None or _category(dtype_or_none) > _category(result):
            result = _promote(result, dtype_or_none)
    assert result is not None
    return result


def moved(x: Array, target: Backend) -> Array:
    """x on another device, channels-last where such arrays are."""
    source = of(x)
    if source is target:
        return x
    if source is CPU:
        return target.put(x)
    if target is CPU:
        out = host(x)
        return CPU.lib.channels_last(out) if x.ndim > 2 and x.dtype.kind in FLOATS else out
    with target.current():
        out = target.xp.array(x)
        return target.lib.channels_last(out) if x.ndim > 2 and x.dtype.kind in FLOATS else out


class Move(Op):
    """x on another device; the gradient comes back to x's."""

    def forward(self, x: Array, target: Backend) -> Array:
        self.source = of(x)
        return moved(x, target)

    def backward(self, dy: Array) -> Array:
        return moved(dy, self.source)


class Cast(Op):
    """x in another type; the gradient comes back in x's."""

    fresh = True

    def forward(self, x: Array, dtype: Any) -> Array:
        self.dtype = x.dtype
        return convert(x, dtype)

    def backward(self, dy: Array) -> Array:
        return convert(dy, self.dtype)


def convert(x: Array, dtype: Any) -> Array:
    """A copy in ``dtype``, channels-last where x is; x itself if it has the type."""
    if x.dtype == dtype:
        return x
    dtype = np.dtype(dtype)
    if x.dtype.kind in FLOATS and dtype.kind in FLOATS:
        return convert_float(x, dtype)
    if is_half(dtype) or is_half(x.dtype):  # to or from a type that is no float
        return convert(convert(x, FLOAT32), dtype)
    out = empty(x.shape, dtype, (x,))
    with np.errstate(all="ignore"):
        np.copyto(out, x, casting="unsafe")
    return out


def wide(x: Any) -> Any:
    """An array of 16 bits in float32; anything else as it is."""
    return convert(x, FLOAT32) if is_array(x) and is_half(x.dtype) else x


def widened(function: F) -> F:
    """The function, for a tensor of 16 bits by way of float32: floating results come back in its
    type."""

    @functools.wraps(function)
    def run(input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Tensor) or not is_half(input.dtype):
            return function(input, *args, **kwargs)
        others = [cast(a, FLOAT32) if _is_half_tensor(a) else a for a in args]
        out = function(cast(input, FLOAT32), *others, **kwargs)
        if isinstance(out, ValuesIndices):
            return ValuesIndices(cast(out.values, input.dtype), out.indices)
        return cast(out, input.dtype) if _is_float(out) else out

    return run  # type: ignore[return-value]


def _is_half_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) and is_half(x.dtype)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x itself if it has this dtype, else a converted copy."""
    return x if x.array.dtype == dtype else Cast.apply((x,), dtype)


def _operand(op: str, x: Any) -> Any:
    """A tensor or a number; NumPy arrays and scalars count as constants."""
    if isinstance(x, (Tensor, bool, int, float)):
        return x
    if isinstance(x, np.generic):
        return x.item()
    if is_array(x):
        return Tensor(x)
    raise TypeError(
        f"[{op}] The operands must be tensors, arrays or numbers. Got {type(x).__name__}."
    )


def _same_type(op: str, a: Any, b: Any, floating: bool = False) -> tuple[Any, Any]:
    """The operands in the type they are computed in; numbers stay numbers."""
    a, b = _operand(op, a), _operand(op, b)
    dtype = result_type(a, b)
    if floating and dtype.kind not in FLOATS:
        dtype = FLOAT32
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = Tensor(np.asarray(a, dtype))
    return (
        cast(a, dtype) if isinstance(a, Tensor) else a,
        cast(b, dtype) if isinstance(b, Tensor) else b,
    )


def _alike(a: Any, b: Any) -> bool:
    """The common case, which needs no conversion: two tensors of one type, or tensor and float."""
    if type(b) is float:
        return isinstance(a, Tensor) and a.dtype.kind in FLOATS
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype


def _float(op: str, x: Any) -> Tensor:
    """x, or x in float32 if it is not of a floating type."""
    if not isinstance(x, Tensor):
        raise TypeError(f"[{op}] The input must be a tensor. Got {type(x).__name__}.")
    return x if x.array.dtype.kind in FLOATS else Cast.apply((x,), FLOAT32)


# ---- arithmetic ----


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if type(x) is ndarray or not isinstance(x, (int, float)) else ()


class Add(Op):
    """y = a + b. One that is still to be computed takes the other in."""

    absorbs = True

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = _shape(a), _shape(b)
        if type(a) is Pending or type(b) is Pending:
            if type(a) is not Pending:
                a, b = b, a
            if type(b) is Pending:
                b = b.run()
            total = None if isinstance(b, (int, float)) else a.plus(b)
            if total is not None:
                return total
            a = a.run()
        return combine("add", a, b)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        (a, b), (need_a, need_b) = self.shapes, self.needs
        return sum_to(dy, a) if need_a else None, sum_to(dy, b) if need_b else None


class Sub(Op):
    """y = a - b"""

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = _shape(a), _shape(b)
        return combine("sub", a, b)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        (a, b), (need_a, need_b) = self.shapes, self.needs
        db = elementwise(np.negative, sum_to(dy, b)) if need_b else None
        return sum_to(dy, a) if need_a else None, db


class Mul(Op):
    """y = a b"""

    fresh = True

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = _shape(a), _shape(b)
        need_a, need_b = self.needs
        self.saved = a if need_b else None, b if need_a else None
        return combine("mul", a, b)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        need_a, need_b = self.needs
        da = sum_to(combine("mul", dy, b), self.shapes[0]) if need_a else None
        db = sum_to(combine("mul", dy, a), self.shapes[1]) if need_b else None
        return da, db


class Div(Op):
    """y = a / b; da = dy / b, db = -dy y / b."""

    fresh = True

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = _shape(a), _shape(b)
        y = combine("div", a, b)
        self.saved = b, y if self.needs[1] else None
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        b, y = self.saved
        need_a, need_b = self.needs
        q = combine("div", dy, b)
        db = None
        if need_b:
            db = combine("mul", q, y)
            db = sum_to(elementwise(np.negative, db), self.shapes[1])
        return sum_to(q, self.shapes[0]) if need_a else None, db


class Pow(Op):
    """y = a ** b; da = dy b a ** (b - 1), 0 where b = 0; db = dy y log a, 0 where a = 0 <= b."""

    fresh = True

    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = _shape(a), _shape(b)
        if isinstance(b, int) and b < 0 and is_array(a) and a.dtype.kind not in FLOATS:
            raise ValueError(f"[pow] An integer tensor takes no negative exponent. Got {b}.")
        y = elementwise(np.power, a, b)
        self.saved = a, b, y if self.needs[1] else None
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        a, b, y = self.saved
        need_a, need_b = self.needs
        da = db = None
        with np.errstate(all="ignore"):
            if need_a:
                less = b - (dy.dtype.type(1) if is_array(b) else 1)
                slope = elementwise(np.power, a, less)
                np.multiply(slope, b, out=slope)
                if is_array(b):
                    slope[np.broadcast_to(b == 0, slope.shape)] = 0
                elif b == 0:
                    slope[...] = 0
                da = sum_to(combine("mul", dy, slope), self.shapes[0])
            if need_b:
                logs = np.where(np.equal(a, 0) & np.greater_equal(b, 0), 0, np.log(a))
                slope = combine("mul", y, typed(logs, dy.dtype))
                db = sum_to(combine("mul", dy, slope), self.shapes[1])
        return da, db


class Extremum(Op):
    """y = maximum or minimum of a and b; where they are equal each takes half the gradient."""

    fresh = True

    def forward(self, a: Array, b: Array, name: str) -> Array:
        self.shapes = _shape(a), _shape(b)
        self.saved = a, b
        self.wins = np.greater if name == "maximum" else np.less
        return combine(name, a, b)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        half = np.equal(a, b) * dy.dtype.type(0.5)
        grads: list[Array | None] = []
        for i, (first, second) in enumerate(((a, b), (b, a))):
            if not self.needs[i]:
                grads.append(None)
                continue
            # NaN wins nothing by comparison, but it is the result: its operand takes the gradient.
            share = self.wins(first, second) | np.isnan(first) | np.isnan(second)
            grads.append(sum_to(combine("mul", dy, share + half), self.shapes[i]))
        return tuple(grads)


def add(input: Any, other: Any, *, alpha: Number = 1) -> Tensor:
    """input + alpha * other, broadcast. ValueError for shapes that do not broadcast."""
    if alpha != 1:
        other = mul(other, alpha)
    if not _alike(input, other):
        input, other = _same_type("add", input, other)
    total = Add.apply((input, other))
    if type(total) is Deferred:
        for t in (input, other):
            total.pending.watch(t.version)
    return total


def sub(input: Any, other: Any, *, alpha: Number = 1) -> Tensor:
    """input - alpha * other, broadcast. ValueError for shapes that do not broadcast."""
    if alpha != 1:
        other = mul(other, alpha)
    if not _alike(input, other):
        input, other = _same_type("sub", input, other)
    for x in (input, other):
        if isinstance(x, Tensor) and x.array.dtype == BOOL:
            raise TypeError("[sub] bool tensors have no difference. Use ^ or ~.")
    return Sub.apply((input, other))


def mul(input: Any, other: Any) -> Tensor:
    """input * other, broadcast. ValueError for shapes that do not broadcast."""
    if not _alike(input, other):
        input, other = _same_type("mul", input, other)
    return Mul.apply((input, other))


def div(input: Any, other: Any) -> Tensor:
    """input / other, broadcast; integers are divided in float32."""
    if not _alike(input, other) or not _is_float(input):
        input, other = _same_type("div", input, other, floating=True)
    return Div.apply((input, other))


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.array.dtype.kind in FLOATS


@in_float32
@widened
def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent, broadcast; either may be a number."""
    if not _alike(input, exponent):
        input, exponent = _same_type("pow", input, exponent)
    return Pow.apply((input, exponent))


@widened
def maximum(input: Any, other: Any) -> Tensor:
    """The larger of the two, elementwise; NaN where either is NaN."""
    return Extremum.apply(_same_type("maximum", input, other), "maximum")


@widened
def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of the two, elementwise; NaN where either is NaN."""
    return Extremum.apply(_same_type("minimum", input, other), "minimum")


def compare(ufunc: Callable[..., Any], a: Any, b: Any) -> Tensor:
    """A bool tensor: ufunc of a and b in their common type, broadcast."""
    if not _alike(a, b):
        a, b = _same_type(ufunc.__name__, a, b)
    first, second = (t.array if isinstance(t, Tensor) else t for t in (a, b))
    return Tensor(elementwise(ufunc, first, second, dtype=BOOL))


def logical(ufunc: Callable[..., Any], a: Any, b: Any) -> Tensor:
    """ufunc, bitwise, of bools or integers."""
    a, b = _same_type(ufunc.__name__, a, b)
    for t in (a, b):
        if _is_float(t) or isinstance(t, float):
            raise TypeError(f"[{ufunc.__name__}] The operands must be bool or int. Got a float.")
    first, second = (t.array if isinstance(t, Tensor) else t for t in (a, b))
    return Tensor(elementwise(ufunc, first, second))


def _test(ufunc: Callable[..., Any], x: Tensor) -> Tensor:
    return Tensor(elementwise(ufunc, x.array, dtype=BOOL))


def invert(x: Tensor) -> Tensor:
    """not x for bools, the complement of the bits for integers."""
    if _is_float(x):
        raise TypeError("[invert] The operand must be bool or int. Got a float.")
    return Tensor(elementwise(np.invert, x.array))


def isnan(input: Tensor) -> Tensor:
    """bool: which elements are NaN."""
    return _test(np.isnan, input)


def isinf(input: Tensor) -> Tensor:
    """bool: which elements are infinite."""
    return _test(np.isinf, input)


def isfinite(input: Tensor) -> Tensor:
    """bool: which elements are neither NaN nor infinite."""
    return _test(np.isfinite, input)


@widened
def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have one shape and equal elements (NaN equals nothing)."""
    return input.shape == other.shape and bool(np.array_equal(input.array, other.array))


@widened
def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether |input - other| <= atol + rtol |other| everywhere."""
    return bool(np.allclose(input.array, other.array, rtol, atol, equal_nan))


class Where(Op):
    """y = a where the condition holds, else b."""

    fresh = True

    def forward(self, a: Array, b: Array, condition: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.condition = condition
        shape = broadcast_shape("where", condition.shape, a.shape, b.shape)
        out = empty(shape, a.dtype, (a, b))
        out[...] = b
        np.copyto(out, a, where=condition)
        return out

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        grads: list[Array | None] = []
        for shape, need, chosen in zip(self.shapes, self.needs, (self.condition, ~self.condition)):
            if not need:
                grads.append(None)
                continue
            share = empty(dy.shape, dy.dtype, (dy,))
            share[...] = 0
            np.copyto(share, dy, where=chosen)
            grads.append(sum_to(share, shape))
        return tuple(grads)


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """input where condition (bool) holds, else other; all three broadcast."""
    mask = condition.array if isinstance(condition, Tensor) else condition
    mask = mask if is_array(mask) else np.asarray(mask)
    if mask.dtype != BOOL:
        raise TypeError(f"[where] condition must be bool. Got {mask.dtype}.")
    a, b = _operand("where", input), _operand("where", other)
    dtype = result_type(a, b)
    put = of(mask).put
    a, b = (
        cast(t, dtype) if isinstance(t, Tensor) else Tensor(convert(put(np.asarray(t)), dtype))
        for t in (a, b)
    )
    if is_half(dtype):
        a, b = cast(a, FLOAT32), cast(b, FLOAT32)
    return cast(Where.apply((a, b), mask), dtype)


# ---- elementwise functions ----


class Sign(Op):
    """y = -1, 0 or 1, with gradient 0 (PyTorch's sign of NaN is 0)."""

    fresh = True

    def forward(self, x: Array) -> Array:
        y = elementwise(np.sign, x)
        if y.dtype.kind in FLOATS:
            y[np.isnan(y)] = 0
        return y

    def backward(self, dy: Array) -> Array:
        return combine("mul", np.zeros_like(dy), 0)


class Clamp(Op):
    """y = min(max(x, low), high); the gradient passes where low <= x <= high."""

    fresh = True

    def forward(self, x: Array, low: Number | None, high: Number | None) -> Array:
        self.saved = (x,)
        self.bounds = low, high
        y = x
        if low is not None:
            y = elementwise(np.maximum, y, low)
        return y if high is None else elementwise(np.minimum, y, high)

    def backward(self, dy: Array) -> Array:
        (x,), (low, high) = self.saved, self.bounds
        dx = combine("mul", dy, 1)
        if low is not None:
            dx[x < low] = 0
        if high is not None:
            dx[x > high] = 0
        return dx


def duplicate(x: Array) -> Array:
    """A copy with the same physical layout."""
    out = empty(x.shape, x.dtype, (x,))
    out[...] = x
    return out


class Clone(Op):
    """A copy."""

    def forward(self, x: Array) -> Array:
        return duplicate(x)

    def backward(self, dy: Array) -> Array:
        return dy


def _elementwise(name: str, ufunc: Any, x: Tensor) -> Tensor:
    """The kernel's function, or the ufunc for integers."""
    return Unary.apply((x,), name) if _is_float(x) else Tensor(elementwise(ufunc, x.array))


def neg(input: Tensor) -> Tensor:
    """-input."""
    if input.array.dtype == BOOL:
        raise TypeError("[neg] A bool tensor has no negative. Use ~.")
    return _elementwise("neg", np.negative, input)


@in_float32
def exp(input: Tensor) -> Tensor:
    """e to the power of each element."""
    return Unary.apply((_float("exp", input),), "exp")


@in_float32
def log(input: Tensor) -> Tensor:
    """The natural logarithm: -inf at 0, NaN below."""
    return Unary.apply((_float("log", input),), "log")


def sqrt(input: Tensor) -> Tensor:
    """The square root: NaN below 0."""
    return Unary.apply((_float("sqrt", input),), "sqrt")


def abs(input: Tensor) -> Tensor:
    """|input|, with gradient 0 at 0."""
    return _elementwise("abs", np.absolute, input)


@widened
def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; the gradient is 0 everywhere."""
    return Sign.apply((input,))


@widened
def clamp(input: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    """input limited to [min, max], either of which may be None; numbers only."""
    if min is None and max is None:
        raise ValueError("[clamp] At least one of min and max must be given. Got None and None.")
    for bound in (min, max):
        if bound is not None and not isinstance(bound, (bool, int, float, np.generic)):
            raise TypeError(f"[clamp] min and max must be numbers. Got {type(bound).__name__}.")
    bounds = [b.item() if isinstance(b, np.generic) else b for b in (min, max)]
    return Clamp.apply(
        (cast(input, result_type(input, *[b for b in bounds if b is not None])),), *bounds
    )


# ---- reductions ----


def _keep(x: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """A reduced array with the reduced axes as ones, so that it broadcasts against ``shape``."""
    return x.reshape([1 if i in axes else n for i, n in enumerate(shape)])


def _spread(dy: Array, x_shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """A new channels-last array: dy copied along the reduced axes."""
    out = empty_last(x_shape, dy)
    out[...] = _keep(dy, x_shape, axes)
    return out


class Sum(Op):
    """y = sum of x over axes."""

    fresh = True

    def forward(self, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
        self.x_shape, self.axes = x.shape, axes
        return reduce_sum(x, axes, keepdim)

    def backward(self, dy: Array) -> Array:
        return _spread(dy, self.x_shape, self.axes)


def _mean(x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    n = _count(x.shape, axes)
    total = _add_reduce(x, axis=axes, dtype=np.float64, keepdims=keepdim)
    with np.errstate(all="ignore"):
        return typed(np.true_divide(total, n), x.dtype)


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    n = 1
    for axis in axes:
        n *= shape[axis]
    return n


class Mean(Op):
    """y = mean of x over axes."""

    fresh = True

    def forward(self, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
        self.x_shape, self.axes = x.shape, axes
        return _mean(x, axes, keepdim)

    def backward(self, dy: Array) -> Array:
        n = _count(self.x_shape, self.axes)
        scaled = typed(dy / dy.dtype.type(n), dy.dtype) if n else dy
        return _spread(scaled, self.x_shape, self.axes)


class Var(Op):
    """y = sum (x - mean)^2 / (n - correction) over axes, or its root; dx = dy 2 (x - mean) / ..."""

    fresh = True

    def forward(
        self, x: Array, axes: tuple[int, ...], correction: float, keepdim: bool, root: bool
    ) -> Array:
        n = _count(x.shape, axes) - correction
        self.axes, self.n, self.root = axes, n if n > 0 else 0, root
        centred = combine("sub", x, _mean(x, axes, True))
        with np.errstate(all="ignore"):
            squares = np.multiply(centred, centred, dtype=np.float64)
            y = _add_reduce(squares, axis=axes, keepdims=keepdim) / np.float64(self.n)
            y = typed(np.sqrt(y) if root else y, x.dtype)
        self.saved = centred, y
        return y

    def backward(self, dy: Array) -> Array:
        centred, y = self.saved
        with np.errstate(all="ignore"):
            if self.root:  # a constant has no slope
                slope = np.where(y == 0, 0, dy / (y * self.n)).astype(dy.dtype)
            else:
                slope = typed(dy * dy.dtype.type(2) / dy.dtype.type(self.n), dy.dtype)
            return combine("mul", centred, _keep(slope, centred.shape, self.axes))


class Amax(Op):
    """y = the largest (smallest) of all elements; equal ones share the gradient evenly."""

    fresh = True

    def forward(self, x: Array, largest: bool) -> Array:
        y = typed(x.max() if largest else x.min(), x.dtype)
        self.saved = x, y
        return y

    def backward(self, dy: Array) -> Array:
        x, y = self.saved
        hit = (x == y) | (np.isnan(x) & np.isnan(y))
        share = typed(dy / typed(np.count_nonzero(hit), dy.dtype), dy.dtype)
        return elementwise(np.multiply, hit, share, dtype=dy.dtype)


class Select(Op):
    """(y, index): the elements of x that ``index`` picks along one axis."""

    fresh = True

    def forward(self, x: Array, index: Array, axis: int) -> Array:
        self.x_shape, self.index, self.axis = x.shape, index, axis
        return np.take_along_axis(x, index, axis)

    def backward(self, dy: Array) -> Array:
        dx = empty_last(self.x_shape, dy)
        dx[...] = 0
        np.put_along_axis(dx, self.index, dy, self.axis)  # no index twice along the axis
        return dx


class ValuesIndices(NamedTuple):
    """What ``max(dim)``, ``min(dim)``, ``topk`` and ``sort`` return."""

    values: Tensor
    indices: Tensor


@in_float32
def sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum over dim (an int, several, or None for all axes); ints and bools sum to int64."""
    axes = check_dims("sum", dim, input.array.ndim)
    if dtype is not None:
        input = cast(input, np.dtype(dtype))
    elif input.array.dtype.kind not in FLOATS:
        input = cast(input, INT64)
    return Sum.apply((input,), axes, keepdim)


@widened
def mean(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The mean over dim, of a floating tensor; NaN for no elements."""
    _require_float("mean", input)
    return Mean.apply((input,), check_dims("mean", dim, input.array.ndim), keepdim)


def _require_float(op: str, x: Tensor) -> None:
    if x.array.dtype.kind not in FLOATS:
        raise TypeError(f"[{op}] The tensor must be of a floating type. Got {x.array.dtype}.")


@widened
def var(
    input: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The variance over dim, divided by n - correction (1, or 0 with unbiased=False)."""
    return _var("var", input, dim, unbiased, keepdim, correction)


@widened
def std(
    input: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The standard deviation over dim: the root of :func:`var`."""
    return _var("std", input, dim, unbiased, keepdim, correction)


def _var(
    op: str, x: Tensor, dim: Any, unbiased: bool, keepdim: bool, correction: float | None
) -> Tensor:
    _require_float(op, x)
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    axes = check_dims(op, dim, x.array.ndim)
    by = float(unbiased) if correction is None else correction
    return Var.apply((x,), axes, by, keepdim, op == "std")


def _extremum(op: str, x: Tensor, dim: Any, keepdim: bool) -> Any:
    largest = op == "max"
    if isinstance(dim, Tensor) or is_array(dim):
        return maximum(x, dim) if largest else minimum(x, dim)
    if dim is None:
        if x.array.size == 0:
            raise ValueError(f"[{op}] There must be at least 1 element. Got shape {x.shape}.")
        return Amax.apply((x,), largest)
    indices = _arg(op, x, dim, True, largest)
    axis = check_dim(op, dim, x.array.ndim)
    values = _select(x, indices, axis)
    if not keepdim and x.array.ndim > 0:
        values = values.squeeze(axis)
        indices = indices.squeeze(axis)
    return ValuesIndices(values, Tensor(indices))


def _select(x: Tensor, indices: Array, axis: int) -> Tensor:
    if x.array.ndim == 0:
        return x.clone()
    return Select.apply((x,), indices, axis)


def _arg(op: str, x: Tensor, dim: Any, keepdim: bool, largest: bool) -> Array:
    """The first index of the largest (smallest) element along dim, int64; NaN counts as both."""
    axis = None if dim is None else check_dim(op, dim, x.array.ndim)
    n = x.array.size if axis is None else x.shape[axis] if x.array.ndim else 1
    if n == 0:
        raise ValueError(f"[{op}] There must be at least 1 element along dim. Got shape {x.shape}.")
    find = np.argmax if largest else np.argmin
    if x.array.ndim == 0 or axis is None:
        found = find(x.array)
        return typed(found, np.int64).reshape([1] * x.array.ndim if keepdim else [])
    return typed(find(x.array, axis=axis, keepdims=keepdim), np.int64)


@widened
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """All elements' largest; with dim a pair (values, indices), the first where several are equal;
    with a tensor in place of dim, :func:`maximum`."""
    return _extremum("max", input, dim, keepdim)


@widened
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """As :func:`max`, for the smallest."""
    return _extremum("min", input, dim, keepdim)


@widened
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """int64: where the largest element is, the first of several; of all in C order without dim."""
    return Tensor(_arg("argmax", input, dim, keepdim, True))


@widened
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """int64: where the smallest element is; as :func:`argmax`."""
    return Tensor(_arg("argmin", input, dim, keepdim, False))


def _order(x: Array, axis: int, descending: bool) -> Array:
    """Indices that sort along axis, equal elements in their order; NaN counts as the largest."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)


@widened
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """int64: the indices that sort input along dim, always stably."""
    axis = check_dim("argsort", dim, input.array.ndim)
    if input.array.ndim == 0:
        return Tensor(of(input.array).put(np.zeros((), np.int64)))
    return Tensor(c_order(_order(input.array, axis, descending)))


@widened
def sort(
    input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True
) -> ValuesIndices:
    """(values, indices) along dim, always stably."""
    axis = check_dim("sort", dim, input.array.ndim)
    order = argsort(input, dim, descending)
    return ValuesIndices(_select(input, order.array, axis), order)


@widened
def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> ValuesIndices:
    """The k largest (smallest) elements along dim, in order, with their indices."""
    axis = check_dim("topk", dim, input.array.ndim)
    n = input.shape[axis] if input.array.ndim else 1
    if not 0 <= k <= n:
        raise ValueError(f"[topk] k must be from 0 to the length of dim, {n}. Got {k}.")
    if input.array.ndim == 0:
        return ValuesIndices(input.clone(), argsort(input))
    order = _order(input.array, axis, largest)
    chosen = c_order(np.moveaxis(np.moveaxis(order, axis, 0)[:k], 0, axis))
    return ValuesIndices(_select(input, chosen, axis), Tensor(chosen))


def _truth(op: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    axes = check_dims(op, dim, x.array.ndim)
    find = np.any if op == "any" else np.all
    return Tensor(typed(find(wide(x.array), axis=axes, keepdims=keepdim), BOOL))


def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """bool: whether any element along dim is not 0."""
    return _truth("any", input, dim, keepdim)


def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """bool: whether no element along dim is 0."""
    return _truth("all", input, dim, keepdim)


class Cumsum(Op):
    """y[i] = x[0] + ... + x[i] along an axis, accumulated in float64."""

    fresh = True

    def forward(self, x: Array, axis: int) -> Array:
        self.axis = axis
        return _cumulate(x, axis)

    def backward(self, dy: Array) -> Array:
        if dy.ndim == 0:
            return combine("mul", dy, 1)
        return duplicate(np.flip(_cumulate(np.flip(dy, self.axis), self.axis), self.axis))


def _cumulate(x: Array, axis: int) -> Array:
    if x.ndim == 0:
        return combine("mul", x, 1)
    out = empty(x.shape, x.dtype, (x,))
    out[...] = np.cumsum(x, axis, dtype=np.float64 if x.dtype.kind in FLOATS else x.dtype)
    return out


@in_float32
@widened
def cumsum(input: Tensor, dim: int) -> Tensor:
    """The running sum along dim; ints and bools sum to int64."""
    axis = check_dim("cumsum", dim, input.array.ndim)
    x = input if input.array.dtype.kind in FLOATS else cast(input, INT64)
    return Cumsum.apply((x,), axis)
