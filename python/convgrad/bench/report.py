"""Results as Markdown: every table is made from the dictionaries that go into the JSON file too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["geometric_mean", "markdown", "race_table", "table"]

Rows = Sequence[Mapping[str, Any]]
LEFT_OUT = "unet3d"  # PyTorch's 3-D convolution is slow: the mean is also given without it


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table, its columns padded for reading as text; the first `words` are words."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * (width + 2) if i < words else "-" * (width + 1) + ":"
        for i, width in enumerate(widths)
    )
    return "\n".join([line(cells[0]), f"|{'|'.join(rule)}|", *map(line, cells[1:])])


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _significant(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{min(max(digits, 0), 4)}f}"


def _sides(rows: Rows, key: str) -> list[str]:
    """The names of all sides, in the order they came, ours last."""
    names = dict.fromkeys(name for row in rows for name in row[key])
    return sorted(names, key=lambda name: name == "convgrad")


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def about_line(about: Mapping[str, Any]) -> str:
    commit = f" ({about['commit']})" if about["commit"] else ""
    exact = "; exact algorithms alone" if about["exact"] else ""
    on_gpu = about["device"] != "cpu"
    gpu = f"; {about['device']}, float32 precision {about['precision']}" if on_gpu else ""
    peers = "".join(f", {name} {version}" for name, version in about["peers"].items())
    return (
        f"convgrad {about['convgrad']}{commit}, {about['isa']}{peers}, NumPy {about['numpy']}, "
        f"Python {about['python']}; {about['threads']} threads of {about['cores']} processors, "
        f"{about['cpu']}{gpu}{exact}; load average {about['load']:.2f}; {about['date']}"
    )


def ceilings_line(ceilings: Mapping[str, Any]) -> str:
    copies = ", ".join(f"{speed:.0f} ({mb} MB)" for mb, speed in ceilings["copy_gbytes"].items())
    return (
        f"Multiply-adds on registers: {ceilings['fma_gflops']:.0f} GFLOP/s; "
        f"copy, read and written: {copies} GB/s."
    )


def race_table(rows: Rows) -> str:
    """Milliseconds per side, ratio of the fastest peer, and the ratios' range over the rounds; on a
    GPU also the ratio of the CUDA graphs."""
    sides = _sides(rows, "ms")
    checked = [key for key in ("gradient", "output") if key in rows[0]["agreement"]]
    head = ["workload", *(f"{side} ms" for side in sides), "ratio", "of rounds"]
    with_graphs = any(row.get("captured") for row in rows)
    head += ["captured"] if with_graphs else []
    lines = []
    for row in rows:
        spread = row["ratios"]
        lines.append(
            [
                row["workload"],
                *(_significant(row["ms"].get(side)) for side in sides),
                _figure(row["ratio"]),
                f"{min(spread):.2f}-{max(spread):.2f}" if spread else "-",
                *([_figure(row["captured"])] if with_graphs else []),
                *(f"{row['agreement'][key]:.0e}" for key in checked),
            ]
        )
    text = table([*head, *(f"{key}s differ" for key in checked)], lines)
    ratios = {row["workload"]: row["ratio"] for row in rows if row["ratio"] is not None}
    if not ratios:
        return f"{text}\n\nNo peer is installed: convgrad alone. PyTorch: pip install torch"
    text += f"\n\nGeometric mean of the ratios: {geometric_mean(ratios.values()):.2f}"
    others = [ratio for name, ratio in ratios.items() if name != LEFT_OUT]
    if others and len(others) < len(ratios):
        text += f"; without {LEFT_OUT}: {geometric_mean(others):.2f}"
    return text


def ops_table(rows: Rows) -> str:
    sides = _sides(rows, "ms")
    head = ["operation", "pass", *(f"{side} ms" for side in sides), "ratio", "GFLOP/s", "GB/s"]
    lines = []
    for row in rows:
        percent = f"{row['percent']:.0f} % {row['bound']}"
        lines.append(
            [
                f"{row['op']} {row['what']}",
                row["pass"],
                *(_significant(row["ms"].get(side)) for side in sides),
                _figure(row["ratio"]),
                f"{row['gflops']:.0f}" if row["gflops"] else "-",
                f"{row['gbytes']:.0f}",
                percent + ("*" if row["winograd"] else ""),
                row["algorithm"] or "-",
            ]
        )
    text = table([*head, "of ceiling", "algorithm"], lines, words=2)
    note = (
        "FLOPs of the direct algorithm; bytes read and written once. The ceiling is the multiply-"
        "adds (fma) or the copy (copy) above, whichever would take longer."
    )
    if any(row["winograd"] for row in rows):
        note += " *: Winograd multiplies less than it is counted for."
    return f"{text}\n\n{note}"


def memory_table(rows: Rows) -> str:
    sides = _sides(rows, "mb")
    return table(
        ["workload", *(f"{side} MB" for side in sides), "ratio"],
        [
            [
                row["workload"],
                *(_figure(row["mb"].get(side), 1) for side in sides),
                _figure(row["ratio"]),
            ]
            for row in rows
        ],
    )


def overhead_table(rows: Rows, imports: Mapping[str, float]) -> str:
    sides = _sides(rows, "forward_us")
    head = ["op"]
    for title in ("forward us", "with backward us"):
        head += [f"{side} {title}" for side in sides]
    lines = [
        [
            row["op"],
            *(_figure(row[key][side]) for key in ("forward_us", "both_us") for side in sides),
        ]
        for row in rows
    ]
    costs = ", ".join(f"{name} {ms:.0f} ms" for name, ms in imports.items())
    return f"{table(head, lines)}\n\nImport, beyond starting Python: {costs}."


def algorithm_table(rows: Rows) -> str:
    if not rows:
        return "no convolutions"
    return table(list(rows[0]), [list(row.values()) for row in rows], words=len(rows[0]))


def markdown(results: Mapping[str, Any]) -> str:
    """All sections that the results have."""
    about = results["about"]
    threads = f"{about['threads']} threads"
    races = {
        "training": f"Training steps, {threads}",
        "training_exact": f"Training steps, {threads}, exact algorithms alone",
        "training_1_thread": "Training steps, 1 thread",
        "inference": f"Inference, {threads}",
    }
    parts = [about_line(about)]
    for key, title in races.items():
        if key in results:
            parts += [f"## {title}", race_table(results[key])]
    if "memory" in results:
        parts += ["## Peak memory of a training step", memory_table(results["memory"])]
    if "ops" in results:
        parts += [f"## Operations, {threads}", ceilings_line(results["ceilings"])]
        parts += [ops_table(results["ops"])]
    if "overhead" in results:
        parts += ["## The cost of a call, 1 thread"]
        parts += [overhead_table(results["overhead"], results["imports"])]
    for name, rows in results.get("explain", {}).items():
        parts += [f"## {name}"] if name else []
        parts += [algorithm_table(rows)]
    return "\n\n".join(parts)
