"""The base of all layers and networks."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from convgrad import backend
from convgrad.dtypes import FLOATS, is_half
from convgrad.functional.math import FLOAT32, convert, moved
from convgrad.nn.parameter import Parameter
from convgrad.tensor import Tensor, checked_dtype

__all__ = ["Module", "StateDictError"]

M = TypeVar("M", bound="Module")

# What a registered attribute is. Its value is an ordinary instance attribute, so that reading
# self.weight costs one dictionary look-up.
PARAMETER, BUFFER, TEMPORARY, MODULE = "parameter", "buffer", "buffer not saved", "module"
_EXPECTED: dict[str, type] = {
    PARAMETER: Parameter,
    BUFFER: Tensor,
    TEMPORARY: Tensor,
    MODULE: None,  # type: ignore[dict-item]  # Module, once it is defined
}


class StateDictError(ValueError, RuntimeError):
    """A state does not fit a module; a ValueError, and a RuntimeError as in PyTorch."""


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` left alone."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


class RemovableHandle:
    """Takes a hook away again: by ``remove()``, or at the end of a ``with`` block."""

    _ids = itertools.count()

    def __init__(self, hooks: dict[int, Any]) -> None:
        self.id = next(self._ids)
        self._hooks = hooks

    def remove(self) -> None:
        """Takes the hook away; a second call does nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Module:
    """A layer or network: parameters, buffers and child modules, and a ``forward``.

    As ``torch.nn.Module``: assigning a :class:`Parameter` or a Module to an attribute registers it;
    calling the module calls ``forward`` and the hooks.
    """

    training: bool = True
    # Registered names, in order of registration; the instance's own dict from the first one on.
    _kinds: Mapping[str, str] = MappingProxyType({})
    _stays_float32 = False  # where the others become bfloat16 or float16
    # Hooks: (function, takes keyword arguments) by handle; None while there are none.
    _hooked: bool = False
    _pre_hooks: dict[int, tuple[Callable[..., Any], bool]]
    _post_hooks: dict[int, tuple[Callable[..., Any], bool]]

    def __init__(self) -> None:
        super().__init__()

    # ---- calling ----

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass defines it."""
        raise NotImplementedError(f"[{type(self).__name__}] forward() is not defined.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hooked:
            return self._call_with_hooks(args, kwargs)
        return self.forward(*args, **kwargs)

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook, with_kwargs in list(self._pre_hooks.values()):
            if with_kwargs:
                changed = hook(self, args, kwargs)
                if changed is not None:
                    args, kwargs = changed
            else:
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook, with_kwargs in list(self._post_hooks.values()):
            given = (self, args, kwargs, result) if with_kwargs else (self, args, result)
            changed = hook(*given)
            if changed is not None:
                result = changed
        return result

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args)`` runs before forward and may return other arguments.

        With ``with_kwargs``: ``hook(module, args, kwargs)``, returning None or (args, kwargs).
        """
        self._prepare_hooks()
        return _add_hook(self._pre_hooks, hook, prepend, with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args, output)`` runs after forward and may return another output.

        With ``with_kwargs``: ``hook(module, args, kwargs, output)``.
        """
        self._prepare_hooks()
        return _add_hook(self._post_hooks, hook, prepend, with_kwargs)

    def _prepare_hooks(self) -> None:
        if not self._hooked:
            self._pre_hooks, self._post_hooks = {}, {}
            self._hooked = True

    # ---- registration ----

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._kinds.get(name)
        if isinstance(value, Parameter):
            self._register(name, PARAMETER, value)
        elif isinstance(value, Module):
            self._register(name, MODULE, value)
        elif kind is None or value is None or isinstance(value, _EXPECTED[kind]):
            object.__setattr__(self, name, value)
        else:
            raise TypeError(
                f"[{type(self).__name__}] '{name}' is a {kind}: assign a "
                f"{_EXPECTED[kind].__name__} or None to it. Got {type(value).__name__}."
            )

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        if name in self._kinds:
            del self._kinds[name]  # type: ignore[attr-defined]

    def _register(self, name: str, kind: str, value: Any) -> None:
        if "_kinds" not in self.__dict__:
            object.__setattr__(self, "_kinds", {})
        self._kinds[name] = kind  # type: ignore[index]
        object.__setattr__(self, name, value)

    def _check_new(self, what: str, name: str, value: Any, expected: type) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise KeyError(f"[{what}] A name is a non-empty string without '.'. Got {name!r}.")
        if hasattr(self, name) and name not in self._kinds:
            raise KeyError(f"[{what}] The attribute '{name}' exists already.")
        if value is not None and not isinstance(value, expected):
            raise TypeError(
                f"[{what}] '{name}' must be a {expected.__name__} or None. Got "
                f"{type(value).__name__}."
            )

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter; None reserves the name."""
        self._check_new("register_parameter", name, param, Parameter)
        self._register(name, PARAMETER, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds a tensor that is part of the state but is not learned."""
        self._check_new("register_buffer", name, tensor, Tensor)
        self._register(name, BUFFER if persistent else TEMPORARY, tensor)

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a child module."""
        self._check_new("add_module", name, module, Module)
        self._register(name, MODULE, module)

    register_module = add_module

    def _own(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """(name, value) of this module's own attributes of these kinds, None left out."""
        attributes = self.__dict__
        for name, kind in list(self._kinds.items()):
            value = attributes[name]
            if kind in kinds and value is not None:
                yield name, value

    @property
    def _modules(self) -> dict[str, Module]:
        return dict(self._own(MODULE))

    @property
    def _parameters(self) -> dict[str, Parameter]:
        return dict(self._own(PARAMETER))

    @property
    def _buffers(self) -> dict[str, Tensor]:
        return dict(self._own(BUFFER, TEMPORARY))

    # ---- walking ----

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct children, each module once."""
        seen: set[int] = set()
        for name, module in self._own(MODULE):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct children."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module ('') and everything below, parents first."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._own(MODULE):
            yield from module.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and everything below, each once."""
        return (module for _, module in self.named_modules())

    def _named(
        self, kinds: tuple[str, ...], prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules: Any = ((prefix, self),)
        if recurse:
            modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules:
            for name, value in module._own(*kinds):
                if remove_duplicate and id(value) in seen:
                    continue
                seen.add(id(value))
                yield _join(path, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), a shared one only once."""
        return self._named((PARAMETER,), prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, a shared one only once."""
        return (value for _, value in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer)."""
        return self._named((BUFFER, TEMPORARY), prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers."""
        return (value for _, value in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted name; '' is this one. AttributeError if there is none."""
        module = self
        for name in target.split(".") if target else ():
            child = module.__dict__.get(name)
            if not isinstance(child, Module):
                raise AttributeError(
                    f"[get_submodule] {type(module).__name__} has no module '{name}'. Got "
                    f"'{target}'."
                )
            module = child
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted name. AttributeError if there is none."""
        path, _, name = target.rpartition(".")
        value = self.get_submodule(path).__dict__.get(name)
        if not isinstance(value, Parameter):
            raise AttributeError(f"[get_parameter] There is no parameter '{target}'.")
        return value

    # ---- state ----

    def state_dict(
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """{dotted name: tensor} of parameters and persistent buffers, sharing their memory.

        Keys are PyTorch's. ``keep_vars`` gives the parameters themselves.
        """
        state = OrderedDict() if destination is None else destination
        for kind in (PARAMETER, BUFFER):
            for name, value in self._own(kind):
                state[prefix + name] = value if keep_vars else value.detach()
        for name, module in self._own(MODULE):
            module.state_dict(state, prefix + name + ".", keep_vars)
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copies a state (tensors or arrays by dotted name) into the parameters and buffers.

        Raises :class:`StateDictError` naming every key that is missing or unexpected (``strict``)
        or of another shape (always); then nothing has been changed. dtypes are converted.
        """
        own = self.state_dict(keep_vars=True)
        arrays = {key: _as_array(key, value) for key, value in state_dict.items()}
        missing = [key for key in own if key not in arrays]
        unexpected = [key for key in arrays if key not in own]
        misshapen = [
            f"'{key}' is {array.shape}, here {own[key].shape}"
            for key, array in arrays.items()
            if key in own and array.shape != own[key].shape
        ]
        problems = []
        if strict and missing:
            problems.append(f"Missing: {', '.join(map(repr, missing))}.")
        if strict and unexpected:
            problems.append(f"Unexpected: {', '.join(map(repr, unexpected))}.")
        if misshapen:
            problems.append(f"Wrong shape: {'; '.join(misshapen)}.")
        if problems:
            raise StateDictError(
                f"[load_state_dict] The state does not fit {type(self).__name__}.\n  "
                + "\n  ".join(problems)
            )
        for key, array in arrays.items():
            if key in own:
                to = own[key].array
                to[...] = convert(moved(array, backend.of(to)), to.dtype)
                own[key].version[0] += 1
        return IncompatibleKeys(missing, unexpected)

    # ---- changing everything below ----

    def train(self: M, mode: bool = True) -> M:
        """Sets ``training`` here and below; dropout and batch normalisation look at it."""
        if not isinstance(mode, bool):
            raise ValueError(f"[train] mode must be a bool. Got {mode!r}.")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """``train(False)``."""
        return self.train(False)

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Calls fn on every module below, then on this one."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Sets requires_grad of every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops every parameter's gradient, or fills it with zeros."""
        for parameter in self.parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.array[...] = 0

    def to(self: M, *args: Any, device: Any = None, dtype: Any = None) -> M:
        """Converts parameters and floating buffers in place: ``to(dtype)``, ``to(device)``.

        Types of 16 bits are on GPUs alone; normalisation layers, which sum up, stay float32 then,
        and take inputs of 16 bits.
        """
        for arg in args:
            if isinstance(arg, Tensor):
                dtype, device = arg.array.dtype, arg.device
            elif _is_device(arg):
                device = arg
            elif arg is not None:
                dtype = arg
        if device is not None:
            target = backend.by_device(device)
            for tensor in itertools.chain(self.parameters(), self.buffers()):
                _move(tensor, target)
                if tensor.grad is not None:
                    _move(tensor.grad, target)
        if dtype is not None:
            for module in self.modules():
                module._convert_own(dtype)
        return self

    def _convert_own(self, dtype: Any) -> None:
        """Converts what this module itself holds."""
        for _, tensor in self._own(PARAMETER, BUFFER, TEMPORARY):
            target = backend.of(tensor.array)
            wanted = checked_dtype("Module.to", dtype, target)
            if wanted.kind not in FLOATS:
                raise TypeError(f"[Module.to] dtype must be a floating type. Got {wanted}.")
            if is_half(wanted) and self._stays_float32:
                wanted = FLOAT32
            _convert(tensor, wanted)
            if tensor.grad is not None:
                _convert(tensor.grad, wanted)

    def float(self: M) -> M:
        """float32 parameters and buffers."""
        return self.to(np.float32)

    def double(self: M) -> M:
        """float64 parameters and buffers."""
        return self.to(np.float64)

    def half(self: M) -> M:
        """float16 parameters and buffers; see :meth:`to`."""
        return self.to("float16")

    def bfloat16(self: M) -> M:
        """bfloat16 parameters and buffers; see :meth:`to`."""
        return self.to("bfloat16")

    def cpu(self: M) -> M:
        """``to('cpu')``."""
        return self.to("cpu")

    def cuda(self: M, device: Any = None) -> M:
        """``to('cuda')``."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    # ---- in words ----

    def extra_repr(self) -> str:
        """What stands between the brackets of the module's line."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [
            f"({name}): " + repr(module).replace("\n", "\n  ") for name, module in self._own(MODULE)
        ]
        name = type(self).__name__
        if not children and len(lines) <= 1:
            return f"{name}({extra})"
        return f"{name}(\n  " + "\n  ".join(lines + children) + "\n)"


_EXPECTED[MODULE] = Module


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _add_hook(
    hooks: dict[int, Any], hook: Callable[..., Any], prepend: bool, with_kwargs: bool
) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    if prepend:
        others = dict(hooks)
        hooks.clear()
        hooks[handle.id] = hook, with_kwargs
        hooks.update(others)
    else:
        hooks[handle.id] = hook, with_kwargs
    return handle


def _as_array(key: str, value: Any) -> Any:
    array = value.array if isinstance(value, Tensor) else value
    array = array if backend.is_array(array) else np.asarray(array)
    if array.dtype.kind not in FLOATS + "iub":
        raise TypeError(f"[load_state_dict] '{key}' must be numbers. Got dtype {array.dtype}.")
    return array


def _is_device(arg: Any) -> bool:
    return isinstance(arg, str) and arg.split(":")[0] in ("cpu", "cuda")


def _move(tensor: Tensor, target: backend.Backend) -> None:
    """Brings a tensor to another device in place."""
    if backend.of(tensor.array) is not target:
        tensor.array = moved(tensor.array, target)
        tensor.version = [0]


def _convert(tensor: Tensor, dtype: Any) -> None:
    """Changes a float tensor's dtype in place; its layout stays channels-last."""
    array = tensor.array
    if array.dtype.kind in FLOATS and array.dtype != dtype:
        tensor.array = backend.lib_of(array).channels_last(convert(array, dtype))
        tensor.version = [0]
