"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.backend import of
from convgrad.optim.optimizer import Optimizer, Params

__all__ = ["SGD"]


class SGD(Optimizer):
    """d = g + weight_decay p; with momentum v = momentum v + (1 - dampening) d, v = d at first, and
    d becomes v, or d + momentum v with ``nesterov``; p -= lr d (Sutskever et al. 2013, as
    ``torch.optim.SGD``)."""

    _heeds_found_inf = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        self._at_least(group, 0, "lr", "momentum", "weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "[SGD] nesterov needs a momentum > 0 and no dampening. Got momentum "
                f"{group['momentum']} and dampening {group['dampening']}."
            )

    def _numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        return group["lr"], group["momentum"], group["dampening"], group["weight_decay"]

    def _fixed(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return group["momentum"] != 0, group["nesterov"]

    def step(self) -> None:
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        arrays = [p.array for p in params]
        backend = of(arrays[0])
        momentum = group["momentum"]
        buffers = first = None
        if momentum != 0:
            state = self.state
            buffers, first = [], []
            for p in params:
                kept = state[p]
                buffer = kept.get("momentum_buffer")
                first.append(buffer is None)
                if buffer is None:
                    # Not empty: where p is not dense the kernel gets a converted copy.
                    buffer = kept["momentum_buffer"] = np.zeros_like(p.array)
                buffers.append(buffer)
        hyper = self._hyper(backend, group, params)
        grads = [p.grad.array for p in params]
        backend.lib.sgd_step(
            arrays, grads, buffers, first, group["nesterov"], hyper, self.found_inf
        )
        for p in params:
            p.version[0] += 1
