"""Results that are computed when they are first looked at, in the same pass over memory as what
follows them: ``relu(norm(x) + shortcut)`` reads x and the shortcut once and writes once.

An op's forward may return a :class:`Pending` in place of an array; the tensor is then a
``tensor.Deferred`` until somebody asks for its array. Only ops that say so (``Op.absorbs``) get to
see the Pending itself, and may compute it their own way or add to it. Nothing else changes: the
tape has a node per op, and the bits are those of separate passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Pending"]

Array = Any


class Pending:
    """``function(*args, relu, residual)`` computes it: an array of ``shape`` and ``dtype``, plus
    ``residual`` if that is given, and max(0, .) of that if ``relu``.

    ``watched`` are versions (see Tensor) of arrays that function reads: one that is changed in
    place before anybody has asked for the result is an error.
    """

    __slots__ = ("args", "dtype", "function", "residual", "shape", "watched")

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, function: Callable[..., Array], args: Any
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.function = function
        self.args = args
        self.residual: Array | None = None
        self.watched: list[tuple[list[int], int]] = []

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def watch(self, version: list[int]) -> None:
        """Fails from now on if the array of this version is changed."""
        self.watched.append((version, version[0]))

    def plus(self, residual: Array) -> Pending | None:
        """This plus an array of the same shape and dtype, or None if it has a residual already."""
        fits = residual.shape == self.shape and residual.dtype == self.dtype
        if self.residual is not None or not fits:
            return None
        total = Pending(self.shape, self.dtype, self.function, self.args)
        total.residual = residual
        total.watched = list(self.watched)
        return total

    def run(self, relu: bool = False) -> Array:
        """The array."""
        for version, before in self.watched:
            if version[0] != before:
                raise RuntimeError(
                    f"[deferred] An input of a result of shape {self.shape} was changed in place "
                    f"before the result was used: it is at version {version[0]}, the call saw "
                    f"{before}."
                )
        return self.function(*self.args, relu, self.residual)
