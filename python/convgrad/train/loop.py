"""fit, evaluate and predict: mini-batch gradient descent in one place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from convgrad.autograd import no_grad
from convgrad.data.patches import blend_weights, tiles
from convgrad.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from convgrad.train.callbacks import Callback

__all__ = ["History", "Run", "evaluate", "fit", "predict", "predict_tiles"]

Loss = Callable[[Tensor, Tensor], Tensor]
Metrics = Mapping[str, Callable[[Tensor, Tensor], float]]
Batches = Iterable[Sequence[Any]]  # of (input, target), gone through once per epoch
History = list[dict[str, float]]


@dataclass
class Run:
    """What a callback sees of a training run, and may change: ``stop = True`` ends it."""

    model: Any
    optimizer: Any
    epochs: int
    batches: int | None  # per epoch, None if the loader has no length
    epoch: int = 0  # counts from 1
    batch: int = 0  # of this epoch, counts from 1
    means: dict[str, float] = field(default_factory=dict)  # of this epoch so far
    history: History = field(default_factory=list)
    stop: bool = False


class _Means:
    """Means over samples of values that are means over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.samples = 0

    def add(self, values: Mapping[str, float], samples: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * samples
        self.samples += samples

    def read(self) -> dict[str, float]:
        return {name: value / max(self.samples, 1) for name, value in self.sums.items()}


def _measure(
    output: Tensor, target: Tensor, loss: Tensor | None, metrics: Metrics
) -> dict[str, float]:
    values = {} if loss is None else {"loss": float(loss.item())}
    for name, metric in metrics.items():
        values[name] = float(metric(output, target))
    return values


def fit(
    model: Any,
    train_loader: Batches,
    loss: Loss,
    optimizer: Any,
    epochs: int,
    validation: Batches | None = None,
    metrics: Metrics | None = None,
    callbacks: Iterable[Callback] = (),
) -> History:
    """Trains ``model`` by mini-batch gradient descent.

    Args:
        model: an ``nn.Module``; put into training mode for training, evaluation mode otherwise.
        train_loader: gives (input, target) batches, again for every epoch (``data.DataLoader``).
        loss: of (output, target), one number, the mean over the batch's samples.
        optimizer: over the model's parameters.
        epochs: how often to go through ``train_loader``.
        validation: batches to measure after every epoch.
        metrics: name -> function of (output, target), a mean over the batch's samples.
        callbacks: see :class:`convgrad.train.Callback`; called in the order given.

    Returns a row per epoch: ``epoch``, ``loss`` and each metric while training (means over the
    samples, measured before each update), ``val_loss`` and ``val_<metric>`` after the epoch, and
    ``seconds``, the time of the epoch's updates. A term that a callback adds to the loss, such as
    a penalty, is minimised but not part of ``loss``.

    ValueError if the loader gives nothing, FloatingPointError if the loss becomes NaN or infinite.
    """
    metrics = metrics or {}
    callbacks = tuple(callbacks)
    batches = len(train_loader) if isinstance(train_loader, Sized) else None
    run = Run(model, optimizer, epochs, batches)
    try:
        for callback in callbacks:
            callback.begin(run)
        while run.epoch < epochs and not run.stop:
            run.epoch += 1
            start = time.perf_counter()
            _train_epoch(run, train_loader, loss, metrics, callbacks)
            row = {"epoch": run.epoch, **run.means, "seconds": time.perf_counter() - start}
            if validation is not None:
                measured = evaluate(model, validation, loss, metrics)
                row |= {f"val_{name}": value for name, value in measured.items()}
            run.history.append(row)
            for callback in callbacks:
                callback.epoch(run)
    finally:
        for callback in callbacks:
            callback.end(run)
    return run.history


def _device_of(model: Any) -> Any:
    """Where the model's first parameter is; without parameters the CPU."""
    return next((p.device for p in model.parameters()), "cpu")


def _train_epoch(
    run: Run, loader: Batches, loss: Loss, metrics: Metrics, callbacks: Sequence[Callback]
) -> None:
    """One pass over the data, an update per batch."""
    model, optimizer, means = run.model, run.optimizer, _Means()
    device = _device_of(model)
    model.train()
    run.batch = 0
    for x, target in loader:
        run.batch += 1
        x, target = as_tensor(x).to(device), as_tensor(target).to(device)
        output = model(x)
        value = loss(output, target)
        objective = value
        for callback in callbacks:
            objective = callback.objective(run, objective)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        means.add(_measure(output, target, value, metrics), x.shape[0])
        run.means = means.read()
        if not math.isfinite(run.means["loss"]):
            raise FloatingPointError(
                f"[fit] The loss must stay finite. Got {value.item()} in epoch {run.epoch}, batch "
                f"{run.batch}: a smaller learning rate may help, or the input is not finite."
            )
        for callback in callbacks:
            callback.batch(run)
    if run.batch == 0:
        raise ValueError("[fit] train_loader must give at least one batch per epoch. Got none.")


def evaluate(
    model: Any, loader: Batches, loss: Loss | None = None, metrics: Metrics | None = None
) -> dict[str, float]:
    """Means over all samples of the loss (as ``loss``) and the metrics, in evaluation mode.

    Nothing is recorded on the tape, and the model's mode is put back.
    """
    means, device = _Means(), _device_of(model)
    with _evaluation(model):
        for x, target in loader:
            x, target = as_tensor(x).to(device), as_tensor(target).to(device)
            output = model(x)
            value = None if loss is None else loss(output, target)
            means.add(_measure(output, target, value, metrics or {}), x.shape[0])
    return means.read()


def predict(model: Any, inputs: Any, batch_size: int = 256) -> np.ndarray:
    """The model's outputs for inputs (N, ...), in evaluation mode, as one array in C order."""
    x, device = as_tensor(inputs).array, _device_of(model)
    with _evaluation(model):
        outputs = [
            model(Tensor(x[i : i + batch_size]).to(device)).numpy()
            for i in range(0, max(len(x), 1), batch_size)
        ]
    return np.concatenate([np.ascontiguousarray(y) for y in outputs])


def predict_tiles(
    model: Any, volume: np.ndarray, size: Sequence[int], overlap: float = 0.5, batch_size: int = 1
) -> np.ndarray:
    """The model's output (K, ...) for one image or volume (C, ...) of any size, tile by tile.

    The model sees tiles (C, *size) and gives (K, *size). Where they overlap, outputs are averaged,
    those near a tile's edge counting least, for they saw least around them. Memory is needed for
    ``batch_size`` tiles and the result. ValueError for a tile that does not fit into the volume.
    """
    windows = list(tiles(volume.shape[1:], size, overlap))
    weights = blend_weights(size)
    total: np.ndarray | None = None
    seen = np.zeros(volume.shape[1:], np.float32)
    for i in range(0, len(windows), batch_size):
        part = windows[i : i + batch_size]
        outputs = predict(model, np.stack([volume[(slice(None), *w)] for w in part]))
        if total is None:
            total = np.zeros((outputs.shape[1], *volume.shape[1:]), outputs.dtype)
        for window, output in zip(part, outputs):
            total[(slice(None), *window)] += output * weights
            seen[window] += weights
    assert total is not None  # there is at least one tile
    return total / seen


class _evaluation(no_grad):
    """``with _evaluation(model):`` evaluation mode and no tape; the mode is put back after."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.modes = [(module, module.training) for module in model.modules()]

    def __enter__(self) -> None:
        super().__enter__()
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        for module, training in self.modes:
            module.training = training
        super().__exit__(*error)
