"""What a training run does besides training: show, log, keep the best, stop, schedule, penalise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from convgrad import io, penalty
from convgrad.extras import require
from convgrad.nn.utils import clip_max_norm_
from convgrad.tensor import Tensor

if TYPE_CHECKING:
    from convgrad.train.loop import Run

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "JsonLines",
    "MaxNorm",
    "MomentumRamp",
    "Penalty",
    "ProgressBar",
    "SchedulerStep",
]


class Callback:
    """Override what you need; ``run`` is the :class:`convgrad.train.Run`."""

    def begin(self, run: Run) -> None:
        """Before the first epoch."""

    def objective(self, run: Run, loss: Tensor) -> Tensor:
        """The loss of this batch comes in; what is returned is minimised."""
        return loss

    def batch(self, run: Run) -> None:
        """After each update."""

    def epoch(self, run: Run) -> None:
        """After each epoch; ``run.history[-1]`` is its row."""

    def end(self, run: Run) -> None:
        """After the last epoch, or when training was interrupted."""


class ProgressBar(Callback):
    """A live bar per epoch (tqdm, on standard error if it is a terminal) and a line after it."""

    def __init__(self, write: Callable[[str], object] = print) -> None:
        self.write = write
        self.bar: Any = None

    def begin(self, run: Run) -> None:
        self.tqdm = require("tqdm").tqdm

    def batch(self, run: Run) -> None:
        if self.bar is None:
            self.bar = self.tqdm(
                total=run.batches,
                desc=f"epoch {run.epoch}/{run.epochs}",
                unit="batch",
                leave=False,
                disable=None,  # silent unless standard error is a terminal
            )
        self.bar.set_postfix_str(_format(run.means), refresh=False)
        self.bar.update()

    def epoch(self, run: Run) -> None:
        self.end(run)
        width = len(str(run.epochs))
        self.write(f"epoch {run.epoch:{width}}/{run.epochs}  {_format(run.history[-1])}")

    def end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _format(row: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {value:.1f}s" if name == "seconds" else f"{name} {value:.4f}"
        for name, value in row.items()
        if name != "epoch"
    )


class JsonLines(Callback):
    """Appends each epoch's row to a file, a JSON object per line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.file: TextIO | None = None

    def begin(self, run: Run) -> None:
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in end)

    def epoch(self, run: Run) -> None:
        assert self.file is not None
        self.file.write(json.dumps(run.history[-1]) + "\n")
        self.file.flush()

    def end(self, run: Run) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class _Monitor(Callback):
    """Whether a value of the history is the best so far."""

    def __init__(self, monitor: str, mode: str) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"[{type(self).__name__}] mode must be 'min' or 'max'. Got {mode!r}.")
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.best: float | None = None

    def improved(self, run: Run) -> bool:
        row = run.history[-1]
        if self.monitor not in row:
            raise ValueError(
                f"[{type(self).__name__}] monitor must be one of {', '.join(row)}. "
                f"Got {self.monitor!r}."
            )
        value = row[self.monitor]
        if self.best is None or self.sign * value < self.sign * self.best:
            self.best = value
            return True
        return False


class Checkpoint(_Monitor):
    """Writes the weights (safetensors) whenever ``monitor`` is the best so far."""

    def __init__(
        self, path: str | os.PathLike[str], monitor: str = "val_loss", mode: str = "min"
    ) -> None:
        super().__init__(monitor, mode)
        self.path = path

    def epoch(self, run: Run) -> None:
        if self.improved(run):
            io.save(run.model.state_dict(), self.path)


class EarlyStopping(_Monitor):
    """Ends training when ``monitor`` has not improved for ``patience`` epochs."""

    def __init__(self, patience: int, monitor: str = "val_loss", mode: str = "min") -> None:
        super().__init__(monitor, mode)
        self.patience = patience
        self.waited = 0

    def epoch(self, run: Run) -> None:
        self.waited = 0 if self.improved(run) else self.waited + 1
        run.stop = run.stop or self.waited >= self.patience


class SchedulerStep(Callback):
    """Steps a learning-rate scheduler after every ``'batch'`` or ``'epoch'``.

    With ``monitor`` (for ``ReduceLROnPlateau``) the scheduler is given that value of the history.
    """

    def __init__(self, scheduler: Any, every: str = "epoch", monitor: str | None = None) -> None:
        if every not in ("batch", "epoch"):
            raise ValueError(f"[SchedulerStep] every must be 'batch' or 'epoch'. Got {every!r}.")
        if monitor is not None and every == "batch":
            raise ValueError(
                "[SchedulerStep] A monitored value exists per epoch. Got every='batch'."
            )
        self.scheduler = scheduler
        self.every = every
        self.monitor = monitor

    def batch(self, run: Run) -> None:
        if self.every == "batch":
            self.scheduler.step()

    def epoch(self, run: Run) -> None:
        if self.monitor is not None:
            self.scheduler.step(run.history[-1][self.monitor])
        elif self.every == "epoch":
            self.scheduler.step()


class MomentumRamp(Callback):
    """Momentum that rises from ``first`` in epoch 1 to ``last`` in epoch ``epochs``, and stays.

    Evenly, as in Havaei et al., "Brain tumor segmentation with deep neural networks", 2017. Only
    for an optimizer with momentum; ValueError for another.
    """

    def __init__(self, first: float = 0.5, last: float = 0.9, epochs: int = 10) -> None:
        for name, value in (("first", first), ("last", last)):
            if not 0 <= value < 1:
                raise ValueError(f"[MomentumRamp] {name} must be in [0, 1). Got {value}.")
        if epochs < 1:
            raise ValueError(f"[MomentumRamp] epochs must be at least 1. Got {epochs}.")
        self.first, self.last, self.epochs = first, last, epochs

    def begin(self, run: Run) -> None:
        if any("momentum" not in group for group in run.optimizer.param_groups):
            raise ValueError(
                "[MomentumRamp] The optimizer must have a momentum. Got "
                f"{type(run.optimizer).__name__}."
            )
        self._set(run, 0)

    def epoch(self, run: Run) -> None:
        self._set(run, run.epoch)

    def _set(self, run: Run, done: int) -> None:
        part = min(done / max(self.epochs - 1, 1), 1.0)
        for group in run.optimizer.param_groups:
            group["momentum"] = self.first + (self.last - self.first) * part


class MaxNorm(Callback):
    """Keeps weights in bounds after every update, see :func:`convgrad.nn.utils.clip_max_norm_`.

    Args:
        max_norm, norm_type: the bound of each filter's norm; ``math.inf`` bounds each weight.
        params: the weights; the default is every parameter of the model with two axes or more.
    """

    def __init__(
        self, max_norm: float, norm_type: float = 2.0, params: Iterable[Tensor] | None = None
    ) -> None:
        self.max_norm, self.norm_type = max_norm, norm_type
        self.params = None if params is None else list(params)

    def batch(self, run: Run) -> None:
        params = _weights(run.model) if self.params is None else self.params
        clip_max_norm_(params, self.max_norm, self.norm_type)


def _weights(model: Any) -> list[Tensor]:
    """The parameters with two axes or more: no biases, no normalisation scales."""
    return [p for p in model.parameters() if len(p.shape) > 1]


class Penalty(Callback):
    """Adds l1 ||W||_1 + l2 ||W||_2^2 to the loss, the lecture's lambda R(W).

    Args:
        params: the parameters W; the default is every parameter of the model with two axes or
            more, that is the weights without biases and normalisation scales.
    """

    def __init__(
        self, l1: float = 0.0, l2: float = 0.0, params: Iterable[Tensor] | None = None
    ) -> None:
        if l1 < 0 or l2 < 0:
            raise ValueError(f"[Penalty] l1 and l2 must not be negative. Got {l1} and {l2}.")
        self.l1, self.l2 = l1, l2
        self.params: list[Tensor] = [] if params is None else list(params)
        self.whole_model = params is None

    def begin(self, run: Run) -> None:
        if self.whole_model:
            self.params = _weights(run.model)

    def objective(self, run: Run, loss: Tensor) -> Tensor:
        if self.l1:
            loss = loss + penalty.l1(self.params, self.l1)
        if self.l2:
            loss = loss + penalty.l2(self.params, self.l2)
        return loss
