"""What all optimizers share: parameter groups, gradients to zero, state dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from convgrad import capturing
from convgrad.backend import Backend, host, is_array, of
from convgrad.tensor import Tensor

__all__ = ["Optimizer", "Params"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """A rule that changes parameters by their gradients.

    ``param_groups`` is a list of dicts: 'params' and the options of the rule, which may be changed
    between steps. ``state`` holds per parameter what the rule keeps from step to step.

    ``found_inf`` is set by a GradScaler during its step: a number on the parameters' device that
    is not 0 if nothing shall change. Rules whose kernels look at it say ``_heeds_found_inf``.
    """

    found_inf: Any = None
    _heeds_found_inf = False

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        if isinstance(params, Tensor):
            raise TypeError(
                f"[{self._name}] params must be an iterable of tensors or dicts. Got one tensor."
            )
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"[{self._name}] params must hold at least one tensor. Got none.")
        if not isinstance(entries[0], dict):
            entries = [{"params": entries}]
        for group in entries:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds ``{'params': tensor or tensors, option: value, ...}``; options left out get the
        defaults. Every parameter must be a leaf and belong to one group."""
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"[{self._name}] A parameter must be a Tensor. Got {type(p).__name__}."
                )
            if not p.is_leaf:
                raise ValueError(
                    f"[{self._name}] A parameter must be a leaf, not the result of an operation. "
                    f"Got one of shape {p.shape}."
                )
            if id(p) in known:
                raise ValueError(
                    f"[{self._name}] A parameter must be given once. Got one of shape {p.shape} "
                    "twice."
                )
            known.add(id(p))
        full = {**self.defaults, **group, "params": params}
        self._check_options(full)
        self.param_groups.append(full)

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raises ValueError for options out of range."""

    def _at_least(self, group: dict[str, Any], low: float, *names: str) -> None:
        for name in names:
            if not group[name] >= low:
                raise ValueError(f"[{self._name}] {name} must be >= {low}. Got {group[name]}.")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or sets them to zero."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad = Tensor(np.zeros_like(p.grad.array))

    def step(self) -> None:
        """Changes every parameter that has a gradient."""
        raise NotImplementedError

    def _numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The options that the kernel reads, in its order."""
        raise NotImplementedError

    def _fixed(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The options that decide which kernel runs, and so cannot change once it is captured."""
        return ()

    def _hyper(self, backend: Backend, group: dict[str, Any], params: list[Tensor]) -> Any:
        """The options in device memory: a captured step reads them anew at each replay."""
        fixed = self._fixed(group)

        def numbers() -> np.ndarray:
            if self._fixed(group) != fixed:
                options = {k: v for k, v in group.items() if k != "params"}
                raise RuntimeError(
                    f"[{self._name}] These options cannot be changed for a step that is captured "
                    f"already; capture it anew. Got {options}."
                )
            return np.array(self._numbers(group), np.float64)

        recorder = capturing.recorder()
        if recorder is not None:
            recorder.changed += [p.version for p in params]
        return backend.changing(numbers)

    def state_dict(self) -> dict[str, Any]:
        """``{'state': {index: {name: array or number}}, 'param_groups': [options and indices]}``;
        parameters are numbered through all groups. Arrays are copies, in C order."""
        index = {p: i for i, p in enumerate(self._parameters())}
        groups = [
            {
                **{k: v for k, v in group.items() if k != "params"},
                "params": [index[p] for p in group["params"]],
            }
            for group in self.param_groups
        ]
        state = {
            index[p]: {k: self._saved(v) for k, v in kept.items()} for p, kept in self.state.items()
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave for the same groups of the same parameters."""
        groups = state_dict["param_groups"]
        sizes = [len(g["params"]) for g in groups]
        ours = [len(g["params"]) for g in self.param_groups]
        if sizes != ours:
            raise ValueError(
                f"[{self._name}] The state dict must have groups of {ours} parameters. Got {sizes}."
            )
        numbers = [i for g in groups for i in g["params"]]
        parameter = dict(zip(numbers, self._parameters()))
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, kept in state_dict["state"].items():
            p = parameter[int(number)]
            before = self.state.get(p, {})
            state[p] = {k: self._loaded(p, k, v, before.get(k)) for k, v in kept.items()}
        self.state = state
        for group, saved in zip(self.param_groups, groups):
            group.update({k: v for k, v in saved.items() if k != "params"})

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @staticmethod
    def _saved(value: Any) -> Any:
        if not is_array(value):
            return value
        array = host(value)
        return array.item() if array.ndim == 0 else np.array(array, order="C")

    def _loaded(self, p: Tensor, name: str, value: Any, out: Any) -> Any:
        """``value`` as this parameter's state: arrays in its layout and dtype, the step counter in
        an array of its own. In ``out``, if that is such an array: a captured step works on it."""
        if name == "step":
            if out is None:
                return of(p.array).put(np.full((), float(value)))
            out[...] = float(value)
            return out
        if not is_array(value):
            return value
        if value.shape != p.shape:
            raise ValueError(
                f"[{self._name}] {name} must have its parameter's shape, {p.shape}. Got "
                f"{value.shape}."
            )
        if out is None:
            out = np.empty_like(p.array)
        out[...] = of(p.array).put(host(value))
        return out

    def __repr__(self) -> str:
        lines = [f"{self._name} ("]
        for i, group in enumerate(self.param_groups):
            options = {k: v for k, v in group.items() if k != "params"}
            lines.append(f"  group {i}: {len(group['params'])} parameters, {options}")
        return "\n".join([*lines, ")"])
