"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.backend import of
from convgrad.optim.optimizer import Optimizer, Params

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)  (Kingma and Ba 2015).

    weight_decay is added to the gradient: g + weight_decay p. ``amsgrad`` divides by the largest v
    so far (Reddi et al. 2018).
    """

    _heeds_found_inf = True
    _decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        self._at_least(group, 0, "lr", "eps", "weight_decay")
        if not all(0 <= b < 1 for b in group["betas"]):
            raise ValueError(f"[{self._name}] betas must be in [0, 1). Got {group['betas']}.")

    def _numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def _fixed(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (group["amsgrad"],)

    def step(self) -> None:
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        arrays, grads = [p.array for p in params], [p.grad.array for p in params]
        backend = of(arrays[0])
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]
        buffers, steps = [], []
        for p in params:
            kept = self.state[p]
            if "step" not in kept:
                kept["step"] = backend.put(np.zeros(()))
            for name in names:
                if name not in kept:
                    kept[name] = np.zeros_like(p.array)
            buffers.append(tuple([kept[name] for name in names]))
            steps.append(kept["step"])
        hyper = self._hyper(backend, group, params)
        backend.lib.adam_step(
            arrays, grads, buffers, steps, group["amsgrad"], self._decoupled, hyper, self.found_inf
        )
        for p in params:
            p.version[0] += 1


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p *= 1 - lr weight_decay before the step
    (Loshchilov and Hutter 2019)."""

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
