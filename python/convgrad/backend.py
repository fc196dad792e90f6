"""Which kernels and array library serve an array: NumPy and ``_cpu``, or CuPy and ``_cuda``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from convgrad import _cpu, capturing
from convgrad.dtypes import is_half

__all__ = [
    "CPU",
    "Backend",
    "by_device",
    "convert_float",
    "cuda_status",
    "device",
    "for_new",
    "get_default_device",
    "get_float32_precision",
    "host",
    "is_array",
    "is_exact",
    "lib_of",
    "of",
    "set_default_device",
    "set_exact",
    "set_float32_precision",
    "typed",
]


class Backend:
    """An array library and the kernels for its arrays, on one device.

    ``lib`` holds the bindings (csrc/python), the same functions for every backend; ``xp`` is the
    array library, for what is not worth a kernel.
    """

    __slots__ = ("device", "lib", "xp")

    def __init__(self, device: str, xp: Any, lib: Any) -> None:
        self.device = device
        self.xp = xp
        self.lib = lib

    def __repr__(self) -> str:
        return f"Backend({self.device!r})"

    def current(self) -> AbstractContextManager[Any]:
        """While this lasts, the array library works on the device."""
        return nullcontext()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Uninitialised, channels-last, from the pool."""
        # An array of that shape that occupies one element.
        return self.lib.empty_like(np.broadcast_to(dtype.type(0), shape))

    def put(self, host: np.ndarray) -> Any:
        """The values of a NumPy array on this device, in the same layout if it is channels-last;
        itself on the CPU."""
        return host

    def small(self, values: Any) -> Any:
        """float64 or the NumPy array's type: a few numbers that a kernel reads."""
        return np.asarray(values)

    def changing(self, numbers: Callable[[], np.ndarray]) -> Any:
        """As ``small(numbers())``, for numbers that may be others in the next training step: a
        captured one calls ``numbers`` before each replay."""
        return numbers()

    def constant(self, value: float) -> Any:
        """A number that a kernel reads: itself on the CPU, else a float64 array of no axes."""
        return value

    def host(self, array: Any) -> np.ndarray:
        """The array in NumPy: itself on the CPU, else a C-order copy, float32 of 16-bit types."""
        return array


class CudaBackend(Backend):
    """CuPy and ``_cuda`` on one GPU."""

    __slots__ = ("_constants", "index")

    def __init__(self, index: int, xp: Any, lib: Any) -> None:
        super().__init__(f"cuda:{index}", xp, lib)
        self.index = index
        self._constants: dict[float, Any] = {}

    def current(self) -> AbstractContextManager[Any]:
        return self.xp.cuda.Device(self.index)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        with self.current():
            return self.lib.empty_like(self.xp.broadcast_to(self.xp.empty((), dtype), shape))

    def put(self, host: np.ndarray) -> Any:
        capturing.refuse(
            "Nothing is copied from the host inside a captured step: each replay would see the "
            "values of now. Make it an argument of the step."
        )
        with self.current():
            if host.ndim > 2 and not host.flags.c_contiguous and CPU.lib.is_channels_last(host):
                # CuPy copies in C order: of the axes as they lie in memory.
                return self.xp.moveaxis(self.xp.asarray(np.moveaxis(host, 1, -1)), -1, 1)
            return self.xp.asarray(host)

    def small(self, values: Any) -> Any:
        return self.lib.to_device(np.asarray(values), self.index)

    def changing(self, numbers: Callable[[], np.ndarray]) -> Any:
        recorder = capturing.recorder()
        return self.small(numbers()) if recorder is None else recorder.number(numbers)

    def constant(self, value: float) -> Any:
        found = self._constants.get(value)
        if found is None:
            found = self.small(np.float64(value))
            if capturing.recorder() is None and len(self._constants) < _MAX_CONSTANTS:
                with self.current():  # other streams may read it
                    self.xp.cuda.get_current_stream().synchronize()
                self._constants[value] = found
        return found

    def host(self, array: Any) -> np.ndarray:
        capturing.refuse(
            "Values cannot be read inside a captured step, which is recorded and not run. Return "
            "the tensor, and read it after the call."
        )
        if is_half(array.dtype):
            array = self.lib.convert(array, "float32")
        out = array.get()
        self.lib.raise_errors(self.index)
        return out


_MAX_CONSTANTS = 1000


class device(str):
    """'cpu', 'cuda' or 'cuda:N': a string with PyTorch's attributes."""

    __slots__ = ()

    @property
    def type(self) -> str:
        return self.split(":")[0]

    @property
    def index(self) -> int | None:  # type: ignore[override]
        number = self.partition(":")[2]
        return int(number) if number else None


CPU: Backend = Backend("cpu", np, _cpu)
_LIB_BY_TYPE: dict[type, Any] = {np.ndarray: _cpu}
_cuda: list[CudaBackend] = []  # by index, once CUDA has been asked for
_cuda_arrays: Any = ()  # CuPy's type, in a tuple
_arrays: Any = (np.ndarray,)  # and NumPy's
_default: Backend = CPU


def of(array: Any) -> Backend:
    """The backend of an array; TypeError for anything that is not one."""
    if type(array) is np.ndarray:
        return CPU
    if isinstance(array, _cuda_arrays):
        return _cuda[array.data.device_id]
    if isinstance(array, (np.ndarray, np.generic)):
        return CPU
    raise TypeError(
        f"[convgrad] An array must be NumPy's, or CuPy's on a GPU. Got {type(array).__name__}."
    )


def lib_of(array: Any) -> Any:
    """The kernels for an array."""
    try:
        return _LIB_BY_TYPE[type(array)]
    except KeyError:
        return of(array).lib


def is_array(value: Any) -> bool:
    """Whether the value is an array of NumPy's or, once CUDA is in use, CuPy's."""
    return isinstance(value, _arrays)


def host(array: Any) -> Any:
    """The array in NumPy: itself on the CPU, else a copy. ValueError if a kernel on its device has
    found a bad value."""
    return array if type(array) is np.ndarray else of(array).host(array)


def convert_float(array: Any, dtype: np.dtype[Any]) -> Any:
    """A float array in another float type, by the kernel: rounded to nearest, channels-last where
    the array is."""
    lib = lib_of(array)
    if array.dtype.name != "float32" and dtype.name != "float32":
        array = lib.convert(array, "float32")
    return lib.convert(array, dtype.name)


def typed(result: Any, dtype: Any) -> Any:
    """What the array library returned, an array or one of NumPy's scalars, as an array of dtype."""
    if _cuda_arrays and isinstance(result, _cuda_arrays):
        return result.astype(dtype, copy=False)
    return np.asarray(result, dtype)


def set_exact(exact: bool) -> None:
    """Whether convolutions keep to algorithms that are as accurate as a plain float32 sum.

    False at first: 3x3 kernels may be computed by Winograd's F(4x4, 3x3), two to three times faster
    with some ten times the rounding error (still about 1e-6 of the largest value; the bounds are in
    docs/cpu-kernels.md). For the whole process, from the next call on. Each setting gives the same
    bits every time; the two differ. TypeError unless bool.
    """
    if not isinstance(exact, bool):
        raise TypeError(f"[set_exact] exact must be a bool. Got {type(exact).__name__}.")
    for lib in set(_LIB_BY_TYPE.values()):
        lib.set_exact_algorithms(exact)


def is_exact() -> bool:
    """What :func:`set_exact` was last told."""
    return bool(CPU.lib.exact_algorithms())


def set_float32_precision(precision: str) -> None:
    """What a GPU makes of the float32 operands of convolutions and matrix products.

    'highest', at first: results as accurate as a plain float32 sum's, by tensor cores in three
    products each. 'tf32': operands are rounded to 11 significant bits and multiplied once, which
    tensor cores do some three times faster; sums are float32. ``set_exact(True)`` overrules it. For
    the whole process, from the next call on. No effect on the CPU, nor on float64.
    ValueError for any other word.
    """
    if precision not in ("highest", "tf32"):
        raise ValueError(
            f"[set_float32_precision] precision must be 'highest' or 'tf32'. Got {precision!r}."
        )
    for lib in set(_LIB_BY_TYPE.values()):
        lib.set_tf32(precision == "tf32")


def get_float32_precision() -> str:
    """What :func:`set_float32_precision` was last told."""
    return "tf32" if CPU.lib.tf32_allowed() else "highest"


# ---- devices ----


def _load_cuda() -> list[CudaBackend]:
    """A backend per GPU; RuntimeError saying what is missing."""
    global _arrays, _cuda_arrays
    if _cuda:
        return _cuda
    simulated = os.environ.get("CONVGRAD_CUDA_SIM") == "1"  # for tests: see tests/cupy_standin.py
    names = ("convgrad._cuda_sim", "tests.cupy_standin") if simulated else _CUDA_MODULES
    try:
        lib = importlib.import_module(names[0])
    except ImportError as error:
        raise RuntimeError(
            f"no CUDA backend in this installation: {error} (pip install 'convgrad[cuda13]')"
        ) from error
    try:
        xp: Any = importlib.import_module(names[1])
    except ImportError as error:
        raise RuntimeError(f"no CuPy: {error} (pip install 'convgrad[cuda13]')") from error
    try:
        count = xp.cuda.runtime.getDeviceCount()
    except xp.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"no usable NVIDIA driver: {error}") from error
    if count == 0:
        raise RuntimeError("no NVIDIA GPU")
    lib.use_library(xp)
    lib.set_exact_algorithms(is_exact())
    lib.set_tf32(get_float32_precision() == "tf32")
    _cuda_arrays = (xp.ndarray,)
    _arrays = (np.ndarray, xp.ndarray)
    _LIB_BY_TYPE[xp.ndarray] = lib
    _cuda.extend(CudaBackend(i, xp, lib) for i in range(count))
    return _cuda


_CUDA_MODULES = ("convgrad._cuda", "cupy")


def cuda_status() -> str:
    """The GPUs in words, or why there is none."""
    try:
        found = _load_cuda()
    except RuntimeError as error:
        return str(error)
    properties = found[0].xp.cuda.runtime.getDeviceProperties
    names = [properties(b.index)["name"].decode() for b in found]
    return f"{len(found)} GPU{'s' if len(found) > 1 else ''}: {', '.join(names)}"


def by_device(device: Any) -> Backend:
    """The backend a device names: 'cpu', 'cuda' (the current one), 'cuda:1'; a number counts
    GPUs."""
    name = f"cuda:{device}" if type(device) is int else str(device)
    if name == "cpu":
        return CPU
    kind, _, number = name.partition(":")
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise ValueError(f"[device] A device is 'cpu', 'cuda' or 'cuda:N'. Got {name!r}.")
    try:
        found = _load_cuda()
    except RuntimeError as error:
        raise RuntimeError(f"[device] '{name}' is not available: {error}.") from error
    index = int(number) if number else found[0].xp.cuda.runtime.getDevice()
    if index >= len(found):
        raise RuntimeError(f"[device] '{name}' is not available: there are {len(found)} GPUs.")
    return found[index]


def for_new(device: Any) -> Backend:
    """The backend for a new tensor: the device's, or the default one's for None."""
    return _default if device is None else by_device(device)


def set_default_device(device: Any) -> None:
    """Where new tensors are made from now on, in the whole process: 'cpu' at first."""
    global _default
    _default = CPU if device is None else by_device(device)


def get_default_device() -> device:
    """Where new tensors are made when no device is given."""
    return _device(_default.device)


_device = device
