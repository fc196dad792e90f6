"""What stands in for CuPy where there is no GPU: arrays in the memory of the simulated devices, and
NumPy doing what CuPy would do on a card.

It keeps to CuPy where the two libraries differ and our code could trip over it: no implicit
conversion to NumPy and no mixing with its arrays, 0-d arrays where NumPy gives scalars, results in
C order, no writes from host arrays, operands on the current device alone. What it does is done when
it is the current stream's turn (cupy_standin_cuda.py). test_cupy_standin.py compares names and
signatures with CuPy itself, where that is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from convgrad import _cuda_sim as sim
from tests import cupy_standin_cuda as cuda
from tests.cupy_standin_cuda import Device, MemoryPointer, alloc, get_current_stream, runtime

__version__ = "stand-in"

float32, float64, int32, int64 = np.float32, np.float64, np.int32, np.int64
uint8, bool_, dtype = np.uint8, np.bool_, np.dtype


# ---- arrays ----


class _At:
    """What NumPy reads to make a view of an address."""

    def __init__(self, ptr: int, shape: Any, dtype: np.dtype[Any], strides: Any) -> None:
        self.__array_interface__ = {
            "data": (ptr, False),
            "shape": shape,
            "typestr": dtype.str,
            "strides": strides,
            "version": 3,
        }


def _view(ptr: int, shape: Any, dtype: np.dtype[Any], strides: Any) -> np.ndarray:
    if dtype.kind != "V":
        return np.asarray(_At(ptr, shape, dtype, strides))
    # ml_dtypes' bfloat16, which the interface cannot name.
    return np.asarray(_At(ptr, shape, np.dtype(np.uint16), strides)).view(dtype)


class Flags:
    def __init__(self, host: np.ndarray, owndata: bool) -> None:
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = owndata

    @property
    def fnc(self) -> bool:
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self) -> bool:
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return {
            "C_CONTIGUOUS": self.c_contiguous,
            "F_CONTIGUOUS": self.f_contiguous,
            "OWNDATA": self.owndata,
        }[name]


class ndarray:
    """An array in device memory. ``_host`` is NumPy's view of that."""

    __array_priority__ = 100

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        kind = np.dtype(dtype)
        if strides is None:
            like = np.lib.stride_tricks.as_strided(np.empty((), kind), shape, (0,) * len(shape))
            strides = np.empty_like(like, order=order).strides
        if memptr is None:
            memptr = alloc(int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        self.data = memptr
        self.base: ndarray | None = None
        if 0 in shape:
            self._host = np.lib.stride_tricks.as_strided(np.empty(0, kind), shape, strides)
        else:
            self._host = _view(memptr.ptr, shape, kind, tuple(strides))

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def device(self) -> Device:
        return self.data.device

    @property
    def flags(self) -> Flags:
        return Flags(self._host, self.base is None)

    @property
    def T(self) -> ndarray:
        return _wrapped(self._host.T, (self,), lambda: None)  # a view

    # ---- to the host and back ----

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        with self.device:
            cuda.synchronize_for("D2H transfers", stream)
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError("Shape or dtype mismatch")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        with self.device:
            stream = stream or get_current_stream()
            if stream.is_capturing():
                raise RuntimeError(
                    "the current stream is capturing, so H2D transfers are disallowed"
                )
            _copy_from_host(self, arr, stream)

    def item(self, *args: int) -> Any:
        return self.get().item(*args)

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": 1,
            "version": 3,
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("The stand-in has no capsules; see from_dlpack().")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.data.device_id)  # kDLCUDA

    def __reduce__(self) -> Any:
        return array, (self.get(),)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        with self.device:
            return self.copy()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get() if self.ndim else self.get()[()], spec)

    # ---- what it does ----

    def __getitem__(self, key: Any) -> ndarray:
        _check_current((self,))
        if any(getattr(k, "dtype", np.dtype(int)).kind == "b" for k in _parts(key)):
            cuda.synchronize_for("synchronous API calls")  # for the number of elements
        host, shape, plain = self._host, self.shape, _host(key)

        def picked() -> Any:
            return host[_index(plain, shape)]

        return _wrapped(picked(), (self,), picked)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.size > 1:
            raise ValueError(
                "non-scalar numpy.ndarray cannot be used for fill"
            )  # CuPy refuses it so, see its issue 2079
        _check_current((self, value))
        host, shape, plain, new = self._host, self.shape, _host(key), _host(value)

        def assign() -> None:
            host[_index(plain, shape)] = new

        _submit(assign, (self, value, *_parts(key)), self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if isinstance(out, tuple):
            (out,) = out
        for x in (*inputs, *([] if out is None else [out])):
            known = (ndarray, np.ndarray, np.generic, bool, int, float, complex)
            if not isinstance(x, known) and not hasattr(x, "__cuda_array_interface__"):
                return NotImplemented
        if ufunc.__name__ in _COMPARISONS:  # as CuPy does
            inputs = tuple(
                [x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs]
            )
        if method != "__call__" and ufunc not in (np.add, np.multiply):
            return NotImplemented
        return _run(getattr(ufunc, method), inputs, kwargs, out)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        if function.__name__ in _ABSENT:
            return NotImplemented
        return globals().get(function.__name__, _function(function))(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(f"'ndarray' object has no attribute {name!r}")
        method = getattr(self._host, name)

        def run(*args: Any, out: ndarray | None = None, **kwargs: Any) -> Any:
            written = self if name in ("fill", "sort", "partition", "put") else None
            return _run(method, args, kwargs, out, (self,), written)

        return run

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: str = "unsafe",
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        host = self._host
        return _computed(lambda: host.astype(dtype, casting=casting), (self,))

    def copy(self, order: str = "C") -> ndarray:
        host = self._host
        return _computed(lambda: np.array(host, order=order), (self,), order)


_METHODS = frozenset(
    {
        *("all", "any", "argmax", "argmin", "argpartition", "argsort", "choose", "clip"),
        *("compress", "conj", "cumprod", "cumsum", "diagonal", "dot", "fill", "flatten", "max"),
        *("mean", "min", "nonzero", "partition", "prod", "put", "ravel", "repeat", "reshape"),
        *("round", "searchsorted", "sort", "squeeze", "std", "sum", "swapaxes", "take", "trace"),
        *("transpose", "var", "view"),
    }
)
_COMPARISONS = ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")
_ABSENT = frozenset({"errstate", "require"})  # of NumPy's names that we use, CuPy has all others
_WRITE_TO_FIRST = frozenset(
    {"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"}
)


def _host(value: Any) -> Any:
    """What NumPy computes with in an array's place."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, (tuple, list)):
        return type(value)([_host(v) for v in value])
    return value


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _index(key: Any, shape: tuple[int, ...]) -> Any:
    """The index for NumPy. Arrays of integers count round and round, as CuPy has it."""
    parts = [_host(k) for k in key] if isinstance(key, tuple) else [_host(key)]
    arrays = [isinstance(p, (np.ndarray, list)) for p in parts]
    axes = [
        getattr(p, "ndim", 1) if a and np.asarray(p).dtype == bool else 1
        for p, a in zip(parts, arrays)
    ]
    axes = [0 if p is None else n for p, n in zip(parts, axes)]
    axis = 0
    for i, p in enumerate(parts):
        if p is Ellipsis:
            axis = len(shape) - sum(axes[i + 1 :])
            continue
        if arrays[i] and np.asarray(p).dtype.kind in "iu" and shape[axis]:
            parts[i] = np.asarray(p) % shape[axis]
        axis += axes[i]
    return tuple(parts) if isinstance(key, tuple) else parts[0]


def _arrays(values: Any) -> list[ndarray]:
    found = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _arrays(value)
    return found


def _check_current(values: Any) -> None:
    current = runtime.getDevice()
    for a in _arrays(values):
        if a.data.device_id != current:
            raise ValueError(
                "Array device must be same as the current device: array device = "
                f"{a.data.device_id} while current = {current}"
            )


def _check_no_host_arrays(values: Any) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, (tuple, list)):
            _check_no_host_arrays(value)


def _written(host: np.ndarray) -> None:
    """Tells the simulator that the array's memory holds values."""
    if host.size > 0:
        low, high = np.lib.array_utils.byte_bounds(host)
        sim.sim_mark_written(low, high - low)


def _check_allocated(host: np.ndarray) -> None:
    """What is done later must find its arrays' memory still theirs."""
    if host.size > 0:
        low, high = np.lib.array_utils.byte_bounds(host)
        if not sim.sim_is_allocated(low, high - low):
            raise RuntimeError(
                f"[cupy] use after free: the memory of an array of shape {host.shape} was given "
                "back before the work on it was done"
            )


def _submit(work: Callable[[], Any], used: Any, written: ndarray | None = None) -> None:
    """work() when it is the current stream's turn. As on a card, that keeps no array alive: what
    the work holds are NumPy's views of addresses."""
    result = None if written is None else written._host
    stream = get_current_stream().ptr
    if sim.sim_runs_at_once(stream):
        work()
        if result is not None:
            _written(result)
        return
    hosts = [a._host for a in _arrays(used)]

    def run() -> None:
        for host in hosts:
            _check_allocated(host)
        with np.errstate(all="ignore"):
            work()
        if result is not None:
            _written(result)

    sim.sim_submit(stream, run)


def _copy_from_host(a: ndarray, arr: np.ndarray, stream: Any) -> None:
    """Copies from pinned memory are left until somebody waits; all others have read their source
    when they return."""
    target = a._host
    at = arr.__array_interface__["data"][0]
    pinned = arr.size > 0 and sim.sim_is_allocated(at, arr.nbytes)
    # The source as it is then: an address, which keeps nothing alive.
    source = np.asarray(_At(at, arr.shape, arr.dtype, arr.strides)) if pinned else arr.copy()

    def copy() -> None:
        _check_allocated(target)
        target[...] = source
        _written(target)

    if pinned:
        sim.sim_defer(stream.ptr, copy)
    else:
        sim.sim_submit(stream.ptr, copy)


def _new(host: np.ndarray, order: str = "C") -> ndarray:
    """A copy of NumPy's array."""
    if get_current_stream().is_capturing():
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    out = ndarray(host.shape, host.dtype, order="F" if order == "F" else "C")
    _copy_from_host(out, host, get_current_stream())
    return out


def _computed(compute: Callable[[], Any], used: Any, order: str = "C", like: Any = None) -> ndarray:
    """compute() in a new array. ``like``: what it gave just now, which may be wrong in values."""
    now = np.asarray(compute() if like is None else like)
    out = ndarray(now.shape, now.dtype, order="F" if order == "F" else "C")
    host = out._host
    if sim.sim_runs_at_once(get_current_stream().ptr):
        host[...] = now
        _written(host)
        return out

    def assign() -> None:
        host[...] = compute()

    _submit(assign, (*used, out), out)
    return out


def _wrapped(result: Any, operands: Any, compute: Callable[[], Any]) -> Any:
    """NumPy's result, of compute(), as ours: a view of an operand where it is one, else a new
    array."""
    if isinstance(result, (tuple, list)):
        return type(result)(
            [_wrapped(r, operands, lambda i=i: compute()[i]) for i, r in enumerate(result)]
        )
    if isinstance(result, np.generic):
        return _computed(compute, _arrays(operands), like=result)
    if not isinstance(result, np.ndarray):
        return result
    address = result.__array_interface__["data"][0]
    for a in _arrays(operands):
        block = a.data.mem
        if result is a._host:
            return a
        if result.base is not None and block.ptr <= address < block.ptr + block.size:
            root = a if a.base is None else a.base
            out = ndarray(
                result.shape,
                result.dtype,
                MemoryPointer(block, address - block.ptr),
                result.strides,
            )
            out.base = root
            return out
    return _computed(compute, _arrays(operands), like=result)


# Functions whose result's shape depends on values: they wait for these.
_WAIT = frozenset({"argwhere", "compress", "extract", "flatnonzero", "nonzero", "unique"})


def _run(
    function: Any,
    args: Any,
    kwargs: dict[str, Any],
    out: Any = None,
    extra: Any = (),
    written: ndarray | None = None,
) -> Any:
    """The function, by NumPy, on arrays of the current device; ``written``: the one it changes."""
    values = (*extra, *args, *kwargs.values())
    _check_current((*values, out))
    _check_no_host_arrays((*values, out))
    if getattr(function, "__name__", "") in _WAIT:
        cuda.synchronize_for("synchronous API calls")
    plain, hosts = {k: _host(v) for k, v in kwargs.items()}, _host(tuple(args))
    if written is not None:
        return _submit(lambda: function(*hosts, **plain), values, written)
    with np.errstate(all="ignore"):
        if out is None:
            return _wrapped(function(*hosts, **plain), values, lambda: function(*hosts, **plain))
        target = out._host
        _submit(lambda: function(*hosts, out=target, **plain), (*values, out), out)
    return out


def _function(function: Any) -> Any:
    @functools.wraps(function)
    def run(*args: Any, out: ndarray | None = None, **kwargs: Any) -> Any:
        written = args[0] if function.__name__ in _WRITE_TO_FIRST else None
        return _run(function, args, kwargs, out, (), written)

    return run


def _add_operators() -> None:
    binary = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "truediv": np.true_divide,
        "floordiv": np.floor_divide,
        "mod": np.remainder,
        "pow": np.power,
        "matmul": np.matmul,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "lshift": np.left_shift,
        "rshift": np.right_shift,
    }
    compare = {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    }

    def yields(x: Any, y: Any) -> bool:
        """Whether y's reflected operator is to be called: CuPy's _should_use_rop."""
        if hasattr(y, "__array_ufunc__"):
            return y.__array_ufunc__ is None
        return getattr(x, "__array_priority__", 0) < getattr(y, "__array_priority__", 0)

    def forward(ufunc: Any) -> Any:
        return lambda x, y: NotImplemented if yields(x, y) else ufunc(x, y)

    def reflected(ufunc: Any) -> Any:
        return lambda x, y: ufunc(y, x)

    def assigned(ufunc: Any) -> Any:
        return lambda x, y: NotImplemented if yields(x, y) else ufunc(x, y, out=x)

    for name, ufunc in binary.items():
        setattr(ndarray, f"__{name}__", forward(ufunc))
        setattr(ndarray, f"__r{name}__", reflected(ufunc))
        if name != "matmul":
            setattr(ndarray, f"__i{name}__", assigned(ufunc))
    for name, ufunc in compare.items():
        setattr(ndarray, f"__{name}__", forward(ufunc))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(ndarray, f"__{name}__", lambda x, ufunc=ufunc: ufunc(x))
    ndarray.__pos__ = lambda x: x.copy()  # type: ignore[attr-defined]
    ndarray.__hash__ = None  # type: ignore[assignment]


_add_operators()


# ---- functions ----


def array(obj: Any, dtype: Any = None, copy: Any = True, order: str = "K", **_: Any) -> ndarray:
    if isinstance(obj, ndarray):
        here = obj.data.device_id == runtime.getDevice()
        same = here and (dtype is None or obj.dtype == dtype)
        if not copy and same and (order == "K" or obj.flags.c_contiguous):
            return obj
        host, kind = obj._host, obj.dtype if dtype is None else dtype
        return _computed(lambda: host.astype(kind), (obj,))
    if not copy and hasattr(obj, "__cuda_array_interface__"):
        return _shared(obj)
    return _new(np.array(_nested(obj), dtype))


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, copy: Any = None, *, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=False, order="C")


def _nested(obj: Any) -> Any:
    if isinstance(obj, ndarray):
        return obj._host
    return [_nested(v) for v in obj] if isinstance(obj, (list, tuple)) else obj


class _Foreign:
    """Memory of another library's."""

    def __init__(self, owner: Any, ptr: int) -> None:
        self.owner, self.ptr = owner, ptr
        self.device_id = owner.data.device_id if isinstance(owner, ndarray) else 0
        self.size = 1 << 62


def _shared(obj: Any) -> ndarray:
    about = obj.__cuda_array_interface__
    memory: Any = _Foreign(obj, about["data"][0])
    kind = obj.dtype if isinstance(obj, ndarray) else np.dtype(about["typestr"])
    return ndarray(about["shape"], kind, MemoryPointer(memory, 0), about["strides"])


def from_dlpack(obj: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    if obj.__dlpack_device__()[0] != 2:
        raise TypeError("from_dlpack takes arrays of CUDA devices here.")
    out = _shared(obj if isinstance(obj, ndarray) else obj.array)
    return out


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, **_: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a, order=order)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def empty_like(prototype: ndarray, dtype: Any = None, order: str = "K", **_: Any) -> ndarray:
    like = np.empty_like(prototype._host, dtype, order)
    return ndarray(like.shape, like.dtype, strides=like.strides)


def zeros_like(a: ndarray, dtype: Any = None, order: str = "K", **_: Any) -> ndarray:
    out = empty_like(a, dtype, order)
    out[...] = 0
    return out


def get_default_memory_pool() -> cuda.MemoryPool:
    return _pool


_pool = cuda.MemoryPool()  # holds nothing: see cuda._Unpooled


def __getattr__(name: str) -> Any:
    """NumPy's function of that name, on our arrays and with results in device memory."""
    if name.startswith("_") or name in _ABSENT:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    function = getattr(np, name)
    return (
        _function(function) if callable(function) and not isinstance(function, type) else function
    )
