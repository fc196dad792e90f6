"""Learning rates that change from epoch to epoch, as ``torch.optim.lr_scheduler``.

Each schedule is a function of the epoch and the group's first learning rate, so that it does not
drift with rounding. Where something else has changed the rate (another schedule, or you), the
schedule goes on from there, by the ratio of its rates; LambdaLR alone, as in PyTorch, sets its
own. ReduceLROnPlateau looks at a metric.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from convgrad import capturing
from convgrad.optim.optimizer import Optimizer

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


_OUTSIDE = "A schedule is not part of a captured step: call it between the steps."


class LRScheduler:
    """Sets every group's 'lr' to ``rate(base_lr, epoch, group index)``; ``step()`` begins the next
    epoch. ``last_epoch`` is the number of steps taken; giving it resumes there, from the groups'
    'initial_lr'."""

    # Whether the schedule goes on from a learning rate that it has not set, and the rate that such
    # a change is measured from.
    chains = True
    eta_min = 0.0

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"[{type(self).__name__}] Group {i} has no 'initial_lr' to resume from at "
                    f"last_epoch {last_epoch}."
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr = [group["lr"] for group in optimizer.param_groups]
        if last_epoch == -1 and self.chains:
            self._last_lr = list(self.base_lrs)
        self._changed = [False] * len(self.base_lrs)
        self.step()

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        """The learning rate of a group in an epoch."""
        raise NotImplementedError

    def step(self) -> None:
        capturing.refuse(_OUTSIDE, f"{type(self).__name__}.step")
        self.last_epoch += 1
        self._set()

    def _set(self) -> None:
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs)):
            # Once changed by others, always: their factor is no longer known.
            self._changed[i] |= self.chains and group["lr"] != self._last_lr[i]
            rate = self.rate(base, self.last_epoch, i)
            if self._changed[i]:
                before = self.rate(base, self.last_epoch - 1, i) if self.last_epoch else base
                if before != self.eta_min:
                    ratio = (rate - self.eta_min) / (before - self.eta_min)
                    rate = self.eta_min + (group["lr"] - self.eta_min) * ratio
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, as last set."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, without the optimizer and without functions."""
        skipped = ("optimizer", "lr_lambdas")
        return {k: v for k, v in self.__dict__.items() if k not in skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over :meth:`state_dict`; the optimizer's own state holds its learning rates."""
        self.__dict__.update(state_dict)


class LambdaLR(LRScheduler):
    """base_lr * lr_lambda(epoch); one function, or one for each group."""

    chains = False

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(
                f"[LambdaLR] lr_lambda must be one function or one per group, {groups}. Got "
                f"{len(self.lr_lambdas)}."
            )
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * self.lr_lambdas[group](epoch)


class StepLR(LRScheduler):
    """base_lr * gamma^(epoch // step_size)"""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """base_lr * gamma^(number of milestones reached)"""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """base_lr * gamma^epoch"""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * self.gamma**epoch


class ConstantLR(LRScheduler):
    """base_lr * factor for the first total_iters epochs, then base_lr"""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * (self.factor if epoch < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """base_lr times a factor that goes from start_factor to end_factor in total_iters epochs"""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class PolynomialLR(LRScheduler):
    """base_lr * (1 - epoch / total_iters)^power, 0 after total_iters"""

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        return base_lr * (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """eta_min + (base_lr - eta_min) (1 + cos(pi epoch / T_max)) / 2 (Loshchilov and Hutter 2017)"""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        wave = (1 + math.cos(math.pi * epoch / self.T_max)) / 2
        return self.eta_min + (base_lr - self.eta_min) * wave


class SequentialLR(LRScheduler):
    """One schedule after the other: ``schedulers[i + 1]`` begins, at its epoch 0, in epoch
    ``milestones[i]``. All must be of this optimizer."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"[SequentialLR] {len(schedulers)} schedulers need {len(schedulers) - 1} "
                f"milestones. Got {len(milestones)}."
            )
        if any(s.optimizer is not optimizer for s in schedulers):
            raise ValueError("[SequentialLR] The schedulers must be of the optimizer given.")
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        if last_epoch == -1:  # undo the schedules' first steps
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"]
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr: float, epoch: int, group: int) -> float:
        i = bisect_right(self._milestones, epoch)
        begin = self._milestones[i - 1] if i else 0
        return self._schedulers[i].rate(base_lr, epoch - begin, group)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["_schedulers"] = [s.state_dict() for s in self._schedulers]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {k: v for k, v in state_dict.items() if k != "_schedulers"}
        super().load_state_dict(own)
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"]):
            scheduler.load_state_dict(state)


class ReduceLROnPlateau:
    """Multiplies the learning rates by ``factor`` when ``step(metric)`` has seen no improvement for
    more than ``patience`` epochs; then waits ``cooldown`` epochs. 'rel' improves on best * (1 -+
    threshold), 'abs' on best -+ threshold."""

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not 0 <= factor < 1:
            raise ValueError(f"[ReduceLROnPlateau] factor must be in [0, 1). Got {factor}.")
        if mode not in ("min", "max"):
            raise ValueError(f"[ReduceLROnPlateau] mode must be 'min' or 'max'. Got {mode!r}.")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                "[ReduceLROnPlateau] threshold_mode must be 'rel' or 'abs'. Got "
                f"{threshold_mode!r}."
            )
        groups = len(optimizer.param_groups)
        self.optimizer = optimizer
        self.min_lrs = [min_lr] * groups if isinstance(min_lr, (int, float)) else list(min_lr)
        if len(self.min_lrs) != groups:
            raise ValueError(
                f"[ReduceLROnPlateau] min_lr must be a number or one per group, {groups}. Got "
                f"{len(self.min_lrs)}."
            )
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.eps = cooldown, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0
        self._last_lr = [group["lr"] for group in optimizer.param_groups]

    def step(self, metrics: Any) -> None:
        capturing.refuse(_OUTSIDE, "ReduceLROnPlateau.step")
        value = float(metrics.item() if hasattr(metrics, "item") else metrics)
        self.last_epoch += 1
        if self._improves(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _improves(self, value: float) -> bool:
        down = self.mode == "min"
        if self.threshold_mode == "rel":
            limit = self.best * (1 - self.threshold if down else 1 + self.threshold)
        else:
            limit = self.best - self.threshold if down else self.best + self.threshold
        return value < limit if down else value > limit

    def _reduce(self) -> None:
        for group, low in zip(self.optimizer.param_groups, self.min_lrs):
            lr = max(group["lr"] * self.factor, low)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, after the last step."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, without the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over :meth:`state_dict`."""
        self.__dict__.update(state_dict)
