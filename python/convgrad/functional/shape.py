"""Reshaping, permuting, joining, repeating and indexing.

``view`` is ``reshape``: logical (row-major) order, copying where it must; aliasing is never
promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad.autograd import Op
from convgrad.backend import CPU, is_array, lib_of, of, typed
from convgrad.dtypes import FLOATS
from convgrad.functional.math import (
    c_order,
    cast,
    check_dim,
    check_dims,
    empty,
    empty_last,
    promoted,
    reduce_sum,
    sum_to,
)
from convgrad.tensor import Tensor

__all__ = [
    "broadcast_to",
    "cat",
    "chunk",
    "expand",
    "flatten",
    "gather",
    "index",
    "movedim",
    "permute",
    "repeat",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
    "unflatten",
    "unsqueeze",
]

Array = Any
MAX_RANK = 8  # of the kernels (kMaxRank in csrc/ops.h)


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of like's dtype, channels-last."""
    out = empty_last(shape, like)
    out[...] = 0
    return out


# ---- reshape ----


def _reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """x in row-major order under another shape; a view where x lies in that order already."""
    if not x.flags.c_contiguous:
        x = lib_of(x).contiguous(x) if x.dtype.kind in FLOATS else c_order(x)
    return x.reshape(shape)


class Reshape(Op):
    """The same elements in row-major order under another shape."""

    view = True

    def forward(self, x: Array, shape: tuple[int, ...]) -> Array:
        self.x_shape = x.shape
        return _reshaped(x, shape)

    def backward(self, dy: Array) -> Array:
        return _reshaped(dy, self.x_shape)


def _resolve(op: str, shape: tuple[int, ...], n: int, got: tuple[int, ...]) -> tuple[int, ...]:
    """shape with its one -1 replaced, checked to hold n elements."""
    known, unknown = 1, 0
    for s in shape:
        if s == -1:
            unknown += 1
        elif s < 0:
            raise ValueError(f"[{op}] A size must be -1 or at least 0. Got {shape}.")
        else:
            known *= s
    if unknown > 1:
        raise ValueError(f"[{op}] Only one size may be -1. Got {shape}.")
    if unknown and known and n % known == 0:
        return tuple([n // known if s == -1 else s for s in shape])
    if unknown or known != n:
        raise ValueError(f"[{op}] The new shape must hold the {n} elements of {got}. Got {shape}.")
    return shape


def sizes(op: str, args: Sequence[Any]) -> tuple[int, ...]:
    """Ints given one by one, or as one tuple or list."""
    given = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    try:
        return tuple([s.__index__() for s in given])
    except (AttributeError, TypeError):
        raise TypeError(f"[{op}] Sizes must be ints. Got {tuple(given)!r}.") from None


def reshape(input: Tensor, *shape: Any) -> Tensor:
    """input in row-major order under another shape, one size of which may be -1."""
    wanted = _resolve("reshape", sizes("reshape", shape), input.array.size, input.shape)
    return Reshape.apply((input,), wanted)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim as one."""
    shape = input.shape
    if not shape:
        return Reshape.apply((input,), (1,))
    start = check_dim("flatten", start_dim, len(shape))
    end = check_dim("flatten", end_dim, len(shape))
    if start > end:
        raise ValueError(
            f"[flatten] start_dim must not come after end_dim. Got {start_dim} and {end_dim}."
        )
    size = math.prod(shape[start : end + 1])
    return Reshape.apply((input,), (*shape[:start], size, *shape[end + 1 :]))


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Axis dim as several, one size of which may be -1."""
    axis = check_dim("unflatten", dim, input.array.ndim)
    shape = input.shape
    parts = _resolve("unflatten", tuple(sizes), shape[axis], (shape[axis],))
    return Reshape.apply((input,), (*shape[:axis], *parts, *shape[axis + 1 :]))


def squeeze(input: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Without the axes of length 1 (among dim, if given)."""
    axes = check_dims("squeeze", dim, input.array.ndim) if dim != () else ()
    shape = tuple([s for i, s in enumerate(input.shape) if s != 1 or i not in axes])
    return Reshape.apply((input,), shape)


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With an axis of length 1 more, at dim (counted in the result)."""
    axis = check_dim("unsqueeze", dim, input.array.ndim + 1)
    return Reshape.apply((input,), (*input.shape[:axis], 1, *input.shape[axis:]))


# ---- permute ----


class Permute(Op):
    """The axes in another order; a view."""

    view = True

    def forward(self, x: Array, order: tuple[int, ...]) -> Array:
        self.order = order
        return x.transpose(order)

    def backward(self, dy: Array) -> Array:
        inverse = [0] * len(self.order)
        for i, axis in enumerate(self.order):
            inverse[axis] = i
        return dy.transpose(inverse)


def permute(input: Tensor, *dims: Any) -> Tensor:
    """The axes in the order dims."""
    rank = input.array.ndim
    given = sizes("permute", dims)
    order = tuple([check_dim("permute", d, rank) for d in given])
    if sorted(order) != list(range(rank)):
        raise ValueError(f"[permute] dims must name each of the {rank} axes once. Got {given}.")
    return Permute.apply((input,), order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    rank = input.array.ndim
    a, b = check_dim("transpose", dim0, rank), check_dim("transpose", dim1, rank)
    order = list(range(rank))
    if rank:
        order[a], order[b] = b, a
    return Permute.apply((input,), tuple(order))


swapaxes = transpose


def movedim(input: Tensor, source: int, destination: int) -> Tensor:
    """One axis moved, the others in their order."""
    rank = input.array.ndim
    a, b = check_dim("movedim", source, rank), check_dim("movedim", destination, rank)
    order = [i for i in range(rank) if i != a]
    order.insert(b, a)
    return Permute.apply((input,), tuple(order[:rank]))


# ---- expand, repeat ----


class Expand(Op):
    """x repeated along axes of length 1, without a copy."""

    view = True

    def forward(self, x: Array, shape: tuple[int, ...]) -> Array:
        self.x_shape = x.shape
        return np.broadcast_to(x, shape)

    def backward(self, dy: Array) -> Array:
        return sum_to(dy, self.x_shape)


def expand(input: Tensor, *shape: Any) -> Tensor:
    """input broadcast to shape, where -1 keeps a length; not to be written into."""
    wanted = sizes("expand", shape)
    own = input.shape
    lead = len(wanted) - len(own)
    full = tuple([own[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(wanted)])
    fits = lead >= 0 and all(s >= 0 for s in full)
    if not fits or any(s not in (1, full[lead + i]) for i, s in enumerate(own)):
        raise ValueError(f"[expand] Only axes of length 1 grow. Got {own} to {wanted}.")
    return Expand.apply((input,), full)


def broadcast_to(input: Tensor, shape: Sequence[int]) -> Tensor:
    """:func:`expand` with a tuple."""
    return expand(input, tuple(shape))


class Repeat(Op):
    """x laid out several times along each axis."""

    fresh = True

    def forward(self, x: Array, counts: tuple[int, ...]) -> Array:
        self.x_shape, self.counts = x.shape, counts
        own = (1,) * (len(counts) - x.ndim) + x.shape
        shape = tuple([n * s for n, s in zip(counts, own)])
        out = empty(shape, x.dtype, (x,))
        out[...] = np.tile(x, counts)
        return out

    def backward(self, dy: Array) -> Array:
        own = (1,) * (len(self.counts) - len(self.x_shape)) + self.x_shape
        split = [v for pair in zip(self.counts, own) for v in pair]  # (n0, s0, n1, s1, ...)
        axes = tuple(range(0, len(split), 2))
        total = reduce_sum(c_order(dy).reshape(split), axes)
        return total.reshape(self.x_shape)


def repeat(input: Tensor, *counts: Any) -> Tensor:
    """input laid out counts[i] times along axis i; further axes come in front."""
    times = sizes("repeat", counts)
    if len(times) < input.array.ndim or any(n < 0 for n in times):
        raise ValueError(
            f"[repeat] There must be one count, at least 0, per axis of {input.shape}. Got {times}."
        )
    return Repeat.apply((input,), times)


# ---- join, split ----


class Cat(Op):
    """The arrays one after another along an axis."""

    fresh = True

    def forward(self, *args: Any) -> Array:
        *arrays, axis = args
        self.axis = axis
        self.lengths = [a.shape[axis] for a in arrays]
        if arrays[0].dtype.itemsize < 4 or arrays[0].ndim > MAX_RANK:
            return np.concatenate(arrays, axis)
        return lib_of(arrays[0]).cat(arrays, axis)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        if all(self.needs):
            return tuple(lib_of(dy).split(dy, self.axis, self.lengths))
        grads: list[Array | None] = []
        start = 0
        for length, need in zip(self.lengths, self.needs):
            grads.append(lib_of(dy).narrow(dy, self.axis, start, length) if need else None)
            start += length
        return tuple(grads)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after another along dim; their other lengths must be equal.

    Differing types are converted to their common one. ValueError for shapes that do not fit.
    """
    given = list(tensors)
    if not given:
        raise ValueError("[cat] There must be at least 1 tensor. Got none.")
    first = given[0].shape
    if not first:
        raise ValueError("[cat] Tensors without axes cannot be joined; use stack. Got shape ().")
    axis = check_dim("cat", dim, len(first))
    for t in given:
        own = t.shape
        if len(own) != len(first) or (own[:axis], own[axis + 1 :]) != (
            first[:axis],
            first[axis + 1 :],
        ):
            raise ValueError(
                f"[cat] The tensors must have equal shapes except along dim {axis}. Got {first} "
                f"and {own}."
            )
    return Cat.apply(_one_dtype(given), axis)


def _one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    dtype = tensors[0].array.dtype
    if all(t.array.dtype == dtype for t in tensors):
        return tensors
    for t in tensors:
        dtype = promoted(dtype, t.array.dtype)
    return [cast(t, dtype) for t in tensors]


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors, of one shape, along a new axis at dim."""
    given = list(tensors)
    if not given:
        raise ValueError("[stack] There must be at least 1 tensor. Got none.")
    for t in given:
        if t.shape != given[0].shape:
            raise ValueError(
                f"[stack] The tensors must have one shape. Got {given[0].shape} and {t.shape}."
            )
    axis = check_dim("stack", dim, given[0].array.ndim + 1)
    return cat([unsqueeze(t, axis) for t in given], axis)


def split(input: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along dim: of split_size elements each but the last, or of the given lengths."""
    axis = check_dim("split", dim, input.array.ndim)
    n = input.shape[axis]
    if isinstance(split_size, int):
        if split_size < 1:
            raise ValueError(f"[split] split_size must be at least 1. Got {split_size}.")
        lengths = [min(split_size, n - i) for i in range(0, n, split_size)] or [0]
    else:
        lengths = list(split_size)
        if sum(lengths) != n or min(lengths, default=0) < 0:
            raise ValueError(f"[split] The lengths must sum to {n}, dim {dim}'s. Got {lengths}.")
    pieces, start = [], 0
    for length in lengths:
        where = (slice(None),) * axis + (slice(start, start + length),)
        pieces.append(Index.apply((input,), where))
        start += length
    return tuple(pieces)


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of equal length along dim; the last may be shorter."""
    if chunks < 1:
        raise ValueError(f"[chunk] chunks must be at least 1. Got {chunks}.")
    n = input.shape[check_dim("chunk", dim, input.array.ndim)]
    return split(input, max(1, -(-n // chunks)), dim)


# ---- index ----


class Index(Op):
    """y = x[index] as NumPy has it; duplicates in index add up in index order."""

    view = True

    def forward(self, x: Array, index: Any) -> Array:
        if type(x) is not np.ndarray:
            index = _on_device(index, x)
        self.x_shape, self.index = x.shape, index
        lib = lib_of(x)
        if _is_rows(index) and x.dtype.kind in FLOATS and 0 < x.ndim <= MAX_RANK:
            return lib.index_rows(x, index)
        y = typed(x[index], x.dtype)
        if _is_basic(index):
            return y
        if y.ndim == x.ndim > 2 and y.dtype.kind in FLOATS and lib.is_channels_last(x):
            return lib.channels_last(y)
        return y

    def backward(self, dy: Array) -> Array:
        lib, shape, index = lib_of(dy), self.x_shape, self.index
        if _is_basic(index) or _is_mask(index):  # every element at most once
            dx = _zeros(shape, dy)
            dx[index] = dy
            return dx
        if _is_rows(index) and dy.ndim <= MAX_RANK:
            return lib.index_add(index, dy, shape[0])
        size = math.prod(shape)
        positions = of(dy).xp.arange(size).reshape(shape)[index]
        return lib.index_add(positions.ravel(), dy.ravel(), size).reshape(shape)


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, slice) or type(p) is int for p in parts)


def _is_rows(index: Any) -> bool:
    """Rows picked along axis 0 by a list of int64."""
    return is_array(index) and index.ndim == 1 and index.dtype == np.int64


def _is_mask(index: Any) -> bool:
    return is_array(index) and index.dtype == np.bool_


def array_index(index: Any) -> Any:
    """An index with arrays in place of tensors and lists. IndexError for what cannot index."""
    if isinstance(index, tuple):
        return tuple([_index_part(i) for i in index])
    return _index_part(index)


def _index_part(part: Any) -> Any:
    if part is None or part is Ellipsis or type(part) is int:
        return part
    if isinstance(part, slice):
        return slice(
            *[v if v is None else v.__index__() for v in (part.start, part.stop, part.step)]
        )
    array = part.array if isinstance(part, Tensor) else part
    array = array if is_array(array) else np.asarray(array)
    if array.dtype.kind not in "biu":
        if array.size == 0 and not (isinstance(part, Tensor) or is_array(part)):
            return array.astype(np.int64)  # an empty list
        raise IndexError(
            "[index] An index must be ints, slices, None, Ellipsis, or bool or integer tensors. "
            f"Got {array.dtype}."
        )
    if array.ndim == 0 and array.dtype.kind != "b":
        return int(array)
    return array


def index(input: Tensor, index: Any) -> Tensor:
    """input[index]: ints, slices, None, Ellipsis, bool masks, integer arrays and tensors.

    IndexError for what lies outside; the message is NumPy's.
    """
    return Index.apply((input,), array_index(index))


def _on_device(index: Any, x: Array) -> Any:
    """The index for an array on a GPU: its arrays there too, and checked, because CuPy takes what
    lies outside as counted round and round."""
    backend = of(x)
    parts = index if isinstance(index, tuple) else (index,)
    placed = [backend.put(p) if is_array(p) and of(p) is CPU else p for p in parts]
    axis = 0
    for i, p in enumerate(placed):
        if p is Ellipsis:
            taken = [q.ndim if _is_mask(q) else 1 for q in placed[i + 1 :] if q is not None]
            axis = x.ndim - sum(taken)
        elif is_array(p):
            if p.dtype.kind != "b":
                backend.lib.check_index(p, x.shape[axis])
            axis += p.ndim if p.dtype.kind == "b" else 1
        elif p is not None:
            axis += 1
    return tuple(placed) if isinstance(index, tuple) else placed[0]


class Gather(Op):
    """y[i, j] = x[index[i, j], j] for axis 0, and so on."""

    fresh = True

    def forward(self, x: Array, index: Array, axis: int) -> Array:
        self.x_shape = x.shape
        grid = list(np.ogrid[tuple([slice(n) for n in index.shape])])
        grid[axis] = index
        self.index = tuple(grid) if type(x) is np.ndarray else _on_device(tuple(grid), x)
        return x[self.index]

    def backward(self, dy: Array) -> tuple[Array, None]:
        size = math.prod(self.x_shape)
        positions = of(dy).xp.arange(size).reshape(self.x_shape)[self.index]
        dx = lib_of(dy).index_add(positions.ravel(), dy.ravel(), size)
        return dx.reshape(self.x_shape), None


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The elements that index (int64, of input's rank) picks along dim, as ``torch.gather``."""
    axis = check_dim("gather", dim, input.array.ndim)
    if index.array.ndim != input.array.ndim or index.array.dtype.kind not in "iu":
        raise ValueError(
            f"[gather] index must be integers of {input.array.ndim} axes. Got "
            f"{index.array.dtype} of shape {index.shape}."
        )
    return Gather.apply((input, index), axis)
