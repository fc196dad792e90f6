"""A computational graph as text, as Mermaid text, and as a picture in layers from top to bottom."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convgrad.extras import require
from convgrad.viz.canvas import BLUE, VERMILION, new_figure, write

if TYPE_CHECKING:
    from convgrad.viz.recording import Graph, Node

__all__ = ["as_text", "draw", "layers", "mermaid", "summary"]

SHOWN = 6  # of more numbers than this, only the range is told
MOST = 60  # nodes in a picture
# Inches: a letter of the text, a line of it, the gaps between boxes beside and below each other.
LETTER, LINE, BESIDE, BELOW = 0.068, 0.155, 0.3, 0.3
FONT = {"family": "monospace", "size": 8}
GREY = "#777777"


def summary(values: np.ndarray) -> str:
    """A few numbers as they are, of many the range."""
    numbers = values.ravel().tolist()
    if len(numbers) <= SHOWN:
        return " ".join(f"{v:.3g}" for v in numbers) or "none"
    low, high = values.min(), values.max()
    return f"{low:.3g} to {high:.3g}"


def _lines(node: Node) -> list[str]:
    """What a box says: name and formula, shape, value, gradient."""
    shape = "x".join(map(str, node.value.shape))
    head = f"{node.name} = {node.formula}" if node.formula else node.name
    lines = [f"{head}  [{shape}]" if shape else head, summary(node.value)]
    return lines if node.gradient is None else [*lines, summary(node.gradient)]


def as_text(graph: Graph) -> str:
    """See :meth:`Graph.__str__`."""
    rows = [("", "value", "gradient of the loss"), *(_lines(node) for node in graph.nodes)]
    widths = [max(len(row[k]) for row in rows) + 2 for k in (0, 1)]
    return "\n".join(
        "".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0))).rstrip()
        for row in rows
    )


# ---- text ----


def mermaid(graph: Graph) -> str:
    """See :meth:`Graph.mermaid`."""
    text = ["flowchart TD"]
    for i, node in enumerate(graph.nodes):
        head, value, *gradient = (_escaped(line) for line in _lines(node))
        words = [f"<b>{head}</b>", f"value {value}", *(f"gradient {g}" for g in gradient)]
        left, right = ("[", "]") if node.formula else ("([", "])")
        text.append(f'    n{i}{left}"{"<br/>".join(words)}"{right}')
    for i, node in enumerate(graph.nodes):
        text += [f"    n{source} --> n{i}" for source in dict.fromkeys(node.inputs)]
    return "\n".join(text) + "\n"


def _escaped(text: str) -> str:
    """Without what ends a Mermaid string or starts a code or a tag in it."""
    for character, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, code)
    return text


# ---- layers ----


def layers(graph: Graph) -> list[list[tuple[int, int]]]:
    """Who stands in which row, from left to right: (i, -1) is node i, (i, j) the edge from node i
    to node j on its way past this row.

    Results stand below everything they come from, what was given right above its first use. A row
    is ordered by where its inputs stand in the row above (Sugiyama's method, going down once).
    """
    rows = _rows(graph)
    table: list[list[tuple[int, int]]] = [[] for _ in range(max(rows) + 1)]
    for i in range(len(graph.nodes)):
        table[rows[i]].append((i, -1))
    for j, node in enumerate(graph.nodes):
        for i in dict.fromkeys(node.inputs):
            for between in range(rows[i] + 1, rows[j]):
                table[between].append((i, j))
    for above, row in pairwise(table):
        at = {item: place for place, item in enumerate(above)}
        row.sort(key=lambda item: _mean_place(graph, item, at))
    return table


def _rows(graph: Graph) -> list[int]:
    rows = [0] * len(graph.nodes)
    for i, node in enumerate(graph.nodes):
        rows[i] = 1 + max((rows[k] for k in node.inputs), default=-1)
    for i, node in enumerate(graph.nodes):
        if not node.formula:
            users = [rows[j] for j, other in enumerate(graph.nodes) if i in other.inputs]
            rows[i] = min(users) - 1
    return rows


def _mean_place(graph: Graph, item: tuple[int, int], at: dict[tuple[int, int], int]) -> float:
    """Of an item's inputs in the row above, ``at``; what has none comes last."""
    i, j = item
    sources = graph.nodes[i].inputs if j < 0 else (i,)
    target = i if j < 0 else j
    places = [at.get((k, -1), at.get((k, target))) for k in sources]
    known = [place for place in places if place is not None]
    return sum(known) / len(known) if known else float("inf")


# ---- the picture ----


def draw(graph: Graph, path: str | os.PathLike[str], title: str = "") -> None:
    """See :meth:`Graph.draw`."""
    if len(graph.nodes) > MOST:
        raise ValueError(
            f"[draw] A picture holds at most {MOST} nodes. Got {len(graph.nodes)}; mermaid() has "
            "no limit."
        )
    table = layers(graph)
    texts = [_lines(node) for node in graph.nodes]
    left, width = _columns(table, texts)
    tops, height = _heights(table, texts)
    above, below = 0.3 * bool(title), 0.25
    total = above + height + below
    figure = new_figure(width, total)
    figure.set_layout_engine("none")
    figure.text(0.5, 1 - 0.2 / total, title, ha="center", va="center", fontsize=10)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height + below, -above))
    axes.set_axis_off()
    axes.text(0.1, height + 0.1, "value", color=BLUE, **FONT)
    axes.text(0.1 + 7 * LETTER, height + 0.1, "gradient of the loss", color=VERMILION, **FONT)
    boxes = [_Box(0, 0, *_box_size(text)) for text in texts]
    paths: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for top, row in zip(tops, table):
        for x, (i, j) in zip(left, row):
            if j < 0:
                boxes[i] = _Box(x, top, *_box_size(texts[i]))
            else:
                paths.setdefault((i, j), []).extend([(x + 0.1, top), (x + 0.1, top + 3 * LINE)])
    for j, node in enumerate(graph.nodes):
        for i in dict.fromkeys(node.inputs):
            _edge(axes, boxes[i], paths.get((i, j), []), boxes[j])
        _draw_box(axes, boxes[j], texts[j], bool(node.formula))
    write(figure, path)


class _Box(NamedTuple):
    """Its upper left corner and size."""

    x: float
    y: float
    width: float
    height: float


def _box_size(lines: list[str]) -> tuple[float, float]:
    return LETTER * max(map(len, lines)) + 0.16, LINE * len(lines) + 0.1


def _columns(table: Any, texts: list[list[str]]) -> tuple[list[float], float]:
    """Left edges of the columns, and the width of all."""
    left, x = [], 0.1
    for column in range(max(map(len, table))):
        widths = [
            _box_size(texts[row[column][0]])[0] if row[column][1] < 0 else 0.2
            for row in table
            if column < len(row)
        ]
        left.append(x)
        x += max(widths) + BESIDE
    return left, x - BESIDE + 0.1


def _heights(table: Any, texts: list[list[str]]) -> tuple[list[float], float]:
    """Upper edges of the rows, and the height of all."""
    tops, y = [], 0.1
    for row in table:
        tops.append(y)
        y += max(_box_size(texts[i])[1] for i, j in row if j < 0) + BELOW
    return tops, y - BELOW + 0.1


def _draw_box(axes: Any, box: _Box, lines: list[str], computed: bool) -> None:
    corner = 0.04 if computed else 0.14
    axes.add_patch(
        require("matplotlib.patches").FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={min(corner, box.width / 2, box.height / 2)}",
            facecolor="#F4F4F4" if computed else "white",
            edgecolor=GREY,
            linewidth=0.8,
            zorder=2,
        )
    )
    for k, (line, colour) in enumerate(zip(lines, ("black", BLUE, VERMILION))):
        y = box.y + 0.05 + LINE * (k + 0.5)
        weight = "bold" if k == 0 else "normal"
        axes.text(box.x + 0.08, y, line, color=colour, weight=weight, va="center", **FONT)


def _edge(axes: Any, start: _Box, path: list[tuple[float, float]], end: _Box) -> None:
    """From the lower edge of a box to the upper edge of another, through the places kept free."""
    points = [(start.x + start.width / 2, start.y + start.height), *path]
    axes.plot(*zip(*points), color=GREY, linewidth=0.9, zorder=1)
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    target = end.x + end.width / 2, end.y
    axes.annotate("", target, points[-1], arrowprops=style, zorder=1)
