"""Segmentation that is not learned: regions grown from seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad.metrics.classification import array_of

__all__ = ["BACKGROUND", "OBJECT", "box_seeds", "grow_cut"]

BACKGROUND, OBJECT = 1, 2
NEIGHBOURS = ("all", "faces")


def grow_cut(
    image: Any, seeds: Any, strength: Any = None, neighbours: str = "all", limit: int = 10_000
) -> np.ndarray:
    """Labels every pixel by the seed that conquers it.

    A cellular automaton (Vezhnevets and Konouchine, "GrowCut", GraphiCon 2005): each pixel p has a
    label and a strength; a neighbour q attacks it with g(|C_p - C_q|) strength_q, where g falls
    from 1 for equal values to 0 for those as far apart as the image's range. An attack stronger
    than the pixel's own strength gives it the attacker's label and that strength. All pixels are
    attacked at once, of several attackers the strongest wins (of equal ones the first in the order
    of the offsets), until nothing changes. A seed of strength 1 is never conquered.

    Args:
        image: the shape of seeds, or with an axis of channels in front; any number of axes.
        seeds: whole numbers, 0 where there is no seed, else its label; two labels or more.
        strength: of the seeds, in (0, 1]; 1 if left out. Where there is no seed it is not looked
            at.
        neighbours: 'all' that share a corner (8 in 2-D, 26 in 3-D) or only 'faces' (4, 6).
        limit: how many rounds at most; the largest image needs about its longest winding path.

    Returns the labels, int64 of the seeds' shape. 0 stays where every path from a seed crosses a
    step of the whole range.
    """
    labels, values, power = _checked(image, seeds, strength, neighbours)
    pairs = list(_pairs(values, neighbours))
    for _ in range(limit):
        new_labels, new_power = labels.copy(), power.copy()
        for attacked, attacker, g in pairs:
            force = g * power[attacker]
            wins = force > new_power[attacked]
            np.copyto(new_power[attacked], force, where=wins)
            np.copyto(new_labels[attacked], labels[attacker], where=wins)
        if np.array_equal(new_power, power):
            return labels
        labels, power = new_labels, new_power
    raise RuntimeError(f"[grow_cut] Nothing may change after limit rounds. Got {limit}: too few.")


def _checked(
    image: Any, seeds: Any, strength: Any, neighbours: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, values with a first axis of channels, strengths), ValueError for what cannot be."""
    labels, values = np.array(array_of(seeds)), array_of(image).astype(np.float64)
    if labels.dtype.kind not in "iu" or labels.ndim == 0 or (labels.size and labels.min() < 0):
        raise ValueError(
            "[grow_cut] seeds must be whole numbers of 0 or more with at least one axis. Got "
            f"{labels.dtype} of shape {labels.shape}, from {labels.min() if labels.size else '-'}."
        )
    if values.shape == labels.shape:
        values = values[None]
    if values.shape[1:] != labels.shape:
        raise ValueError(
            "[grow_cut] image must have the shape of seeds, with or without channels in front. Got "
            f"{values.shape} and {labels.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("[grow_cut] image must be finite. Got NaN or infinity.")
    found = np.unique(labels[labels > 0])
    if len(found) < 2:
        raise ValueError(f"[grow_cut] seeds must hold two labels or more. Got {found.tolist()}.")
    if neighbours not in NEIGHBOURS:
        raise ValueError(f"[grow_cut] neighbours must be 'all' or 'faces'. Got {neighbours!r}.")
    power = np.ones(labels.shape) if strength is None else array_of(strength).astype(np.float64)
    if power.shape != labels.shape or not ((power > 0) & (power <= 1))[labels > 0].all():
        got = power[labels > 0] if power.shape == labels.shape else power
        raise ValueError(
            f"[grow_cut] strength must be of the seeds' shape {labels.shape} and in (0, 1] at the "
            f"seeds. Got {power.shape}, {got.min():g} to {got.max():g}."
        )
    return labels.astype(np.int64), values, np.where(labels > 0, power, 0.0)


def _pairs(values: np.ndarray, neighbours: str) -> Any:
    """Per offset of a neighbour: (where the attacked are, where their attackers are, g)."""
    axes = tuple(range(1, values.ndim))
    span = float(np.linalg.norm(np.ptp(values, axis=axes)))
    for offset in itertools.product((-1, 0, 1), repeat=len(axes)):
        steps = sum(abs(o) for o in offset)
        if steps == 0 or (neighbours == "faces" and steps > 1):
            continue
        attacked = tuple(slice(max(0, -o), min(n, n - o)) for o, n in zip(offset, values.shape[1:]))
        attacker = tuple(slice(max(0, o), min(n, n + o)) for o, n in zip(offset, values.shape[1:]))
        every = slice(None)
        distance = np.linalg.norm(values[(every, *attacked)] - values[(every, *attacker)], axis=0)
        yield attacked, attacker, 1 - distance / span if span else np.ones_like(distance)


def box_seeds(box: Any, shape: Sequence[int], inner: float = 0.5, outer: float = 1.2) -> np.ndarray:
    """Seeds for ``grow_cut`` from a box: OBJECT in its middle, BACKGROUND beyond it, 0 between.

    Args:
        box: (2 axes,) centre and then size along each axis, as fractions of the image, as in
            (y, x, h, w).
        shape: the image's, in pixels.
        inner: the ellipse of OBJECT, as a part of the box's size; it holds the pixel of the centre
            at least.
        outer: BACKGROUND is outside the box scaled by this. 1 is the box itself.
    """
    numbers = array_of(box).astype(np.float64)
    if numbers.shape != (2 * len(shape),) or not np.isfinite(numbers).all():
        raise ValueError(
            f"[box_seeds] box must be {2 * len(shape)} finite numbers for the shape "
            f"{tuple(shape)}. Got {numbers.tolist()}."
        )
    if not 0 < inner <= outer:
        raise ValueError(f"[box_seeds] 0 < inner <= outer must hold. Got {inner} and {outer}.")
    size = np.array(shape)
    centre, extent = numbers[: len(size)] * size, np.abs(numbers[len(size) :]) * size
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    away = [
        np.abs(at + 0.5 - c) / max(e / 2, 0.5) for at, c, e in zip(grid, centre, extent)
    ]  # in half sizes of the box, at least half a pixel
    seeds = np.zeros(tuple(shape), np.int64)
    seeds[np.broadcast_to(np.maximum.reduce(np.broadcast_arrays(*away)) > outer, shape)] = (
        BACKGROUND
    )
    radius = sum(a**2 for a in away)
    seeds[np.broadcast_to(radius < inner**2, shape)] = OBJECT
    middle = np.clip(centre.astype(int), 0, size - 1)
    seeds[tuple(middle)] = OBJECT
    return seeds
