"""A tensor that a module learns."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.backend import by_device, host, is_array, lib_of
from convgrad.dtypes import FLOATS, named
from convgrad.tensor import Tensor, put

__all__ = ["Parameter"]


class Parameter(Tensor):
    """A leaf tensor that becomes a parameter of the :class:`Module` it is assigned to.

    ``data`` is a tensor or an array; it is shared, not copied, unless it has more than two axes and
    does not lie channels-last already.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        array = data.array if isinstance(data, Tensor) else data
        array = array if is_array(array) else np.asarray(array)
        if requires_grad and array.dtype.kind not in FLOATS:
            raise TypeError(
                f"[Parameter] Only float arrays can require gradients. Got {array.dtype}."
            )
        if array.ndim > 2 and array.dtype.kind in FLOATS:
            array = lib_of(array).channels_last(array)
        super().__init__(array, requires_grad)
        if isinstance(data, Tensor) and array is data.array:
            self.version = data.version  # they share memory

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        array = lib_of(self.array).empty_like(self.array)
        array[...] = self.array
        clone = type(self)(array, self.requires_grad)
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (
            type(self),
            np.ascontiguousarray(host(self.array)),
            self.requires_grad,
            str(self.device),
            self.dtype.name,
        )


def _rebuilt(
    kind: type[Parameter], array: np.ndarray, requires_grad: bool, device: str, dtype: str
) -> Any:
    """A pickled parameter."""
    return kind(put(array, by_device(device), named(dtype)), requires_grad)
