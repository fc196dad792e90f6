"""What a tensor looks like when printed: as PyTorch prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convgrad.backend import host

if TYPE_CHECKING:
    from convgrad.tensor import Tensor

__all__ = ["text"]


def text(t: Tensor) -> str:
    """``tensor([1., 2.], requires_grad=True)``: values, then what is not the default."""
    array = host(t.array)
    notes = []
    if array.size == 0 and array.ndim != 1:
        notes.append(f"size={array.shape}")
    if t.dtype.name not in ("float32", "int64", "bool"):
        notes.append(f"dtype={t.dtype.name}")
    if t.array is not array:
        notes.append(f"device='{t.device}'")
    if t.node is not None:
        notes.append(f"grad_fn=<{type(t.node).__name__}>")
    elif t.requires_grad:
        notes.append("requires_grad=True")
    values = "[]" if array.size == 0 else _values(array)
    return f"tensor({', '.join([values, *notes])})"


def _values(array: Any) -> str:
    whole = True
    if array.dtype.kind == "f":
        finite = np.abs(array[np.isfinite(array) & (array != 0)])
        whole = bool(np.all(finite == np.rint(finite)))
        if finite.size > 0:  # scientific notation shows its digits
            whole = whole and finite.max() < 1e8 and finite.max() <= 1000 * finite.min()
    return np.array2string(
        array,
        precision=4,
        threshold=1000,
        edgeitems=3,
        max_line_width=80,
        separator=", ",
        prefix="tensor(",
        suppress_small=False,
        floatmode="maxprec" if whole else "fixed",
    )
