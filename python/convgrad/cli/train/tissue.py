"""``convgrad train tissue``: a class for every voxel, of simulated scans or of your volumes."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import io, train, viz
from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.options import apply_machine_options, positive_float, positive_int
from convgrad.cli.train.common import add_run_options, say, timed, write_config, write_row
from convgrad.data import nifti
from convgrad.extras import require
from convgrad.tasks import folder, segmentation, tissue
from convgrad.tasks.segmentation import DEFAULTS, MODELS, Measured

__all__ = ["TASKS", "add_parsers", "build", "evaluate", "predict", "run"]

TASKS = ("tissue",)
PATCHES = {2: 64, 3: 32}  # of volumes read from a folder, unless --patch says otherwise
BRIGHTEST = 99.5  # the percentile of a volume that simulated scans call 1

ABOUT = """Segments cerebrospinal fluid, grey and white matter. Real: the MNI152 template that comes
with nilearn, the average of 152 brains, and its tissues. Simulated: 9 % Rician noise and a bias
field of up to 25 %, drawn anew for every image. It is one average brain, and symmetric: of its left
half, blocks of axial slices are trained on and others, at least 8 mm away, tested on. The results
are within-template, and say nothing about patients. With --data DIR a network is trained on your
volumes instead, split by subject: a folder per subject, with SUBJECT_t1, SUBJECT_t1ce, SUBJECT_t2,
SUBJECT_flair and SUBJECT_seg (.nii.gz or .nii, as BraTS), or with image and label."""
MODEL_HELP = """U-Net (default), SegNet at a quarter of its widths, or Tran's fully convolutional
network on slices; or unet3d on volumes (the template at 2 mm, in patches of 32x32x32)"""


def add_parsers(names: Any) -> None:
    text = "tissues of a brain template under simulated noise, or NIfTI volumes from --data"
    task = names.add_parser("tissue", help=text, description=ABOUT.replace("\n", " "))
    task.add_argument("--model", choices=MODELS, default="unet", help=MODEL_HELP.replace("\n", " "))
    task.add_argument(
        "--data", type=Path, metavar="DIR", help="train on the volumes of this folder"
    )
    for flag, kind, text in (
        ("epochs", positive_int, "epochs"),
        ("batch-size", positive_int, "images per update"),
        ("draws", positive_int, "images (slices or patches) per epoch"),
        ("lr", positive_float, "Adam's learning rate at first; it falls to 0 as a cosine"),
    ):
        name = flag.replace("-", "_")
        values = ", ".join(f"{getattr(DEFAULTS[m], name):g} for {m}" for m in MODELS)
        task.add_argument(
            f"--{flag}", type=kind, metavar="X" if flag == "lr" else "N",
            help=f"{text} (default: {values})",
        )  # fmt: skip
    task.add_argument(
        "--patch", type=positive_int, metavar="N",
        help="with --data: sides of the patches to train on (default: "
        f"{PATCHES[2]} of slices, {PATCHES[3]} of volumes)",
    )  # fmt: skip
    task.add_argument(
        "--classes", type=positive_int, metavar="K",
        help="with --data: labels are 0 .. K - 1 (default: what the training subjects need)",
    )  # fmt: skip
    add_run_options(task, "weights, order, noise and split", "tissue-MODEL")
    task.set_defaults(run=run, task="tissue", parser=task)


# ---- training ----


def run(args: argparse.Namespace) -> int:
    """Trains, tests once, writes the run folder; the last line printed is the mean test Dice."""
    apply_machine_options(args)
    for option in ("patch", "classes"):
        if getattr(args, option) is not None and args.data is None:
            args.parser.error(f"--{option} is of volumes read from --data")
    for package, extra in (
        ("tqdm", "demo"), ("safetensors.numpy", "demo"), ("matplotlib.figure", "demo"),
        ("scipy.ndimage", "medical"), ("nilearn" if args.data is None else "nibabel", "medical"),
    ):  # fmt: skip
        require(package, extra)  # what is missing is said now, not after training
    given = {name: getattr(args, name) for name in asdict(DEFAULTS[args.model])}
    settings = replace(DEFAULTS[args.model], **{k: v for k, v in given.items() if v is not None})
    config = {
        "task": "tissue", "model": args.model, "seed": args.seed, "device": args.device,
        "data": None if args.data is None else str(args.data.absolute()),
        "patch": args.patch or PATCHES[segmentation.spatial_axes(args.model)],
        **asdict(settings),
    }  # fmt: skip
    try:
        problem = _problem(config, args.classes)
        dataset = problem.training_set(settings.draws, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    config |= {"classes": list(problem.classes), "channels": problem.channels}
    path = run_folder.create(args.out, f"tissue-{args.model}")
    convgrad.manual_seed(args.seed)
    model = build(config).to(args.device)
    write_config(path, config, model)
    say(
        f"tissue: {args.data or 'simulated scans of the MNI152 template'}; {args.model} with "
        f"{sum(p.numel() for p in model.parameters())} parameters; {settings.epochs} epochs of "
        f"{settings.draws} images; run folder {path}"
    )
    with timed("trained"):
        history = _fit(model, dataset, problem, settings, args.seed, path)
    _finish(config, model, problem, history, path)
    return 0


def _problem(config: dict[str, Any], classes: int | None = None) -> Any:
    """The simulated scans, or the folder's volumes."""
    spatial = segmentation.spatial_axes(config["model"])
    if config["data"] is None:
        return tissue.Template(spatial)
    return folder.Folder(Path(config["data"]), spatial, config["patch"], config["seed"], classes)


def _fit(
    model: Any,
    dataset: Any,
    problem: Any,
    settings: segmentation.Settings,
    seed: int,
    path: Path,
) -> train.History:
    def score() -> float:
        return problem.measure(model, "validation").mean_dice()

    callbacks = [
        segmentation.Validation(score, max(1, settings.epochs // 10)),
        train.JsonLines(path / run_folder.METRICS),
        train.ProgressBar(write=say),
    ]
    return segmentation.fit(model, dataset, settings, seed, callbacks)


def _finish(
    config: dict[str, Any], model: Any, problem: Any, history: train.History, path: Path
) -> None:
    """Saves the weights, measures the test data, draws, prints the table."""
    io.save(model.state_dict(), path / run_folder.WEIGHTS)
    title = f"tissue, {config['model']}, seed {config['seed']}"
    viz.learning_curves(history, path / "learning_curves.png", title)
    measured = problem.measure(model, "test")
    write_row(path, {f"test_{name}": value for name, value in measured.row.items()})
    _draw(measured, problem.classes, path / "overlays.png", title)
    _print(measured, problem)


def _draw(measured: Measured, classes: tuple[str, ...], path: Path, title: str) -> None:
    """Test slices, those of the first one's shape."""
    shape = measured.images[0].shape
    kept = [i for i, image in enumerate(measured.images) if image.shape == shape]
    images, predicted, truths = (
        np.stack([np.rot90(values[i]) for i in kept])
        for values in (measured.images, measured.predicted, measured.truths)
    )
    viz.overlays(images, predicted, path, classes, title, truths=truths)


def _print(measured: Measured, problem: Any) -> None:
    """A row per class; for simulated scans the baseline's beside it."""
    base = problem.baseline("test").row if hasattr(problem, "baseline") else None
    head = f"{'test':>14}  Dice    surface distance"
    say(head + ("  two thresholds: Dice    surface distance" if base else ""))
    for name in problem.classes[1:]:
        line = f"{name:>14}  {_pair(measured.row, name)}"
        say(line + (f"{'':18}{_pair(base, name)}" if base else ""))
    say(f"test Dice {measured.mean_dice():.4f}")


def _pair(row: dict[str, float], name: str) -> str:
    return f"{row[f'dice {name}']:.4f}  {row[f'distance {name}']:10.3f} mm   "


# ---- a trained network ----


def build(config: dict[str, Any]) -> Any:
    """The network of a run's configuration."""
    return segmentation.network(config["model"], config["channels"], len(config["classes"]))


def evaluate(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints the table of the test data; the last line is the mean Dice."""
    if args.data is not None:
        if config["data"] is None:
            raise UserError("--data is for a network that was trained on a folder's volumes")
        config = {**config, "data": str(args.data)}
    try:
        problem = _problem(config, len(config["classes"]))
        measured = problem.measure(model, "test")
    except ValueError as error:
        raise UserError(str(error)) from None
    _print(measured, problem)


def predict(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Writes the classes of one subject's volume, its channels in args.files, to args.out."""
    if args.out is None:
        raise UserError("a segmentation is written to a file: give --out FILE.nii.gz")
    if len(args.files) != config["channels"]:
        raise UserError(
            f"the network has {config['channels']} channels, a file each, in the order of "
            f"training. Got {len(args.files)} files."
        )
    try:
        images, affine = nifti.read_images(args.files)
        spatial = segmentation.spatial_axes(config["model"])
        if config["data"] is None:
            images = images / max(float(np.percentile(images, BRIGHTEST)), 1e-6)
            patch = tissue.PATCH[:spatial]
        else:
            images, patch = nifti.standardise(images), (config["patch"],) * spatial
        classes = folder.predict_volume(model, images, patch)
        nifti.write_volume(args.out, classes, affine)
    except ValueError as error:
        raise UserError(str(error)) from None
    counts = np.bincount(classes.ravel(), minlength=len(config["classes"]))
    millilitres = abs(np.linalg.det(affine[:3, :3])) / 1000
    for name, count in list(zip(config["classes"], counts))[1:]:
        print(f"{name:>14}  {count:9} voxels  {count * millilitres:10.1f} ml")
    print(args.out)
