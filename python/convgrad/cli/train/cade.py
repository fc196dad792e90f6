"""``convgrad train cade``: lesions classified, boxed and segmented."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import functional, io, metrics, models, tensor, train, viz
from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.options import apply_machine_options, positive_float, positive_int
from convgrad.cli.train.common import add_run_options, say, timed, write_config, write_row
from convgrad.extras import require
from convgrad.tasks import cade, lesions

__all__ = ["TASKS", "add_parsers", "build", "evaluate", "predict", "run"]

TASKS = ("cade",)
DESCRIPTION = """Trains two networks and joins them with GrowCut: stage 1 says whether a slice is
normal or abnormal, stage 2 puts a box around the lesion, stage 3 grows the lesion from seeds that
the box gives. Real is the anatomy, the MNI152 average brain that comes with nilearn; simulated
lesions on a template, four simulated sequences (T1, T1c, T2, FLAIR), bias field and noise are all
the rest: nothing here says anything about patients. CADe-style: the system is that of Banerjee et
al. (2018, arXiv:1806.07589), the networks are not, for the paper's layer table is not public."""
STAGES = {"slice": "stage 1, normal or abnormal", "box": "stage 2, boxes"}
EXAMPLES = 12  # slices in a picture
SHOWN = lesions.SEQUENCES.index("FLAIR")


def add_parsers(names: Any) -> None:
    parser = names.add_parser(
        "cade",
        help="simulated lesions on a template: normal or abnormal, box, GrowCut",
        description=DESCRIPTION.replace("\n", " "),
    )
    for stage, settings, what in (
        ("slice", cade.SLICES, "all training slices"),
        ("box", cade.BOXES, "the training slices with a lesion"),
    ):
        parser.add_argument(
            f"--{stage}-epochs",
            type=positive_int,
            default=settings.epochs,
            metavar="N",
            help=f"passes of {STAGES[stage]}, over {what} (default: {settings.epochs})",
        )
        parser.add_argument(
            f"--{stage}-lr",
            type=positive_float,
            default=settings.lr,
            metavar="X",
            help=f"first learning rate of {STAGES[stage]}; it falls to 0 as a cosine "
            f"(default: {settings.lr:g})",
        )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=cade.SLICES.batch_size,
        metavar="N",
        help=f"slices per update (default: {cade.SLICES.batch_size})",
    )
    training, validation, test = cade.SIZES
    parser.add_argument(
        "--training-slices",
        type=positive_int,
        default=training,
        metavar="N",
        help=f"how many to draw, 2 or more; every second has a lesion (default: {training}; for "
        f"validation {validation} and for the test {test}, which are the same for every seed)",
    )
    add_run_options(parser, "weights, training and validation slices, order, mirroring", "cade")
    parser.set_defaults(run=run, task="cade", parser=parser)


def run(args: argparse.Namespace) -> int:
    """Trains both stages, tests once, writes the run folder; the last lines are the test."""
    if args.training_slices < 2:
        args.parser.error("argument --training-slices: must be 2 or more, got 1")
    apply_machine_options(args)
    for package in ("tqdm", "safetensors.numpy", "matplotlib.figure"):
        require(package)  # what is missing is said now, not after training
    require("scipy.ndimage", "medical")
    folder = run_folder.create(args.out, "cade")
    with timed("slices drawn"):
        splits = cade.load(args.seed, (args.training_slices, *cade.SIZES[1:]))
    convgrad.manual_seed(args.seed)
    model = models.CADe().to(args.device)
    write_config(folder, _settings(args), model)
    say(
        f"cade: {len(splits.train.images)} training and {len(splits.validation.images)} validation "
        f"slices; {sum(p.numel() for p in model.parameters())} parameters; run folder {folder}"
    )
    with timed("trained"):
        histories = _fit(args, model, splits, folder)
    _finish(args, model, splits, histories, folder)
    return 0


def build(config: dict[str, Any]) -> Any:
    """The networks of a run's configuration."""
    return models.CADe()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    keys = (
        "task", "slice_epochs", "slice_lr", "box_epochs", "box_lr", "batch_size",
        "training_slices", "seed", "device",
    )  # fmt: skip
    return {key: getattr(args, key) for key in keys}


def _fit(
    args: argparse.Namespace, model: Any, splits: cade.Splits, folder: Path
) -> dict[str, train.History]:
    histories = {}
    for stage, network, fit, settings in (
        ("slice", model.slices, cade.fit_slices, cade.SLICES),
        ("box", model.boxes, cade.fit_boxes, cade.BOXES),
    ):
        say(STAGES[stage])
        chosen = replace(
            settings,
            epochs=getattr(args, f"{stage}_epochs"),
            lr=getattr(args, f"{stage}_lr"),
            batch_size=args.batch_size,
        )
        callbacks = [train.JsonLines(folder / run_folder.METRICS), train.ProgressBar(write=say)]
        histories[stage] = fit(network, splits, chosen, args.seed, callbacks)
    return histories


def _finish(
    args: argparse.Namespace,
    model: Any,
    splits: cade.Splits,
    histories: dict[str, train.History],
    folder: Path,
) -> None:
    """Saves the weights, measures the test slices, draws, prints the figures."""
    io.save(model.state_dict(), folder / run_folder.WEIGHTS)
    title = f"cade, seed {args.seed}"
    for stage, history in histories.items():
        path = folder / f"{stage}_curves.png"
        viz.learning_curves(history, path, f"{title}: {STAGES[stage]}")
    with timed("tested"):
        threshold = cade.Threshold.chosen(splits.validation)
        test = splits.test()
        figures, said = cade.measure(model, test, threshold)
    write_row(folder, {f"test_{name}": value for name, value in figures.items()})
    _draw(test, said, figures, folder, title)
    _report(figures, threshold)


def _draw(
    test: lesions.Slices,
    said: dict[str, np.ndarray],
    figures: dict[str, float],
    folder: Path,
    title: str,
) -> None:
    """The first test slices, and all of them in a confusion matrix."""
    sick = cade.with_lesion(test)
    images, boxes = sick.images[:EXAMPLES, SHOWN], said["boxes"][:EXAMPLES]
    matrix = metrics.confusion_matrix(test.opacities > 0, said["classes"], len(cade.CLASSES))
    viz.confusion_matrix(
        matrix,
        folder / "confusion_matrix.png",
        cade.CLASSES,
        f"{title}: test accuracy {figures['accuracy']:.4f}",
    )
    viz.boxes(
        images,
        boxes,
        sick.boxes[:EXAMPLES],
        folder / "boxes.png",
        f"{title}: FLAIR, boxes of stage 2, mean IoU of the test {figures['iou']:.3f}",
    )
    viz.heat_maps(
        images,
        said["heat"][:EXAMPLES],
        sick.boxes[:EXAMPLES, :2],
        folder / "heat_maps.png",
        f"{title}: FLAIR, class activation maps of stage 1, + the lesion's middle; pointing game "
        f"{figures['pointing']:.3f}",
    )
    viz.overlays(
        images[: EXAMPLES // 2],
        said["masks"][: EXAMPLES // 2].astype(int),
        folder / "grow_cut.png",
        ("healthy", "lesion"),
        f"{title}: FLAIR, GrowCut from the box, mean Dice of the test {figures['dice']:.3f}",
        (sick.labels[: EXAMPLES // 2] > 0).astype(int),
    )


ROWS = (
    ("1", "slice accuracy", "accuracy", "threshold_accuracy"),
    ("2", "mean IoU of boxes", "iou", "threshold_iou"),
    ("2", "boxes with IoU > 0.5", "found", "threshold_found"),
    ("3", "Dice of GrowCut in the box", "dice", "dice_in_box"),
    ("-", "pointing game, activation maps", "pointing", None),
    ("-", "pointing game, Grad-CAM", "pointing_grad_cam", None),
)


def _report(figures: dict[str, float], threshold: cade.Threshold) -> None:
    say(
        f"thresholds chosen on validation slices: {threshold.alone:g} and at least "
        f"{threshold.pixels} pixels; {threshold.inside:g} in a box"
    )
    say(f"{'stage':>5}  {'of the test slices':<30}  {'here':>6}  threshold")
    for stage, name, here, beside in ROWS:
        other = f"{figures[beside]:9.4f}" if beside else f"{'':9}"
        say(f"{stage:>5}  {name:<30}  {figures[here]:.4f}  {other}".rstrip())


# ---- a trained network ----


def evaluate(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints the table of training again."""
    if args.data is not None:
        raise UserError("cade draws its slices: --data has no meaning for it.")
    splits = cade.load(config["seed"], (1, *cade.SIZES[1:]))
    threshold = cade.Threshold.chosen(splits.validation)
    _report(cade.measure(model, splits.test(), threshold)[0], threshold)


def predict(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints path, class, its probability, and the box of an abnormal slice, in pixels."""
    images = np.stack([_read(path) for path in args.files])
    logits, boxes = train.predict(model.slices, images), train.predict(model.boxes, images)
    probabilities = functional.softmax(tensor(logits), 1).numpy()
    size = np.tile(images.shape[2:], 2)
    for path, row, box in zip(args.files, probabilities, boxes):
        line = f"{path}  {cade.CLASSES[row.argmax()]}  {row.max():.4f}"
        if row.argmax():
            y, x, h, w = box * size
            line += f"  box at y {y:.1f}, x {x:.1f} of height {h:.1f}, width {w:.1f}"
        print(line)


def _read(path: Path) -> np.ndarray:
    """The sequences (4, H, W) float32 of a .npy file."""
    expected = (len(lesions.SEQUENCES), *lesions.shape())
    try:
        image = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a .npy file of numbers: {error}") from None
    if not isinstance(image, np.ndarray) or image.shape != expected or image.dtype.kind != "f":
        got = f"{getattr(image, 'dtype', '')} {getattr(image, 'shape', type(image).__name__)}"
        raise UserError(
            f"'{path}' must hold floats of shape {expected}: {', '.join(lesions.SEQUENCES)} of a "
            f"slice. Got {got.strip()}."
        )
    return image.astype(np.float32)
