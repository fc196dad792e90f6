"""``convgrad bench``: training steps and operations timed beside the libraries installed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import convgrad
from convgrad import _cpu, viz
from convgrad.bench import cases, explain, machine, memory, ops, overhead, report
from convgrad.bench.race import NotARaceError, race
from convgrad.bench.trainers import set_threads
from convgrad.bench.workloads import WORKLOADS
from convgrad.cli.errors import UserError
from convgrad.cli.options import positive_float, positive_int
from convgrad.extras import require
from convgrad.io import write_atomically

__all__ = ["add_parser", "run"]

QUICK_WORKLOADS = ("conv1d-150", "lenet")
ROUNDS, SECONDS = 5, 0.7  # blocks per side, and the length of each
QUICK_ROUNDS, QUICK_SECONDS = 2, 0.05
OPS_SHARE = 0.05  # an operation's block is so much shorter than a workload's
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
    top.set_defaults(run=run, what="training", workloads=[], compile=False, png=None, parser=top)
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
    _check_workloads(args)
    png = args.out if args.what == "all" else getattr(args, "png", None)
    if png:
        require("matplotlib.figure")  # said now, not after minutes
    set_threads(args.threads or convgrad.get_num_threads())
    before = _set_exact(args.exact)
    try:
        results = RUNNERS[args.what](args)
    except NotARaceError as error:
        raise UserError(str(error)) from None
    finally:
        if before is not None:
            _set_exact(before)
    if args.json:
        _write_json(results, args.json)
    return 0


def _check_workloads(args: argparse.Namespace) -> None:
    names = getattr(args, "workloads", None)
    unknown = [name for name in names or [] if name not in WORKLOADS]
    if unknown:
        args.parser.error(f"unknown workload {unknown[0]!r}; known: {', '.join(WORKLOADS)}")
    if not names:
        args.workloads = list(QUICK_WORKLOADS if args.quick else WORKLOADS)


def _set_exact(on: bool) -> bool | None:
    """The value before, where this build has the switch; it is an error to want it without one."""
    switch = getattr(_cpu, "set_exact_algorithms", None)
    if switch is None:
        if on:
            raise UserError("--exact: this build has only exact algorithms.")
        return None
    before = _cpu.exact_algorithms()
    switch(on)
    return before


def _say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def _race(
    args: argparse.Namespace,
    rounds: int,
    seconds: float,
    inference: bool = False,
    compiled: bool = False,
    checked: Iterable[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """A row per workload. ``checked``: rows of a race of the same sides, not checked once more."""
    rows = []
    known = {row["workload"]: row["agreement"] for row in checked}
    for name in args.workloads:
        workload = WORKLOADS[name]
        rows.append(race(workload, rounds, seconds, inference, compiled, known.get(name)))
        ms, ratio = rows[-1]["ms"], rows[-1]["ratio"]
        said = f"{ms['convgrad']:.2f} ms" + (f", {ratio:.2f}x" if ratio is not None else "")
        _say(f"{'inference' if inference else 'training'} {name}: {said}")
    return rows


def _run_race(args: argparse.Namespace) -> Results:
    results: Results = {"about": _about(args)}
    inference = args.what == "inference"
    rows = _race(args, args.rounds, args.seconds, inference, args.compile)
    results[args.what] = rows
    print(report.about_line(results["about"]), report.race_table(rows), sep="\n\n")
    if args.png:
        _draw(results["about"], rows, args.png, args.what)
    return results


def _ops(args: argparse.Namespace, only: Sequence[str] | None = None) -> Results:
    chosen = [
        case
        for case in cases.all_cases()
        if (case.op in only if only else case.quick or not args.quick)
    ]
    ceilings = machine.ceilings(0.02 if args.quick else 0.2)
    rounds = min(args.rounds, 3)
    return {
        "ceilings": ceilings,
        "ops": ops.measure(chosen, ceilings, rounds, OPS_SHARE * args.seconds),
    }


def _run_ops(args: argparse.Namespace) -> Results:
    results = {"about": _about(args), **_ops(args, args.op)}
    print(
        report.about_line(results["about"]),
        report.ceilings_line(results["ceilings"]),
        report.ops_table(results["ops"]),
        sep="\n\n",
    )
    return results


def _memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in args.workloads:
        rows.append(memory.measure(WORKLOADS[name]))
        _say(f"memory {name}: {rows[-1]['mb']['convgrad']:.1f} MB")
    return rows


def _run_memory(args: argparse.Namespace) -> Results:
    results: Results = {"about": _about(args), "memory": _memory(args)}
    print(report.about_line(results["about"]), report.memory_table(results["memory"]), sep="\n\n")
    return results


def _overhead(args: argparse.Namespace) -> Results:
    return {
        "overhead": overhead.calls(args.rounds, OPS_SHARE * args.seconds),
        "imports": overhead.imports(1 if args.quick else 5),
    }


def _run_overhead(args: argparse.Namespace) -> Results:
    results = {"about": _about(args), **_overhead(args)}
    text = report.overhead_table(results["overhead"], results["imports"])
    print(report.about_line(results["about"]), f"One thread.\n\n{text}", sep="\n\n")
    return results


def _run_explain(args: argparse.Namespace) -> Results:
    if any("=" in text or text[0].isdigit() for text in args.shapes):
        found = {"": [_convolution(args)]}
    else:
        args.workloads = args.shapes
        _check_workloads(args)
        found = {name: explain.convolutions(WORKLOADS[name]) for name in args.workloads}
    results: Results = {"about": _about(args), "explain": {}}
    print(report.about_line(results["about"]))
    for name, convolutions in found.items():
        rows = [(str(conv), conv.algorithms()) for conv in convolutions]
        results["explain"][name] = [{"convolution": text, **found} for text, found in rows]
        print(f"\n{name}\n" if name else "")
        print(report.algorithm_table(rows) if rows else "no convolutions")
    return results


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


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return machine.about() | {
        "exact": args.exact, "rounds": args.rounds, "seconds": args.seconds,
    }  # fmt: skip


# ---- everything ----


def _run_all(args: argparse.Namespace) -> Results:
    """All sections, in one Markdown file, JSON and a picture of the training race."""
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    results: Results = {"about": _about(args)}
    sections = [report.about_line(results["about"])]
    fewer, shorter = min(args.rounds, 3), args.seconds / 2

    def section(
        key: str, title: str, measure: Callable[[], Any], text: Callable[[Any], str]
    ) -> None:
        results[key] = measure()
        sections.append(f"## {title}\n\n{text(results[key])}")
        _say(f"{title}: done at {time.perf_counter() - start:.0f} s")

    threads = convgrad.get_num_threads()
    section(
        "training",
        f"Training steps, {threads} threads",
        lambda: _race(args, args.rounds, args.seconds),
        report.race_table,
    )
    if _set_exact(False) is not None and not args.exact:
        section(
            "training_exact", f"Training steps, {threads} threads, exact algorithms alone",
            lambda: _exactly(lambda: _race(args, fewer, shorter)), report.race_table,
        )  # fmt: skip
    section(
        "training_1_thread", "Training steps, 1 thread",
        # The same bits as with all threads, which were checked above.
        lambda: _on_one_thread(
            lambda: _race(args, fewer, shorter, checked=results["training"])
        ), report.race_table,
    )  # fmt: skip
    section(
        "inference", f"Inference, {threads} threads",
        lambda: _race(args, fewer, shorter, inference=True), report.race_table,
    )  # fmt: skip
    section("memory", "Peak memory of a training step", lambda: _memory(args), report.memory_table)
    results |= _ops(args)
    sections.append(
        f"## Operations, {threads} threads\n\n{report.ceilings_line(results['ceilings'])}\n\n"
        f"{report.ops_table(results['ops'])}"
    )
    results |= _overhead(args)
    sections.append(
        "## The cost of a call, 1 thread\n\n"
        + report.overhead_table(results["overhead"], results["imports"])
    )
    sections.append(
        f"Repeat: `convgrad bench all --out DIR` ({time.perf_counter() - start:.0f} s)."
    )
    _write_all(args.out, results, "\n\n".join(sections) + "\n")
    return results


def _write_all(folder: Path, results: Results, text: str) -> None:
    about = results["about"]
    stem = folder / f"{about['date']}-{about['threads']}-threads-{about['isa']}"
    print(text)
    write_atomically(f"{stem}.md", text.encode())
    _write_json(results, Path(f"{stem}.json"))
    _draw(about, results["training"], Path(f"{stem}.png"), "training")
    _say(f"{stem}.md, .json, .png")


def _exactly(measure: Callable[[], Any]) -> Any:
    before = _set_exact(True)
    try:
        return measure()
    finally:
        _set_exact(bool(before))


def _on_one_thread(measure: Callable[[], Any]) -> Any:
    threads = convgrad.get_num_threads()
    set_threads(1)
    try:
        return measure()
    finally:
        set_threads(threads)


def _draw(about: Results, rows: Iterable[dict[str, Any]], path: Path, what: str) -> None:
    ratios = {row["workload"]: row["ratio"] for row in rows if row["ratio"] is not None}
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


RUNNERS: dict[str, Callable[[argparse.Namespace], Results]] = {
    "training": _run_race,
    "inference": _run_race,
    "ops": _run_ops,
    "memory": _run_memory,
    "overhead": _run_overhead,
    "explain": _run_explain,
    "all": _run_all,
}
