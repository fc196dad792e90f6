"""The types of csrc/tape/: the data of tensors and operations, recording and walking back."""

from collections.abc import Callable, Sequence
from typing import Any

class TensorBase:
    array: Any
    node: Any
    index: int
    grad: Any
    version: list[int]
    hooks: dict[int, Any] | None
    post_hooks: dict[int, Any] | None
    _requires_grad: bool
    def __init__(self, array: Any, requires_grad: bool = False) -> None: ...

class OpBase:
    saved: tuple[Any, ...]
    needs: tuple[bool, ...]
    edges: tuple[tuple[Any, int] | None, ...] | None
    hooks: dict[int, dict[int, Any]] | None
    after_relu: bool
    masks: bool
    owned: bool
    masked: bool
    @classmethod
    def apply(cls, inputs: Sequence[Any], /, *params: Any) -> Any: ...

def connect(
    *,
    tensor: type[TensorBase],
    deferred: type[TensorBase],
    pending: type,
    refused: Callable[..., Any],
    total: Callable[..., Any],
    hooked: Callable[..., Any],
    collect: Callable[..., Any],
) -> None: ...
def is_recording() -> bool: ...
def set_recording(value: bool) -> bool: ...
def walk(
    tensors: Sequence[TensorBase],
    gradients: Sequence[Any],
    retain_graph: bool,
    wanted: dict[tuple[Any, int], Any] | None,
) -> None: ...
