"""``convgrad train digits|texture|mnist``: one class per image."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

import convgrad
from convgrad import data, explain, functional, io, metrics, nn, optim, tasks, tensor, train, viz
from convgrad.cli import run_folder
from convgrad.cli.errors import UserError
from convgrad.cli.options import (
    apply_machine_options,
    non_negative_float,
    positive_float,
    positive_int,
)
from convgrad.cli.pictures import read_image
from convgrad.cli.train.common import add_run_options, say, timed, write_config, write_row
from convgrad.extras import require
from convgrad.tasks.images import MODELS, AugmentedImages, Images, Splits, network

__all__ = ["TASKS", "add_parsers", "build", "evaluate", "measure", "predict", "run"]

TASKS = tasks.CLASSIFICATION

OPTIMIZERS = ("sgd", "adam", "adamw")
ADAM_LR = 1e-3
DESCRIPTIONS = {
    "digits": "scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no download",
    "texture": "32x32 patches of photographs of brick, grass and gravel; needs no download",
    "mnist": "28x28 images in the IDX files of MNIST or its relatives, read from --data",
}


def add_parsers(names: Any) -> None:
    for name in TASKS:
        text = DESCRIPTIONS[name]
        task = names.add_parser(name, help=text, description=f"Trains on {text}.")
        _add_options(task, name)
        task.set_defaults(run=run, task=name, parser=task)


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    defaults = tasks.get(name).DEFAULTS

    def default(setting: str) -> str:
        values = {model: getattr(defaults[model], setting) for model in MODELS}
        if len(set(values.values())) == 1:
            return f"(default: {values['cnn']:g})"
        return f"(default: {', '.join(f'{v:g} for {m}' for m, v in values.items())})"

    if tasks.get(name).NEEDS_DATA:
        parser.add_argument(
            "--data", type=Path, required=True, metavar="DIR", help="folder of the IDX(.gz) files"
        )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="cnn",
        help="softmax regression, a network with one hidden layer, or a convolutional one "
        "(default: cnn)",
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help=f"passes over the training images {default('epochs')}",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help=f"images per update {default('batch_size')}",
    )
    parser.add_argument(
        "--lr",
        type=positive_float,
        metavar="X",
        help="learning rate at its highest; it rises over the first epoch and falls to 0 as a "
        f"cosine {default('lr')[:-1]}; {ADAM_LR:g} for adam and adamw)",
    )
    parser.add_argument(
        "--momentum",
        type=non_negative_float,
        metavar="X",
        help="momentum of sgd, below 1 (default: 0.9)",
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="(default: sgd)")
    parser.add_argument(
        "--l1",
        type=non_negative_float,
        default=0.0,
        metavar="LAMBDA",
        help="adds LAMBDA ||W||_1 to the loss, W all weights but not biases (default: 0)",
    )
    parser.add_argument(
        "--l2",
        type=non_negative_float,
        metavar="LAMBDA",
        help=f"adds LAMBDA ||W||^2 to the loss, a weight decay of 2 LAMBDA {default('l2')}",
    )
    add_run_options(parser, "weights, validation split, order and augmentation", f"{name}-MODEL")


def run(args: argparse.Namespace) -> int:
    """Trains, tests once, writes the run folder; the last line printed is the test accuracy."""
    task = tasks.get(args.task)
    _fill_defaults(args, task)
    apply_machine_options(args)
    for package in ("tqdm", "safetensors.numpy", "matplotlib.figure"):
        require(package)  # what is missing is said now, not after training
    splits = _load(args, task)
    folder = run_folder.create(args.out, f"{args.task}-{args.model}")
    convgrad.manual_seed(args.seed)
    model = build(vars(args)).to(args.device)
    write_config(folder, _settings(args, splits), model)
    say(
        f"{args.task}: {len(splits.train.labels)} training and {len(splits.validation.labels)} "
        f"validation images; {args.model} with {sum(p.numel() for p in model.parameters())} "
        f"parameters; run folder {folder}"
    )
    with timed("trained"):
        history = _fit(args, task, model, splits, folder)
    _finish(args, task, model, splits.test(), history, folder)
    return 0


def _fill_defaults(args: argparse.Namespace, task: Any) -> None:
    """The task's settings for what was not given; a wrong combination is a usage error."""
    if args.momentum is not None and args.optimizer != "sgd":
        args.parser.error(f"--momentum is of sgd, not of {args.optimizer}")
    if args.momentum is not None and args.momentum >= 1:
        args.parser.error(f"argument --momentum: must be below 1, got {args.momentum}")
    settings = task.DEFAULTS[args.model]
    for name in ("epochs", "batch_size", "lr", "l2"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(settings, name))
            if name == "lr" and args.optimizer != "sgd":
                args.lr = ADAM_LR
    if args.momentum is None and args.optimizer == "sgd":
        args.momentum = 0.9


def _load(args: argparse.Namespace, task: Any) -> Splits:
    try:
        return task.load(getattr(args, "data", None), args.seed)
    except ValueError as error:  # a damaged file
        raise UserError(str(error)) from None


def build(config: dict[str, Any]) -> Any:
    """The network of a run's configuration."""
    task = tasks.get(config["task"])
    return network(config["model"], task.SHAPE, len(task.CLASSES), task.AVERAGED)


def _settings(args: argparse.Namespace, splits: Splits) -> dict[str, Any]:
    keys = (
        "task",
        "model",
        "epochs",
        "batch_size",
        "lr",
        "momentum",
        "optimizer",
        "l1",
        "l2",
        "seed",
        "device",
    )
    folder = getattr(args, "data", None)
    return {
        **{key: getattr(args, key) for key in keys},
        "data": None if folder is None else str(folder.absolute()),
        "training_images": len(splits.train.labels),
        "validation_images": len(splits.validation.labels),
    }


def _optimizer(args: argparse.Namespace, model: Any) -> Any:
    parameters = list(model.parameters())
    if args.optimizer == "sgd":
        return optim.SGD(parameters, lr=args.lr, momentum=args.momentum)
    if args.optimizer == "adam":
        return optim.Adam(parameters, lr=args.lr)
    return optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)


def _fit(
    args: argparse.Namespace, task: Any, model: Any, splits: Splits, folder: Path
) -> list[dict[str, float]]:
    dataset: Any = data.TensorDataset(*splits.train)
    if args.model == "cnn" and task.AUGMENT:
        dataset = AugmentedImages(splits.train, args.seed, **task.AUGMENT)
    batches = data.DataLoader(dataset, args.batch_size, shuffle=True, seed=args.seed, num_workers=1)
    optimizer = _optimizer(args, model)
    warm_up, steps = len(batches), args.epochs * len(batches)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps))

    callbacks = [
        train.SchedulerStep(optim.lr_scheduler.LambdaLR(optimizer, schedule), every="batch"),
        train.JsonLines(folder / run_folder.METRICS),
        train.ProgressBar(write=say),
    ]
    if args.l1 or args.l2:
        callbacks.append(train.Penalty(args.l1, args.l2))
    return train.fit(
        model,
        batches,
        nn.CrossEntropyLoss(),
        optimizer,
        args.epochs,
        validation=data.DataLoader(data.TensorDataset(*splits.validation), 256),
        metrics={"accuracy": metrics.accuracy},
        callbacks=callbacks,
    )


def _finish(
    args: argparse.Namespace,
    task: Any,
    model: Any,
    test: Images,
    history: list[dict[str, float]],
    folder: Path,
) -> None:
    """Saves the weights, measures the test images, draws, prints the last line."""
    io.save(model.state_dict(), folder / run_folder.WEIGHTS)
    title = f"{args.task}, {args.model}, seed {args.seed}"
    viz.learning_curves(history, folder / "learning_curves.png", title)
    row, matrix = measure(model, test, len(task.CLASSES))
    write_row(folder, {f"test_{name}": value for name, value in row.items()})
    viz.confusion_matrix(
        matrix,
        folder / "confusion_matrix.png",
        task.CLASSES,
        f"{title}: test accuracy {row['accuracy']:.4f}",
    )
    if args.model == "cnn":
        _draw_first_layer(model, test, folder, title)
        _draw_heat_maps(model, test, folder, title)
    say(f"test accuracy {row['accuracy']:.4f}")


def _draw_first_layer(model: Any, test: Images, folder: Path, title: str) -> None:
    """Its filters, and what they answer to the first test images of up to 5 classes."""
    convolution = model[0]
    viz.filters(convolution.weight, folder / "filters.png", f"{title}: first filters")
    shown = test.images[np.unique(test.labels, return_index=True)[1][:5]]
    first = nn.Sequential(*list(model)[:3])  # convolution, normalisation, ReLU
    maps = train.predict(first, shown)
    viz.feature_maps(maps, folder / "feature_maps.png", f"{title}: what they answer", shown)


def _draw_heat_maps(model: Any, test: Images, folder: Path, title: str) -> None:
    """Where in the first test images of each class is what speaks for the class."""
    labels, first = np.unique(test.labels, return_index=True)
    last = [layer for layer in model if isinstance(layer, nn.ReLU)][-1]
    maps = explain.grad_cam(model, last, tensor(test.images[first]), labels)
    viz.heat_maps(
        test.images[first],
        maps,
        None,
        folder / "heat_maps.png",
        f"{title}: what speaks for the class (Grad-CAM)",
    )


# ---- a trained network ----


def measure(model: Any, test: Images, classes: int) -> tuple[dict[str, float], np.ndarray]:
    """({'loss', 'accuracy'}, confusion matrix) of a model on images."""
    logits = train.predict(model, test.images)
    loss = functional.cross_entropy(tensor(logits), tensor(test.labels))
    row = {"loss": float(loss.item()), "accuracy": metrics.accuracy(logits, test.labels)}
    return row, metrics.confusion_matrix(test.labels, logits.argmax(1), classes)


def evaluate(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints a table; the last line is the test accuracy."""
    task = tasks.get(config["task"])
    folder = args.data or (config.get("data") and Path(config["data"]))
    try:
        test = task.load(folder, config["seed"]).test()
    except ValueError as error:
        raise UserError(str(error)) from None
    row, matrix = measure(model, test, len(task.CLASSES))
    precision, recall = metrics.precision_recall(matrix)
    print("class  images  precision  recall")
    for i, name in enumerate(task.CLASSES):
        print(f"{name:>5}  {matrix[i].sum():6}  {precision[i]:9.4f}  {recall[i]:6.4f}")
    print(f"test loss {row['loss']:.4f}")
    print(f"test accuracy {row['accuracy']:.4f}")


def predict(args: argparse.Namespace, config: dict[str, Any], model: Any) -> None:
    """Prints path, class and probability of each image."""
    task = tasks.get(config["task"])
    pixels = np.stack([read_image(path, task.SHAPE, args.invert) for path in args.files])
    logits = train.predict(model, pixels[:, None])
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    for path, row in zip(args.files, probabilities):
        print(f"{path}  {task.CLASSES[row.argmax()]}  {row.max():.4f}")
