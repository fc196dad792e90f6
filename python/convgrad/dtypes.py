"""The types of tensors' elements, as NumPy's dtypes.

``bfloat16`` is ml_dtypes' (extra ``cuda13``), which is imported when it is first asked for. Tensors
of 16 bits are on GPUs alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.extras import require

__all__ = ["FLOATS", "is_half", "named"]

# The kinds of floating types, dtype.kind; bfloat16's is "V", which no other tensor has.
FLOATS = "fV"

_EVERYWHERE = ("float32", "float64", "int64", "int32", "uint8", "bool")
_ON_GPUS = ("bfloat16", "float16")


def named(name: str) -> np.dtype[Any]:
    """The dtype of that name; ImportError saying what to install for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        return np.dtype(require("ml_dtypes", "cuda13").bfloat16)
    return np.dtype(name)


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is a floating type of 16 bits."""
    return dtype.itemsize == 2 and dtype.kind in FLOATS


def checked(op: str, dtype: Any, on_gpu: bool) -> np.dtype[Any]:
    """dtype as NumPy's; TypeError unless tensors there have it."""
    try:
        found = named(dtype) if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("=")
    except TypeError:
        found = None
    allowed = _EVERYWHERE + _ON_GPUS if on_gpu else _EVERYWHERE
    if found is None or found.name not in allowed:
        half = found is not None and found.name in _ON_GPUS
        where = "on the CPU; those of 16 bits are on GPUs alone" if half else "here"
        raise TypeError(f"[{op}] dtype must be one of {', '.join(allowed)} {where}. Got {dtype!r}.")
    return found
