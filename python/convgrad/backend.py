"""Which kernels and array library serve an array: NumPy and ``_cpu``, or CuPy and ``_cuda``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from convgrad import _cpu

__all__ = [
    "CPU",
    "Backend",
    "by_device",
    "cuda_status",
    "device",
    "is_exact",
    "lib_of",
    "of",
    "set_exact",
]


class Backend:
    """An array library and the kernels for its arrays.

    ``lib`` holds the bindings (csrc/python), the same functions for every backend; ``xp`` is the
    array library, for what is not worth a kernel.
    """

    __slots__ = ("device", "lib", "xp")

    def __init__(self, device: str, xp: ModuleType, lib: ModuleType) -> None:
        self.device = device
        self.xp = xp
        self.lib = lib

    def __repr__(self) -> str:
        return f"Backend({self.device!r})"


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


CPU = Backend("cpu", np, _cpu)
_BY_TYPE: dict[type, Backend] = {np.ndarray: CPU}
_LIB_BY_TYPE: dict[type, Any] = {np.ndarray: _cpu}


def of(array: Any) -> Backend:
    """The backend of an array; TypeError for anything that is not one."""
    try:
        return _BY_TYPE[type(array)]
    except KeyError:
        if isinstance(array, (np.ndarray, np.generic)):
            return CPU
        raise TypeError(
            f"[convgrad] An array must be a NumPy array. Got {type(array).__name__}."
        ) from None


def lib_of(array: Any) -> Any:
    """The kernels for an array."""
    try:
        return _LIB_BY_TYPE[type(array)]
    except KeyError:
        return of(array).lib


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


def cuda_status() -> str:
    """Why there is no GPU, in words."""
    return "no CUDA backend in this build (convgrad._cuda is missing)"


def by_device(device: Any) -> Backend:
    """The backend a device names: 'cpu', 'cuda', 'cuda:1'."""
    name = str(device)
    if name == "cpu":
        return CPU
    if name.split(":")[0] == "cuda":
        raise RuntimeError(f"[device] '{name}' is not available: {cuda_status()}.")
    raise ValueError(f"[device] A device is 'cpu', 'cuda' or 'cuda:N'. Got {name!r}.")
