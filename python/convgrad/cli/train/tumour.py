"""``convgrad train tumour``: brain tumours by patches, in two phases."""

from __future__ import annotations

import argparse
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
from convgrad.tasks import tumour, tumour_slices
from convgrad.tasks.thresholds import Thresholds
from convgrad.tasks.tumour import DEFAULTS, MODELS, REGIONS, Settings
from convgrad.tasks.tumour_slices import CLASSES, Folder, Simulated, Slices, Subject

__all__ = ["TASKS", "add_parsers", "build", "evaluate", "predict", "run"]

TASKS = ("tumour",)
TRAIN_SLICES = 2000  # simulated
THRESHOLD_SLICES = 100  # of the training slices, to choose thresholds on
PICTURES, FILTERS = 5, 16  # slices, and of the first filters, shown

ABOUT = """Segments tumours into necrotic core, enhancing rim and edema by the networks of Havaei et
al. (2017), trained in their two phases: all layers with every class equally weighted, then the last
layer alone on what is common and what is rare. Real: the anatomy, the MNI152 template that comes
with nilearn, the average of 152 brains. Simulated: the four sequences (T1, T1c, T2, FLAIR), the
lesions (ellipses blended in with a random opacity), noise and bias field. Trained on blocks of
axial slices of half the brain and tested on others, at least 8 mm away: the results are
within-template and nothing clinical. With --data DIR a network is trained on your volumes instead,
split by subject: a folder per subject with SUBJECT_t1, SUBJECT_t1ce, SUBJECT_t2, SUBJECT_flair and
SUBJECT_seg (.nii.gz or .nii, as BraTS); the run folder then holds the test subjects'
segmentations."""
MODEL_HELP = """TwoPathCNN (default), or InputCascadeCNN: a second network that also sees what a
TwoPathCNN, trained first, says of a larger patch"""


def add_parsers(names: Any) -> None:
    text = "tumours in four sequences, simulated on a brain template, or of volumes from --data"
    task = names.add_parser("tumour", help=text, description=ABOUT.replace("\n", " "))
    task.add_argument(
        "--model", choices=MODELS, default="twopath", help=MODEL_HELP.replace("\n", " ")
    )
    task.add_argument(
        "--data", type=Path, metavar="DIR", help="train on the volumes of this folder"
    )
    task.add_argument(
        "--width", type=positive_float, default=tumour.WIDTH, metavar="X",
        help="numbers of maps, as a part of the paper's: 1 takes about eight times as long "
        f"(default: {tumour.WIDTH})",
    )  # fmt: skip
    for flag, value, text in (
        ("epochs", DEFAULTS.epochs[0], "epochs of phase 1"),
        ("output-epochs", DEFAULTS.epochs[1], "epochs of phase 2"),
        ("steps", DEFAULTS.steps, "updates per epoch"),
        ("batch-size", DEFAULTS.batch_size, "crops per update, 256 pixels each"),
        (
            "slices",
            TRAIN_SLICES,
            "simulated slices to train on; a cascade's second network gets a quarter more",
        ),
    ):
        task.add_argument(
            f"--{flag}", type=positive_int, default=value, metavar="N",
            help=f"{text} (default: {value})",
        )  # fmt: skip
    task.add_argument(
        "--lr", type=positive_float, default=DEFAULTS.lr[0], metavar="X",
        help="Adam's learning rate at its highest, in phase 1; in phase 2 3 %% of it "
        f"(default: {DEFAULTS.lr[0]:g})",
    )  # fmt: skip
    add_run_options(task, "weights, slices, order and split", "tumour-MODEL")
    task.set_defaults(run=run, task="tumour", parser=task)


# ---- training ----


def run(args: argparse.Namespace) -> int:
    """Trains, tests once, writes the run folder; the last line printed is the test Dice."""
    apply_machine_options(args)
    for package, extra in (
        ("tqdm", "demo"), ("safetensors.numpy", "demo"), ("matplotlib.figure", "demo"),
        ("scipy.ndimage", "medical"), ("nilearn" if args.data is None else "nibabel", "medical"),
    ):  # fmt: skip
        require(package, extra)  # what is missing is said now, not after training
    config = _config(args)
    source = _source(config)
    path = run_folder.create(args.out, f"tumour-{args.model}")
    convgrad.manual_seed(args.seed)
    model = build(config).to(args.device)
    write_config(path, config, model)
    say(
        f"tumour: {args.data or 'simulated lesions on the MNI152 template'}; {args.model} with "
        f"{sum(p.numel() for p in model.parameters())} parameters; run folder {path}"
    )
    with timed("trained"):
        first_heads, thresholds = _fit(model, source, config, path)
    io.save(model.state_dict(), path / run_folder.WEIGHTS)
    _finish(model, source, first_heads, thresholds, config, path)
    return 0


def _config(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "width", "steps", "batch_size", "slices", "seed", "device")
    return {
        "task": "tumour",
        **{name: getattr(args, name) for name in names},
        "epochs": [args.epochs, args.output_epochs],
        "lr": [args.lr, args.lr * DEFAULTS.lr[1] / DEFAULTS.lr[0]],
        "data": None if args.data is None else str(args.data.absolute()),
    }


def _source(config: dict[str, Any]) -> Any:
    margin = tumour.margin_of(config["model"])
    if config["data"] is None:
        return Simulated(config["seed"], config["slices"], margin)
    try:
        return Folder(Path(config["data"]), config["seed"], margin)
    except ValueError as error:
        raise UserError(str(error)) from None


def _fit(
    model: Any, source: Any, config: dict[str, Any], path: Path
) -> tuple[dict[str, Any], Thresholds]:
    """Trains each part of the model in both phases. Returns the last layers after phase 1, and
    thresholds chosen on some of the first one's slices."""
    settings = Settings(
        epochs=tuple(config["epochs"]),
        steps=config["steps"],
        batch_size=config["batch_size"],
        lr=tuple(config["lr"]),
    )
    first_heads, thresholds = {}, Thresholds()
    for number, (name, net) in enumerate(tumour.parts(model).items()):
        try:
            slices, validation = (
                tumour.seen(model, name, part)
                for part in (source.training(number), source.validation())
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if number == 0:
            thresholds.fit(_few(slices))
        rows: train.History = []
        for phase in (1, 2):
            say(f"{name}, phase {phase}")
            bar = train.ProgressBar(write=say)
            history = tumour.fit(net, slices, validation, phase, settings, config["seed"], [bar])
            for row in history:
                write_row(path, {"network": name, "phase": phase, **row})
            if phase == 1:
                first_heads[name] = _copied(net.head)
            rows += [{**row, "epoch": row["epoch"] + len(rows)} for row in history]
        title = f"{name}, seed {config['seed']}; the last {settings.epochs[1]} epochs: phase 2"
        viz.learning_curves(rows, path / f"learning_curves_{name}.png", title)
        filters = net.local1[0].weight.detach().cpu().numpy()[:FILTERS]
        viz.filters(filters, path / f"filters_{name}.png", f"{name}, 7x7 filters")
    return first_heads, thresholds


def _copied(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- measuring ----


def _finish(
    model: Any,
    source: Any,
    first_heads: dict[str, Any],
    thresholds: Thresholds,
    config: dict[str, Any],
    path: Path,
) -> None:
    """Measures the test slices before and after phase 2, draws, prints the table."""
    subjects = source.test()
    results = {"thresholds": [thresholds.segment(s.slices) for s in subjects]}
    for name, net in tumour.parts(model).items():
        views = [tumour.seen(model, name, s.slices).images for s in subjects]
        last = _copied(net.head)
        for phase, head in ((1, first_heads[name]), (2, last)):
            net.head.load_state_dict(head)
            results[f"{name} phase {phase}"] = [tumour.segment(net, view) for view in views]
    _print(results, subjects, path)
    speed = tumour.compare_patches(
        model, subjects[0].slices.images[0], tumour.margin_of(config["model"])
    )
    write_row(path, {f"dense_{key}": value for key, value in speed.items()})
    say(
        f"a slice at once {speed['slice_seconds']:.3f} s, patch by patch "
        f"{speed['patches_seconds']:.1f} s: {speed['speedup']:.0f} times as fast, logits within "
        f"{speed['difference']:.1e} of the largest"
    )
    _draw(results, subjects, path / "overlays.png", f"tumour, seed {config['seed']}")
    if config["data"] is not None:
        _save(results, subjects, path / "predictions")


def _few(slices: Slices) -> Slices:
    """Some of the slices."""
    chosen = np.random.default_rng(0).permutation(len(slices.labels))[:THRESHOLD_SLICES]
    return Slices(slices.images[chosen], slices.labels[chosen])


def _measure(predicted: list[np.ndarray], subjects: list[Subject]) -> dict[str, float]:
    """The Dice of each region, the mean over subjects."""
    rows = [tumour.region_dice(p, s.slices.labels) for p, s in zip(predicted, subjects)]
    return {region: float(np.mean([row[region] for row in rows])) for region in REGIONS}


def _print(
    results: dict[str, list[np.ndarray]], subjects: list[Subject], path: Path | None = None
) -> None:
    """A row per method, into the metrics too; the last method's once more in words."""
    count = sum(len(subject.slices.labels) for subject in subjects)
    say(f"{f'Dice, {count} test slices':<26}  " + "  ".join(f"{name:>9}" for name in REGIONS))
    for method, predicted in results.items():
        row = _measure(predicted, subjects)
        if path is not None:
            write_row(path, {"test": method, **row})
        say(f"{method:<26}  " + "  ".join(f"{value:9.4f}" for value in row.values()))


def _draw(
    results: dict[str, list[np.ndarray]], subjects: list[Subject], path: Path, title: str
) -> None:
    """Slices of the first subject with a tumour, evenly spaced: FLAIR, truth, what each said."""
    slices = subjects[0].slices
    m = slices.margin
    found = np.flatnonzero(slices.labels.any((1, 2)))
    shown = found[np.linspace(0, len(found) - 1, min(PICTURES, len(found))).astype(int)]
    images = slices.images[shown, 3, m:-m, m:-m]
    masks = {name: predicted[0][shown] for name, predicted in results.items()}
    if len(shown):
        viz.overlays(images, masks, path, CLASSES, title, truths=slices.labels[shown])


def _save(results: dict[str, list[np.ndarray]], subjects: list[Subject], folder: Path) -> None:
    """The last method's segmentations as NIfTI, with the subjects' affines."""
    folder.mkdir()
    for subject, predicted in zip(subjects, list(results.values())[-1]):
        file = folder / f"{subject.name}.nii.gz"
        nifti.write_volume(file, tumour_slices.brats_labels(predicted), subject.affine)
    say(f"{len(subjects)} segmentations in {folder}")


# ---- a trained network ----


def build(config: dict[str, Any]) -> Any:
    """The network of a run's configuration."""
    return tumour.network(config["model"], config["width"])


def evaluate(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints the Dice of each region on the test slices."""
    data = config["data"] if args.data is None else str(args.data)
    try:
        subjects = _source({**config, "data": data}).test()
    except ValueError as error:
        raise UserError(str(error)) from None
    predicted = [tumour.segment(model, s.slices.images) for s in subjects]
    _print({config["model"]: predicted}, subjects)


def predict(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Writes the classes of one subject's volume, its four sequences in args.files, to args.out."""
    if config["data"] is None:
        raise UserError("this network was trained on simulated slices, not with --data on volumes")
    if args.out is None:
        raise UserError("a segmentation is written to a file: give --out FILE.nii.gz")
    try:
        images, affine = nifti.read_images(args.files)
        slices = tumour_slices.of_images(images, tumour.margin_of(config["model"]))
        predicted = tumour.segment(model, slices)
        nifti.write_volume(args.out, tumour_slices.brats_labels(predicted), affine)
    except ValueError as error:
        raise UserError(str(error)) from None
    millilitres = abs(np.linalg.det(affine[:3, :3])) / 1000
    for region, classes in REGIONS.items():
        count = int(np.isin(predicted, classes).sum())
        print(f"{region:>10}  {count:9} voxels  {count * millilitres:10.1f} ml")
    print(args.out)
