"""Modules made of modules, and lists and dictionaries of them and of parameters."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from convgrad.nn import fusion
from convgrad.nn.module import MODULE, PARAMETER, Module
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor

__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]


class _List(Module):
    """Items under the names '0', '1', ...: what Sequential, ModuleList and ParameterList share."""

    _kind = MODULE

    def __init__(self, items: Iterable[Any] | None = None) -> None:
        super().__init__()
        self.extend(() if items is None else items)

    def _items(self) -> list[Any]:
        kind, attributes = self._kind, self.__dict__
        names = [name for name, of_kind in self._kinds.items() if of_kind == kind]
        return [attributes[name] for name in names if attributes[name] is not None]

    def _replace(self, items: Iterable[Any]) -> None:
        """Makes these the items, numbered from 0."""
        for name, _ in list(self._own(self._kind)):
            delattr(self, name)
        for i, item in enumerate(items):
            self._add(str(i), item)

    def _add(self, name: str, item: Any) -> None:
        self.add_module(name, item)

    def _name(self, index: int) -> str:
        names = [name for name, _ in self._own(self._kind)]
        index = operator.index(index)
        if not -len(names) <= index < len(names):
            raise IndexError(f"[{type(self).__name__}] index {index} is out of {len(names)} items.")
        return names[index]

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items())

    def __contains__(self, item: object) -> bool:
        return any(item is other for other in self._items())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self._items()[index])
        return getattr(self, self._name(index))

    def __setitem__(self, index: int, item: Any) -> None:
        self._add(self._name(index), item)

    def __delitem__(self, index: int | slice) -> None:
        items = self._items()
        del items[index]
        self._replace(items)

    def append(self, item: Any) -> Any:
        """Adds an item at the end; returns the list."""
        self._add(str(len(self)), item)
        return self

    def insert(self, index: int, item: Any) -> Any:
        """Inserts an item before ``index``; returns the list."""
        items = self._items()
        items.insert(index, item)
        self._replace(items)
        return self

    def extend(self, items: Iterable[Any]) -> Any:
        """Adds items at the end; returns the list."""
        for item in items:
            self.append(item)
        return self

    def pop(self, index: int = -1) -> Any:
        """Removes an item and returns it."""
        item = self[index]
        del self[index]
        return item

    def __add__(self, other: Iterable[Any]) -> Any:
        return type(self)([*self, *other])

    def __iadd__(self, other: Iterable[Any]) -> Any:
        return self.extend(other)


class Sequential(_List):
    """Modules called one after another: ``Sequential(a, b)``, or of an ``OrderedDict``."""

    @overload
    def __init__(self, *modules: Module) -> None: ...
    @overload
    def __init__(self, modules: OrderedDict[str, Module], /) -> None: ...

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self._replace(modules)

    def forward(self, input: Any) -> Any:
        return fusion.run(self._items(), input)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(OrderedDict(list(self._own(MODULE))[index]))
        return super().__getitem__(index)

    def __delitem__(self, index: int | slice) -> None:
        names = [name for name, _ in self._own(MODULE)]
        doomed = names[index] if isinstance(index, slice) else [self._name(index)]
        rest = [(name, module) for name, module in self._own(MODULE) if name not in doomed]
        numbered = all(name.isdigit() for name in names)
        self._replace(())
        for i, (name, module) in enumerate(rest):
            self.add_module(str(i) if numbered else name, module)

    def __add__(self, other: Iterable[Any]) -> Any:
        return type(self)(*self, *other)


class ModuleList(_List):
    """A list of modules that are registered."""

    def __repr__(self) -> str:
        """Equal neighbours are one line: ``(0-2): 3 x Linear(...)``."""
        runs: list[tuple[int, int, str]] = []
        for i, text in enumerate(map(repr, self)):
            if runs and runs[-1][2] == text:
                runs[-1] = runs[-1][0], i, text
            else:
                runs.append((i, i, text))
        lines = [
            (f"({a}): {text}" if a == b else f"({a}-{b}): {b - a + 1} x {text}").replace(
                "\n", "\n  "
            )
            for a, b, text in runs
        ]
        name = type(self).__name__
        return f"{name}(\n  " + "\n  ".join(lines) + "\n)" if lines else f"{name}()"


class _Dict(Module):
    """What ModuleDict and ParameterDict share."""

    _kind = MODULE

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None) -> None:
        super().__init__()
        self.update(items or {})

    def update(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Adds or replaces items."""
        for name, item in items.items() if isinstance(items, Mapping) else items:
            self[name] = item

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __setitem__(self, name: str, item: Any) -> None:
        self.add_module(name, item)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        delattr(self, name)

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """The names, in order."""
        return [name for name, _ in self._own(self._kind)]

    def values(self) -> list[Any]:
        """The items, in order."""
        return [item for _, item in self._own(self._kind)]

    def items(self) -> list[tuple[str, Any]]:
        """(name, item), in order."""
        return list(self._own(self._kind))

    def pop(self, name: str) -> Any:
        """Removes an item and returns it."""
        item = self[name]
        del self[name]
        return item

    def clear(self) -> None:
        """Removes all items."""
        for name in self.keys():
            del self[name]


class ModuleDict(_Dict):
    """A dictionary of modules that are registered."""


def _as_parameter(value: Any) -> Parameter:
    return value if isinstance(value, Parameter) else Parameter(value)


def _describe(name: str, p: Tensor) -> str:
    size = "x".join(map(str, p.shape))
    return f"({name}): Parameter containing: [{p.array.dtype} of size {size}]"


class ParameterList(_List):
    """A list of parameters that are registered; arrays and tensors become parameters."""

    _kind = PARAMETER

    def _add(self, name: str, item: Any) -> None:
        self.register_parameter(name, _as_parameter(item))

    def extra_repr(self) -> str:
        return "\n".join(_describe(str(i), p) for i, p in enumerate(self))


class ParameterDict(_Dict):
    """A dictionary of parameters that are registered; arrays and tensors become parameters."""

    _kind = PARAMETER

    def __setitem__(self, name: str, item: Any) -> None:
        self.register_parameter(name, _as_parameter(item))

    def extra_repr(self) -> str:
        return "\n".join(_describe(name, p) for name, p in self.items())
