"""``convgrad bench``: training steps and operations timed beside the libraries installed."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import convgrad
from convgrad import backend, viz
from convgrad.bench import cases, explain, machine, memory, ops, overhead, report
from convgrad.bench.race import NotARaceError, race
from convgrad.bench.trainers import set_precision, set_threads
from convgrad.bench.workloads import WORKLOADS, Workload
from convgrad.cli.errors import UserError
from convgrad.cli.options import positive_float, positive_int
from convgrad.extras import require
from convgrad.io import write_atomically

__all__ = ["add_parser", "run"]

QUICK_WORKLOADS = ("conv1d-150", "lenet")
ROUNDS, SECONDS = 5, 0.7  # blocks per side, and the length of each
QUICK_ROUNDS, QUICK_SECONDS = 2, 0.05
OPS_SHARE = 0.05  # an operation's block is so much shorter than a workload's
GPU_RUNNERS = ("training", "inference", "ops")
Results = dict[str, Any]


# ---- the command line ----


def add_parser(subparsers: Any) -> None:
    top = subparsers.add_parser(
        "bench",
        help="time training steps and operations beside PyTorch",
        description="Times training steps beside the libraries that are installed: PyTorch in "
        "both of its layouts, JAX where all processors are used; convgrad alone without them. "
        "Without WHAT it is `convgrad bench training` on all workloads: a few minutes.",
        epilog="Exit codes: 0 it ran; 1 it failed, or the sides do not compute the same; 2 the "
        "command line is wrong.",
    )
    _add_common(top, nested=False)
    top.add_argument(
        "--explain", dest="what", action="store_const", const="explain", help="the same as explain"
    )
    top.set_defaults(
        run=run, what="training", workloads=[], shapes=[], compile=False, png=None, parser=top
    )
    names = top.add_subparsers(metavar="WHAT")
    for name, text, add_options in (
        ("training", "training steps of the workloads", _add_race),
        ("inference", "their forward passes, without gradients", _add_race),
        ("ops", "single operations, beside the machine's ceilings", _add_ops),
        ("memory", "peak memory of a training step", _add_workloads),
        ("overhead", "the cost of a call on tiny inputs, and of import", None),
        ("explain", "the algorithm that each convolution gets; nothing is timed", _add_explain),
        ("all", "everything, into a folder: Markdown, JSON, picture", _add_all),
    ):
        parser = names.add_parser(name, help=text, description=f"Shows {text}.")
        _add_common(parser, nested=True)
        if add_options:
            add_options(parser)
        parser.set_defaults(what=name, parser=parser)


def _add_common(parser: argparse.ArgumentParser, nested: bool) -> None:
    """Options that may stand before and behind WHAT: a nested parser leaves the outer's value."""

    def add(flag: str, default: Any = None, **settings: Any) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS if nested else default, **settings)

    add("--threads", type=positive_int, metavar="N", help="of every side (default: all processors)")
    add("--quick", False, action="store_true", help="a look in seconds: few samples, small choice")
    add("--rounds", type=positive_int, metavar="N",
        help=f"blocks of each side, timed in turn (default: {ROUNDS})")  # fmt: skip
    add("--seconds", type=positive_float, metavar="X",
        help=f"of a block; an operation's is {OPS_SHARE:g} of it (default: {SECONDS:g})"
    )  # fmt: skip
    add("--device", "cpu", choices=("cpu", "cuda"), help="where to run (default: cpu)")
    add("--precision", "highest", choices=("highest", "tf32"),
        help="of float32 products on a GPU: plain float32, or TF32's 10 bits")  # fmt: skip
    add("--exact", False, action="store_true",
        help="only algorithms with the rounding of a plain sum: no Winograd")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the results here")


def _add_workloads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} (default: all)"
    )


def _add_race(parser: argparse.ArgumentParser) -> None:
    _add_workloads(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also race torch.compile; needs a C++ compiler, and minutes for a large network",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the ratios here")


def _add_ops(parser: argparse.ArgumentParser) -> None:
    known = dict.fromkeys(case.op for case in cases.all_cases())
    parser.add_argument(
        "--op", action="append", choices=list(known), help="only this one; may be repeated"
    )


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shapes",
        nargs="*",
        metavar="WORKLOAD|SHAPE",
        help="workloads (default: all), or one convolution: the input's shape, k= the weight's, "
        "and s= p= d= g= stride, padding, dilation, groups, such as 64x32x32x32 k=32x32x3x3 p=1",
    )


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for DATE-ISA.md, .json and .png",
    )  # fmt: skip


# ---- running ----


def run(args: argparse.Namespace) -> int:
    """Runs what was asked for, prints its tables, writes its files."""
    if args.rounds is None:
        args.rounds = QUICK_ROUNDS if args.quick else ROUNDS
    if args.seconds is None:
        args.seconds = QUICK_SECONDS if args.quick else SECONDS
    everything, picture = args.what == "all", getattr(args, "png", None)
    if everything or picture:
        require("matplotlib.figure")  # said now, not after minutes
    set_threads(args.threads or convgrad.get_num_threads())
    if args.device == "cuda":
        _use_gpu(args)
    results: Results = {"about": _about(args)}
    try:
        with _exact_set(args.exact):
            results |= RUNNERS[args.what](args)
    except NotARaceError as error:
        raise UserError(str(error)) from None
    text = report.markdown(results)
    print(text)
    if everything:
        _write_folder(args.out, results, text)
    if picture:
        _draw(results, args.what, picture)
    if args.json:
        _write_json(results, args.json)
    return 0


def _use_gpu(args: argparse.Namespace) -> None:
    if args.what not in GPU_RUNNERS:
        args.parser.error(f"--device cuda runs {', '.join(GPU_RUNNERS)}")
    if not convgrad.cuda.is_available():
        raise UserError(f"no GPU to run on: {backend.cuda_status()}")
    set_precision(args.precision)


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return machine.about(args.device) | {
        "exact": args.exact, "precision": args.precision, "rounds": args.rounds,
        "seconds": args.seconds,
    }  # fmt: skip


@contextlib.contextmanager
def _exact_set(on: bool) -> Iterator[None]:
    before = convgrad.is_exact()
    convgrad.set_exact(on)
    try:
        yield
    finally:
        convgrad.set_exact(before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = convgrad.get_num_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)


def _workloads(args: argparse.Namespace, names: Sequence[str] = ()) -> list[Workload]:
    """Those named; all, or a few for --quick, if none is."""
    for name in names:
        if name not in WORKLOADS:
            args.parser.error(f"unknown workload {name!r}; known: {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in names or (QUICK_WORKLOADS if args.quick else WORKLOADS)]


def _say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


# ---- what there is to run: each gives sections of the results ----


def _race(
    workloads: Iterable[Workload],
    rounds: int,
    seconds: float,
    inference: bool = False,
    compiled: bool = False,
    checked: Iterable[Mapping[str, Any]] = (),
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row per workload. ``checked``: rows of a race of the same sides, not checked once more."""
    rows = []
    known = {row["workload"]: row["agreement"] for row in checked}
    for workload in workloads:
        agreement = known.get(workload.name)
        rows.append(race(workload, rounds, seconds, inference, compiled, agreement, device))
        ms, ratio = rows[-1]["ms"], rows[-1]["ratio"]
        said = f"{ms['convgrad']:.2f} ms" + (f", {ratio:.2f}x" if ratio is not None else "")
        _say(f"{'inference' if inference else 'training'} {workload.name}: {said}")
    return rows


def _run_race(args: argparse.Namespace) -> Results:
    workloads, inference = _workloads(args, args.workloads), args.what == "inference"
    settings = args.rounds, args.seconds, inference, args.compile
    return {args.what: _race(workloads, *settings, device=args.device)}


def _run_ops(args: argparse.Namespace) -> Results:
    only = getattr(args, "op", None)
    chosen = [
        case
        for case in cases.all_cases(args.device)
        if (case.op in only if only else case.quick or not args.quick)
    ]
    ceilings = machine.ceilings(0.02 if args.quick else 0.2, args.device)
    seconds = OPS_SHARE * args.seconds
    rows = ops.measure(chosen, ceilings, min(args.rounds, 3), seconds, args.device)
    return {"ceilings": ceilings, "ops": rows}


def _run_memory(args: argparse.Namespace) -> Results:
    rows = []
    for workload in _workloads(args, args.workloads):
        rows.append(memory.measure(workload))
        _say(f"memory {workload.name}: {rows[-1]['mb']['convgrad']:.1f} MB")
    return {"memory": rows}


def _run_overhead(args: argparse.Namespace) -> Results:
    return {
        "overhead": overhead.calls(args.rounds, OPS_SHARE * args.seconds),
        "imports": overhead.imports(1 if args.quick else 5),
    }


def _run_explain(args: argparse.Namespace) -> Results:
    if any("=" in text or text[0].isdigit() for text in args.shapes):
        found = {"": [_convolution(args)]}
    else:
        chosen = _workloads(args, args.shapes)
        found = {workload.name: explain.convolutions(workload) for workload in chosen}
    return {
        "explain": {
            name: [{"convolution": str(conv), **conv.algorithms()} for conv in convolutions]
            for name, convolutions in found.items()
        }
    }


def _convolution(args: argparse.Namespace) -> explain.Convolution:
    """From words such as 64x32x32x32 k=32x32x3x3 p=1."""
    names = {"k": "w_shape", "s": "stride", "p": "padding", "d": "dilation", "g": "groups"}
    settings: dict[str, Any] = {}
    try:
        for text in args.shapes:
            key, _, value = text.rpartition("=")
            numbers = tuple(int(number) for number in value.split("x"))
            name = names[key] if key else "x_shape"
            settings[name] = numbers[0] if len(numbers) == 1 else numbers
        conv = explain.Convolution(**settings)
        conv.algorithms()
    except (ValueError, KeyError, TypeError) as error:
        args.parser.error(
            f"not a convolution: {' '.join(args.shapes)} ({error}); one is "
            "64x32x32x32 k=32x32x3x3 p=1"
        )
    return conv


def _run_all(args: argparse.Namespace) -> Results:
    start = time.perf_counter()
    workloads, results = _workloads(args), {}
    fewer, shorter = min(args.rounds, 3), args.seconds / 2
    results["training"] = _race(workloads, args.rounds, args.seconds)
    if not args.exact:
        _say("exact algorithms alone:")
        with _exact_set(True):
            results["training_exact"] = _race(workloads, fewer, shorter)
    _say("one thread:")
    with _one_thread():  # the same bits as with all, which were checked above
        results["training_1_thread"] = _race(workloads, fewer, shorter, checked=results["training"])
    results["inference"] = _race(workloads, fewer, shorter, inference=True)
    args.workloads = [workload.name for workload in workloads]
    for section in (_run_memory, _run_ops, _run_overhead):
        results |= section(args)
    _say(f"everything took {time.perf_counter() - start:.0f} s")
    return results


RUNNERS: dict[str, Callable[[argparse.Namespace], Results]] = {
    "training": _run_race,
    "inference": _run_race,
    "ops": _run_ops,
    "memory": _run_memory,
    "overhead": _run_overhead,
    "explain": _run_explain,
    "all": _run_all,
}


# ---- files ----


def _write_folder(folder: Path, results: Results, text: str) -> None:
    about = results["about"]
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{folder / about['date']}-{about['threads']}-threads-{about['isa']}"
    write_atomically(f"{stem}.md", (text + "\n\nRepeat: `convgrad bench all`\n").encode())
    _write_json(results, Path(f"{stem}.json"))
    _draw(results, "training", Path(f"{stem}.png"))
    _say(f"{stem}.md, .json, .png")


def _draw(results: Results, what: str, path: Path) -> None:
    about = results["about"]
    ratios = {row["workload"]: row["ratio"] for row in results[what] if row["ratio"] is not None}
    if not ratios:
        _say("no picture: a ratio needs a peer")
        return
    ratios["geometric mean"] = report.geometric_mean(ratios.values())
    title = (
        f"{what.capitalize()}, {about['threads']} threads, {about['isa']}, {about['cpu']}, "
        f"{about['date']}"
    )
    peers = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    viz.ratios(ratios, path, title, f"times as fast as {peers}, whichever is fastest")


def _write_json(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
