"""``convgrad train filters``: a convolutional deep belief network learns from photographs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import io, viz
from convgrad.cli import run_folder
from convgrad.cli.options import apply_machine_options, positive_int
from convgrad.cli.train.common import add_run_options, say, timed, write_config, write_row
from convgrad.extras import require
from convgrad.models.cdbn import ConvDBN
from convgrad.tasks import filters

__all__ = ["TASKS", "add_parsers", "build", "evaluate", "run"]

TASKS = ("filters",)
EPOCHS = 80
EVERY = 5  # epochs between lines
TEST_CROPS = 200
SHOWN = ("brick", "chelsea", "coins", "stereo_motorcycle")

ABOUT = """Learns filters from photographs without labels, as Lee, Grosse, Ranganath and Ng (2009):
a convolutional deep belief network, trained layer by layer by contrastive divergence with
probabilistic max pooling. Real: 11 photographs that come with scikit-image, whitened; nothing is
simulated. The right quarter of each is held out. Measured there: the error of the reconstruction (a
part of the signal), how often a crop has a lower free energy than the same crop with random phases
(0.5 is chance), and how many of the first layer's filters are clearly oriented."""


def add_parsers(names: Any) -> None:
    text = "filters learned from photographs without labels; needs no download"
    task = names.add_parser("filters", help=text, description=ABOUT.replace("\n", " "))
    task.add_argument(
        "--layers",
        type=int,
        choices=range(1, len(filters.LAYERS) + 1),
        default=len(filters.LAYERS),
        help=f"how many, one after the other (default: {len(filters.LAYERS)})",
    )
    task.add_argument(
        "--epochs",
        type=positive_int,
        default=EPOCHS,
        metavar="N",
        help=f"of 50 updates by 4 crops each, per layer (default: {EPOCHS})",
    )
    add_run_options(task, "weights, crops and sampling", "filters")
    task.set_defaults(run=run, task="filters", parser=task)


def build(config: dict[str, Any]) -> ConvDBN:
    """The network of a run's configuration."""
    return filters.network(config["layers"])


def run(args: argparse.Namespace) -> int:
    """Trains layer by layer, writes the run folder; the last line is the part of oriented filters
    of the first layer."""
    apply_machine_options(args)
    for package, extra in (
        ("safetensors.numpy", "demo"), ("matplotlib.figure", "demo"),
        ("skimage", "medical"), ("scipy.ndimage", "medical"),
    ):  # fmt: skip
        require(package, extra)  # what is missing is said now, not after training
    with timed(f"{len(filters.PHOTOGRAPHS)} photographs whitened"):
        parts, held_out = filters.load()
    folder = run_folder.create(args.out, "filters")
    keys = ("task", "layers", "epochs", "seed", "device")
    config = {key: getattr(args, key) for key in keys}
    convgrad.manual_seed(args.seed)
    model = build(config).to(args.device)
    write_config(folder, config, model)
    say(f"filters: {args.layers} of {len(filters.LAYERS)} layers; run folder {folder}")
    validation = filters.draw(parts, TEST_CROPS // 4, np.random.default_rng(args.seed + 1))
    for layer in range(args.layers):
        with timed(f"layer {layer + 1} trained"):
            history = _train(args, model, layer, parts, validation, folder)
        curves = folder / f"learning_curves_layer{layer + 1}.png"
        viz.learning_curves(history, curves, f"filters, layer {layer + 1}, seed {args.seed}")
    io.save(model.state_dict(), folder / run_folder.WEIGHTS)
    crops = filters.draw(held_out, TEST_CROPS, np.random.default_rng(0))
    _draw(model, held_out, folder)
    write_row(folder, {f"test_{name}": value for name, value in _report(model, crops).items()})
    return 0


def _train(
    args: argparse.Namespace,
    model: ConvDBN,
    layer: int,
    parts: tuple[np.ndarray, ...],
    validation: np.ndarray,
    folder: Path,
) -> list[dict[str, float]]:
    """A row per EVERY epochs; ``error`` is of crops from the parts that are trained on."""
    history: list[dict[str, float]] = []

    def report(epoch: int, row: dict[str, float]) -> None:
        if epoch % EVERY and epoch != args.epochs:
            return
        measured = filters.measure(model, layer, validation)
        history.append({"epoch": epoch, **row, **measured})
        write_row(folder, {"layer": layer + 1, **history[-1]})
        text = "  ".join(f"{name} {value:.4f}" for name, value in (row | measured).items())
        say(f"layer {layer + 1}, epoch {epoch:{len(str(args.epochs))}}/{args.epochs}  {text}")

    filters.train_layer(model, layer, parts, args.epochs, args.seed, report)
    return history


def _draw(model: ConvDBN, held_out: tuple[np.ndarray, ...], folder: Path) -> None:
    """The filters of each layer, and what the pooling units of the first answer to the upper left
    corners of some held-out parts."""
    viz.filters(model[0].weight, folder / "filters.png", "first layer: filters")
    for layer in range(1, len(model)):
        title = f"layer {layer + 1}: what its filters stand for"
        viz.filters(model.templates(layer), folder / f"filters_layer{layer + 1}.png", title)
    names = [filters.PHOTOGRAPHS.index(name) for name in SHOWN]
    crops = np.stack([held_out[i][None, : filters.SIZE, : filters.SIZE] for i in names])
    with convgrad.no_grad():
        maps = model[0](convgrad.tensor(crops).to(model[0].weight.device))
    title = "first layer: probabilities of pooling units, in crops that were held out"
    viz.feature_maps(maps, folder / "feature_maps.png", title, crops)


def _report(model: ConvDBN, crops: np.ndarray) -> dict[str, float]:
    """Prints and returns what was measured of every layer."""
    found: dict[str, float] = {}
    for layer in reversed(range(len(model))):
        row = filters.measure(model, layer, crops)
        for name, value in row.items():
            say(f"layer {layer + 1}: {name} {value:.4f}")
        found |= {f"layer{layer + 1}_{name}": value for name, value in row.items()}
    return found


def evaluate(args: argparse.Namespace, config: dict[str, Any], model: ConvDBN) -> None:
    """Prints what was measured after training, again."""
    _report(model, filters.draw(filters.load()[1], TEST_CROPS, np.random.default_rng(0)))
