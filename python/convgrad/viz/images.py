"""Pictures of images: what a network's filters look like, and what it sees where.

Arguments are arrays or tensors on any device. Grey images are shown from their darkest to their
brightest pixel, each by itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convgrad.extras import require
from convgrad.metrics import box_iou
from convgrad.metrics.classification import array_of
from convgrad.viz.canvas import COLOURS, GREEN, VERMILION, new_figure, write

__all__ = ["boxes", "feature_maps", "filters", "heat_maps", "overlays"]

Path = str | os.PathLike[str]

PANEL = 1.9  # inches, the longer side of one image
WIDEST = 7.2  # inches of segmentations side by side
SHADE = 0.55  # how opaque the colours over an image are
# Colour, style and width of a box's line.
BOXES = {"true": (GREEN, "-", 2.4), "predicted": (VERMILION, "--", 1.3)}


def filters(weights: Any, path: Path, title: str = "") -> None:
    """A first layer's filters as a grid, in grey, each by its own largest weight; 0 is mid-grey.

    Args:
        weights: (K, C, h, w), or (K, C, d, h, w) in 3-D. The K filters are laid out as a grid,
            each as a strip of its C channels and d planes.
        path: the PNG file to write.

    ValueError for other shapes and for weights that are not finite.
    """
    w = array_of(weights)
    if w.ndim not in (4, 5) or not w.size:
        raise ValueError(
            f"[filters] weights must be of shape (K, C, h, w) or (K, C, d, h, w). Got {w.shape}."
        )
    _check_finite("filters", "weights", w)
    planes = w.reshape(len(w), -1, *w.shape[-2:]).astype(np.float64)
    planes = planes / np.maximum(np.abs(planes).max((1, 2, 3), keepdims=True), 1e-300)
    finer = max(1, 24 // max(w.shape[-2:]))  # so that the gaps between small filters are thin
    tiles = planes.repeat(finer, 2).repeat(finer, 3)
    rows = np.stack([_mosaic(tile, len(tile)) for tile in tiles])  # a filter each
    apart = 1 / 12 if len(tiles[0]) == 1 else 1 / 5
    picture = _mosaic(rows, _columns(len(rows), rows.shape[1] / rows.shape[2]), apart)
    figure = new_figure(*_size(picture.shape, 4.2), title)
    axes = figure.subplots()
    _hide(axes)
    grey = _with_gaps("gray", "lightsteelblue")  # neither black nor white, which weights may be
    axes.imshow(picture, cmap=grey, vmin=-1, vmax=1, interpolation="nearest")
    write(figure, path)


def feature_maps(activation: Any, path: Path, title: str = "", images: Any = None) -> None:
    """What a layer answers: a row of maps per image, all on the scale of the bar beside them.
    Its upper end may leave out the highest half per cent, down to a quarter of the range.

    Args:
        activation: (K, h, w), the K maps of one image, as a square; or (N, K, h, w), a row each.
        path: the PNG file to write.
        images: (N, H, W) or (N, 1, H, W), what the maps are of; shown before them.

    ValueError for other shapes and for values that are not finite.
    """
    maps = array_of(activation)
    if maps.ndim not in (3, 4) or not maps.size:
        raise ValueError(
            "[feature_maps] activation must be of shape (K, h, w) or (N, K, h, w). Got "
            f"{maps.shape}."
        )
    _check_finite("feature_maps", "activation", maps)
    count = len(maps) if maps.ndim == 4 else 1
    columns = maps.shape[1] if count > 1 else _columns(maps.shape[-3])
    picture = _mosaic(maps.reshape(-1, *maps.shape[-2:]).astype(np.float64), columns)
    shown = None if images is None else _pictures("feature_maps", "images", images, count)
    width, height = _size(picture.shape, min(2.5 + 0.5 * columns, 9.0))
    beside = 0.0
    if shown is not None:
        beside = max(0.5, height / count * shown.shape[2] / shown.shape[1])
    figure = new_figure(width + beside + 0.8, height + 0.1 + 0.25 * (shown is not None), title)
    ratios = [beside, width] if shown is not None else [width]
    parts = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    if shown is not None:
        _hide(parts[0])
        parts[0].imshow(_mosaic(_stretched(shown), 1), cmap=_with_gaps("gray"))
        parts[0].set_title("image", fontsize=9)
    _scaled(figure, parts[-1], picture)
    write(figure, path)


def _scaled(figure: Any, axes: Any, picture: np.ndarray) -> None:
    """The picture, and a bar of its scale; a single peak does not darken all the rest."""
    values = picture[np.isfinite(picture)]
    most = values.max()
    high = max(np.percentile(values, 99.5), values.min() + (most - values.min()) / 4)
    _hide(axes)
    drawn = axes.imshow(
        picture, cmap=_with_gaps("viridis"), interpolation="nearest", vmin=values.min(),
        vmax=high if high > values.min() else most,
    )  # fmt: skip
    extend = "max" if values.min() < high < most else "neither"
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02, extend=extend)
    bar.ax.tick_params(labelsize=8)


def overlays(
    images: Any,
    masks: Any,
    path: Path,
    classes: Sequence[str],
    title: str = "",
    truths: Any = None,
) -> None:
    """Segmentations over their images: a row per slice with image, truth and prediction.

    Args:
        images: (N, H, W) or (N, 1, H, W), grey.
        masks: (N, H, W) whole numbers, the predicted classes; or several such by name, as in
            ``{"U-Net": a, "SegNet": b}``, a column each.
        path: the PNG file to write.
        classes: their names; class 0, the background, is left uncoloured. At most 8.
        truths: (N, H, W), the true classes.

    ValueError for unequal shapes, and for numbers that name no class.
    """
    shown = _pictures("overlays", "images", images)
    if not 2 <= len(classes) <= len(COLOURS) + 1:
        raise ValueError(
            f"[overlays] classes must be 2 to {len(COLOURS) + 1} names. Got {len(classes)}."
        )
    columns = {} if truths is None else {"truth": truths}
    columns |= masks if isinstance(masks, Mapping) else {"prediction": masks}
    painted = {n: _mask(n, m, shown.shape, len(classes)) for n, m in columns.items()}
    figure, groups, across = _groups(shown, 1 + len(painted), title)
    for i, (group, image) in enumerate(zip(groups, shown)):
        for axes, (name, mask) in zip(group, [("image", None), *painted.items()]):
            _show(axes, image, name if i < across else "")
            if mask is not None:
                axes.imshow(_coloured(mask[i]), interpolation="nearest")
    patch = require("matplotlib.patches").Patch
    _legend(figure, [patch(color=c, label=name) for name, c in zip(classes[1:], COLOURS)])
    write(figure, path)


def boxes(images: Any, predicted: Any, true: Any, path: Path, title: str = "") -> None:
    """Boxes on images: predicted ones dashed, true ones solid, and how well they agree (IoU).

    Args:
        images: (N, H, W) or (N, 1, H, W), grey.
        predicted, true: (N, 4), centre and size (y, x, h, w) as fractions of H and W, as
            ``models.BoxCNN`` gives them; a row of NaN where there is none. None: not shown.
        path: the PNG file to write.

    ValueError for other shapes.
    """
    shown = _pictures("boxes", "images", images)
    given = {
        name: _rows("boxes", name, value, len(shown), 4)
        for name, value in (("true", true), ("predicted", predicted))  # the latter on top
        if value is not None
    }
    figure, axes = _grid(shown, title, captions=len(given) == 2, legend=True)
    for i, (at, image) in enumerate(zip(axes, shown)):
        _show(at, image)
        for name, rows in given.items():
            if np.isfinite(rows[i]).all():
                at.add_patch(_rectangle(rows[i], image.shape, name))
        if len(given) == 2:
            at.set_xlabel(_iou(given["predicted"][i], given["true"][i]), fontsize=8)
    nothing = np.zeros(4)
    _legend(figure, [_rectangle(nothing, (1, 1), name) for name in given])
    write(figure, path)


def heat_maps(images: Any, maps: Any, points: Any, path: Path, title: str = "") -> None:
    """Where a network looks: heat maps over their images, stretched to them, and marked points.

    Args:
        images: (N, H, W) or (N, 1, H, W), grey.
        maps: (N, h, w) of any coarser size, each shown from its lowest to its highest value.
        points: (N, 2), positions (y, x) as fractions of H and W, such as where the true object is;
            a row of NaN where there is none. None: not shown.
        path: the PNG file to write.

    ValueError for other shapes and for maps that are not finite.
    """
    shown = _pictures("heat_maps", "images", images)
    heat = _stretched(_pictures("heat_maps", "maps", maps, len(shown)))
    marks = None if points is None else _rows("heat_maps", "points", points, len(shown), 2)
    figure, axes = _grid(shown, title)
    for i, (at, image) in enumerate(zip(axes, shown)):
        _show(at, image)
        height, width = image.shape
        at.imshow(
            heat[i],
            cmap="inferno",
            alpha=0.15 + 0.5 * heat[i],  # where nothing is seen, the image shows through
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        if marks is not None:
            y, x = marks[i]
            at.plot(x * width - 0.5, y * height - 0.5, "+", color="white", ms=11, mew=2.2)
            at.plot(x * width - 0.5, y * height - 0.5, "+", color="black", ms=10, mew=0.9)
        at.set_xlim(-0.5, width - 0.5)
        at.set_ylim(height - 0.5, -0.5)
    write(figure, path)


# ---- checking what is to be shown ----


def _check_finite(op: str, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"[{op}] {name} must be finite. Got {bad} of {values.size} that are not.")


def _pictures(op: str, name: str, value: Any, count: int | None = None) -> np.ndarray:
    """(N, H, W) float64 of (N, H, W) or (N, 1, H, W), N >= 1, and equal to ``count``."""
    given = array_of(value)
    images = given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given
    if images.ndim != 3 or not images.size or count not in (None, len(images)):
        number = "N" if count is None else str(count)
        raise ValueError(
            f"[{op}] {name} must be of shape ({number}, H, W) or ({number}, 1, H, W) and not "
            f"empty. Got {given.shape}."
        )
    _check_finite(op, name, images)
    return images.astype(np.float64)


def _mask(name: str, value: Any, shape: tuple[int, ...], classes: int) -> np.ndarray:
    mask = array_of(value)
    if mask.shape != shape or mask.dtype.kind not in "biu":
        raise ValueError(
            f"[overlays] '{name}' must be whole numbers of the images' shape {shape}. Got "
            f"{mask.dtype} {mask.shape}."
        )
    if mask.min() < 0 or mask.max() >= classes:
        raise ValueError(
            f"[overlays] '{name}' must be classes in 0..{classes - 1}. Got {mask.min()} to "
            f"{mask.max()}."
        )
    return mask.astype(np.intp)


def _rows(op: str, name: str, value: Any, count: int, width: int) -> np.ndarray:
    rows = array_of(value)
    if rows.shape != (count, width):
        raise ValueError(f"[{op}] {name} must be of shape {(count, width)}. Got {rows.shape}.")
    return rows.astype(np.float64)


# ---- drawing ----


def _columns(count: int, aspect: float = 1.0) -> int:
    """Of a grid of tiles, height / width = ``aspect``, about as wide as high, or up to twice as
    wide if then no place stays empty."""
    least = math.ceil(math.sqrt(count * aspect))
    return next((c for c in range(least, 2 * least) if count % c == 0), least)


def _mosaic(tiles: np.ndarray, columns: int, share: float = 1 / 12) -> np.ndarray:
    """Tiles (N, h, w) in rows of ``columns`` in one picture, with gaps of NaN between them, this
    share of a tile's shorter side."""
    n, height, width = tiles.shape
    gap = max(1, round(min(height, width) * share))
    rows = -(-n // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        out[y : y + height, x : x + width] = tile
    return out


def _stretched(images: np.ndarray) -> np.ndarray:
    """Each image (N, H, W) from 0 to 1."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return (images - low) / np.where(high > low, high - low, 1)


def _with_gaps(name: str, gap: str = "white") -> Any:
    """A colour map in which NaN has the colour ``gap``."""
    return require("matplotlib").colormaps[name].with_extremes(bad=gap)


def _size(shape: tuple[int, ...], width: float) -> tuple[float, float]:
    """Inches of a figure for a picture of this shape."""
    return width, min(width * shape[0] / shape[1], 12.0)


def _panel(height: int, width: int) -> tuple[float, float]:
    """Inches (width, height) of one image."""
    longest = max(height, width)
    return max(PANEL * width / longest, 0.8), PANEL * height / longest


def _grid(
    images: np.ndarray, title: str, captions: bool = False, legend: bool = False
) -> tuple[Any, list[Any]]:
    """A figure and an axis for each image, a few in a row."""
    count, height, width = images.shape
    panel_w, panel_h = _panel(height, width)
    columns = min(count, 4 if count < 13 else 6)
    rows = -(-count // columns)
    line = panel_h + 0.06 + 0.22 * captions
    figure = new_figure(max(panel_w * columns, 3.0), line * rows + 0.25 * legend, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _groups(images: np.ndarray, members: int, title: str) -> tuple[Any, list[Any], int]:
    """A figure, for each image ``members`` axes beside each other, and how many such groups there
    are in a row: of narrow images several."""
    count, height, width = images.shape
    panel_w, panel_h = _panel(height, width)
    gap = 0.25  # inches between groups
    across = max(1, min(count, int((WIDEST + gap) / (members * panel_w + gap))))
    rows = -(-count // across)
    inches = across * (members * panel_w + gap) - gap
    figure = new_figure(max(inches, 3.6), (panel_h + 0.04) * rows + 0.5, title)
    widths = ([panel_w] * members + [gap]) * across
    axes = figure.subplots(rows, len(widths) - 1, width_ratios=widths[:-1], squeeze=False)
    for at in axes.ravel():
        at.set_axis_off()
    starts = range(0, len(widths), members + 1)
    return figure, [line[k : k + members] for line in axes for k in starts][:count], across


def _hide(axes: Any) -> None:
    """No ticks and no frame."""
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _show(axes: Any, image: np.ndarray, title: str = "") -> None:
    _hide(axes)
    axes.imshow(image, cmap="gray", interpolation="nearest")
    if title:
        axes.set_title(title, fontsize=9)


def _coloured(mask: np.ndarray) -> np.ndarray:
    """(H, W, 4), the colour of each pixel's class; class 0 is transparent."""
    rgba = require("matplotlib.colors").to_rgba
    table = np.array([(0.0, 0.0, 0.0, 0.0), *(rgba(colour, SHADE) for colour in COLOURS)])
    return table[mask]


def _iou(predicted: np.ndarray, true: np.ndarray) -> str:
    """Of two boxes (4,), or what there is instead."""
    there = np.isfinite(predicted).all(), np.isfinite(true).all()
    if all(there):
        return f"IoU {box_iou(predicted[None], true[None])[0]:.2f}"
    return {(False, True): "missed", (True, False): "false alarm"}.get(there, "")


def _rectangle(box: np.ndarray, shape: tuple[int, ...], name: str) -> Any:
    """A "true" or "predicted" box to be drawn on an image of this shape."""
    corner, (width, height) = _in_pixels(box, shape)
    colour, line, thick = BOXES[name]
    return require("matplotlib.patches").Rectangle(
        corner, width, height, fill=False, edgecolor=colour, linestyle=line, linewidth=thick,
        label=name,
    )  # fmt: skip


def _in_pixels(
    box: np.ndarray, shape: tuple[int, ...]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The (left, top) corner and (width, height) of a box (y, x, h, w) of fractions of an image."""
    y, x, h, w = box * [*shape, *shape]
    return (x - w / 2 - 0.5, y - h / 2 - 0.5), (w, h)


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    fitting = int(figure.get_figwidth() / (0.075 * longest + 0.55))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), fitting)),
        fontsize=8,
        frameon=False,
    )
