"""Weights on disk: safetensors files with PyTorch's keys and shapes, written atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convgrad.backend import host, is_array
from convgrad.extras import require
from convgrad.tensor import Tensor

__all__ = ["load", "save", "write_atomically"]

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file or nothing: a reader or a crash never sees half of it."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(state_dict: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes tensors or arrays to a safetensors file, atomically.

    Args:
        state_dict: names to tensors or NumPy arrays, of any layout; they are written in C order
            (the format has no strides: the raw bytes of a strided array would be scrambled).
        path: the file; its folder must exist.

    TypeError for what is no array or has a dtype the format lacks.
    """
    safetensors = require("safetensors.numpy")
    arrays = {name: _c_order(name, value) for name, value in state_dict.items()}
    write_atomically(path, safetensors.save(arrays))


def _c_order(name: str, value: Any) -> np.ndarray:
    array = value.array if isinstance(value, Tensor) else value
    if is_array(array):
        array = host(array)
    if not isinstance(array, (np.ndarray, np.generic)):
        raise TypeError(
            f"[save] A state dict holds tensors or arrays. Got {type(value).__name__} for '{name}'."
        )
    if array.dtype.name not in DTYPES:
        raise TypeError(
            f"[save] '{name}' must have one of the dtypes {', '.join(DTYPES)}. Got {array.dtype}."
        )
    # Not ascontiguousarray: it turns a scalar into an array of shape (1,).
    return np.array(array, dtype=array.dtype.newbyteorder("<"), order="C")


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a safetensors file: names to NumPy arrays, for ``Module.load_state_dict``.

    FileNotFoundError if it is missing, ValueError with the reason if it is damaged.
    """
    safetensors = require("safetensors.numpy")
    data = Path(path).read_bytes()
    try:
        return safetensors.load(data)
    except Exception as error:  # safetensors raises its own type, KeyError, ValueError, ...
        raise ValueError(
            f"[load] {path} must be a whole safetensors file. Got one of {len(data)} bytes that "
            f"cannot be read: {error}."
        ) from error
