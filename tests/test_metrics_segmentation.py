"""Overlap, surface distances, boxes and pointing, against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

import convgrad as cg
from convgrad import metrics


def square(low, high, size=8):
    mask = np.zeros((size, size), bool)
    mask[low:high, low:high] = True
    return mask


S, R, EMPTY = square(1, 5), square(2, 6), np.zeros((8, 8), bool)  # 16 pixels each, 9 in common


def test_overlap():
    assert metrics.dice(S, R) == pytest.approx(18 / 32)
    assert metrics.iou(S, R) == pytest.approx(9 / 23)
    assert metrics.volumetric_overlap_error(S, R) == pytest.approx(100 * 14 / 23)
    assert metrics.volume_difference(square(1, 4), R) == pytest.approx(100 * (9 - 16) / 16)
    assert metrics.dice(cg.tensor(S), R.astype(np.float32)) == pytest.approx(18 / 32)


def test_overlap_of_empty_masks():
    assert metrics.dice(EMPTY, EMPTY) == metrics.iou(EMPTY, EMPTY) == 1
    assert metrics.dice(S, EMPTY) == metrics.iou(EMPTY, R) == 0
    assert metrics.volumetric_overlap_error(EMPTY, EMPTY) == 0
    assert math.isnan(metrics.volume_difference(S, EMPTY))


def test_dice_per_class():
    target, predicted = np.array([[0, 0, 1], [1, 1, 2]]), np.array([[0, 1, 1], [1, 2, 2]])
    got = metrics.dice_per_class(predicted, target, 4)
    np.testing.assert_allclose(got, [2 / 3, 4 / 6, 2 / 3, np.nan])


def test_surface_distances_by_hand():
    """Two single pixels 3 and 4 apart: every distance is 5; with spacing (2, 1) sqrt(52)."""
    a, b = np.zeros((2, 6, 6), bool)
    a[1, 1] = b[4, 5] = True
    for distance in (metrics.assd, metrics.hausdorff):
        assert distance(a, b) == pytest.approx(5)
        assert distance(a, b, spacing=(2, 1)) == pytest.approx(math.hypot(6, 4))
        assert distance(a, a) == 0


def test_surface_distances_against_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 6, 7)) > 0.6
    spacing = (1.5, 1, 0.5)

    def surface(mask):
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inside) * spacing

    pa, pb = surface(a), surface(b)
    pairs = np.linalg.norm(pa[:, None] - pb[None], axis=-1)
    there, back = pairs.min(1), pairs.min(0)
    both = np.concatenate([there, back])
    assert metrics.assd(a, b, spacing) == pytest.approx(both.mean())
    assert metrics.hausdorff(a, b, spacing) == pytest.approx(both.max())
    p95 = max(np.percentile(there, 95), np.percentile(back, 95))
    assert metrics.hausdorff(a, b, spacing, percentile=95) == pytest.approx(p95)


def test_surfaces_of_empty_masks_are_nowhere():
    for s, r in ((EMPTY, R), (S, EMPTY), (EMPTY, EMPTY)):
        assert math.isnan(metrics.assd(s, r)) and math.isnan(metrics.hausdorff(s, r))


def test_box_iou():
    boxes = np.array([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    others = np.array([[0.7, 0.5, 0.4, 0.4], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(metrics.box_iou(boxes, boxes), [1, 1, 0])
    np.testing.assert_allclose(metrics.box_iou(boxes, others), [0.08 / 0.24, 0, 0])


def test_pointing_game():
    heat = np.zeros((3, 4, 5))
    heat[0, 1, 2] = heat[1, 3, 3] = heat[2, 0, 0] = 1
    mask = np.zeros((3, 4, 5), bool)
    mask[0, 1:3, 1:3] = mask[1, 0, 0] = True  # found, missed, nothing to find
    assert metrics.pointing_game(heat, mask) == 0.5
    assert math.isnan(metrics.pointing_game(heat, np.zeros_like(mask)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.dice(S, S[1:]), r"\[dice\].*Got \(8, 8\) and \(7, 8\)"),
        (lambda: metrics.iou(S * 2, S), r"\[iou\] predicted must be a mask of 0 and 1"),
        (lambda: metrics.assd(S, R, (1,)), r"\[assd\] spacing must have one entry.*Got \(1,\)"),
        (lambda: metrics.hausdorff(S, R, None, 101), r"percentile must be from 0 to 100. Got 101"),
        (lambda: metrics.box_iou(np.ones((2, 3)), np.ones((2, 3))), r"\[box_iou\].*\(2, 3\)"),
        (lambda: metrics.pointing_game(S, EMPTY[1:]), r"\[pointing_game\].*\(8, 8\) and \(7, 8\)"),
        (lambda: metrics.dice_per_class(S, S[1:], 2), r"\[dice_per_class\].*\(7, 8\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
