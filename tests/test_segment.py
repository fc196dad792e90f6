"""GrowCut against cases worked by hand, and seeds from boxes."""

from __future__ import annotations

import numpy as np
import pytest

from convgrad.segment import BACKGROUND, OBJECT, box_seeds, grow_cut

pytestmark = pytest.mark.cpu("of the host's side: NumPy alone")


def test_a_row_worked_by_hand():
    # Range 10: g is .9, .2, .9 between neighbours. From the left 1, .9, .18, .162, from the right
    # 1, .9, .18, .162: each seed keeps its side of the step.
    image = np.array([0, 1, 9, 10])
    np.testing.assert_array_equal(grow_cut(image, np.array([1, 0, 0, 2])), [1, 1, 2, 2])
    # A weak seed on the right is overrun: .18 and then .162 beat its .1 and .09.
    strength = np.array([1, 1, 1, 0.1])
    np.testing.assert_array_equal(grow_cut(image, np.array([1, 0, 0, 2]), strength), [1, 1, 1, 1])
    # At .17 it holds its own pixel (.162 < .17), but not its neighbour (.153 < .18).
    strength[3] = 0.17
    np.testing.assert_array_equal(grow_cut(image, np.array([1, 0, 0, 2]), strength), [1, 1, 1, 2])


def test_neighbours_by_faces_or_by_corners():
    # Two dark pixels touch in a corner; the other two are as far apart from them as can be.
    image = np.array([[0.0, 1.0], [1.0, 0.0]])
    seeds = np.array([[1, 2], [0, 0]])
    np.testing.assert_array_equal(grow_cut(image, seeds), [[1, 2], [2, 1]])
    np.testing.assert_array_equal(grow_cut(image, seeds, neighbours="faces"), [[1, 2], [0, 0]])


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [False, True])
def test_any_rank_with_and_without_channels(axes, channels):
    rng = np.random.default_rng(axes)
    truth = np.zeros((6,) * axes, int)
    truth[(slice(1, 4),) * axes] = 1
    image = truth + 0.05 * rng.random(truth.shape)
    seeds = np.zeros(truth.shape, int)
    seeds[(0,) * axes] = seeds[(-1,) * axes] = 1
    seeds[(2,) * axes] = 2
    given = np.stack([image, -image]) if channels else image
    np.testing.assert_array_equal(grow_cut(given, seeds) == 2, truth == 1)


def test_strengths_end_where_the_best_paths_lead():
    """The fixpoint is the largest product of g along a path from a seed, as Bellman and Ford's
    relaxation finds it too, one pixel after the other."""
    rng = np.random.default_rng(0)
    image, seeds = rng.random((5, 6)), np.zeros((5, 6), int)
    seeds[0, 0], seeds[4, 5], seeds[0, 5] = 1, 2, 3
    power, labels = (seeds > 0).astype(float), seeds.copy()
    for _ in range(40):
        for p in np.ndindex(5, 6):
            for q in np.ndindex(5, 6):
                if max(abs(p[0] - q[0]), abs(p[1] - q[1])) == 1:
                    force = power[q] * (1 - abs(image[p] - image[q]) / np.ptp(image))
                    if force > power[p]:
                        power[p], labels[p] = force, labels[q]
    np.testing.assert_array_equal(grow_cut(image, seeds), labels)


def test_a_constant_image_is_shared_by_distance():
    seeds = np.zeros((3, 7), int)
    seeds[1, 0], seeds[1, 6] = 1, 2
    labels = grow_cut(np.ones((3, 7)), seeds)
    assert (labels[:, :3] == 1).all() and (labels[:, 4:] == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": np.zeros((4, 5), int)}, "two labels or more. Got []"),
        ({"seeds": np.eye(4, 5, dtype=int)}, "two labels or more. Got [1]"),
        ({"seeds": np.ones((5, 4), int)}, "Got (4, 5) and (5, 4)"),
        ({"seeds": -np.ones((4, 5), int)}, "0 or more"),
        (
            {"seeds": np.ones((4, 5))},
            "whole numbers of 0 or more with at least one axis. Got float",
        ),
        ({"image": np.full((4, 5), np.nan)}, "image must be finite"),
        ({"image": np.zeros((3, 5, 5))}, "Got (3, 5, 5) and (4, 5)"),
        ({"strength": np.zeros((4, 5))}, "in (0, 1] at the seeds. Got (4, 5), 0 to 0"),
        ({"strength": np.full((4, 5), 1.5)}, "1.5 to 1.5"),
        ({"neighbours": "8"}, "must be 'all' or 'faces'. Got '8'"),
    ],
)
def test_bad_input(change, message):
    seeds = np.eye(4, 5, dtype=int)
    seeds[1, 1] = 2
    with pytest.raises(ValueError, match=r"^\[grow_cut\]") as error:
        grow_cut(**{"image": np.zeros((4, 5)), "seeds": seeds} | change)
    assert message in str(error.value)


def test_too_few_rounds_is_an_error():
    seeds = np.array([1] + [0] * 8 + [2])
    with pytest.raises(RuntimeError, match="after limit rounds. Got 2"):
        grow_cut(np.zeros(10), seeds, limit=2)


def test_seeds_from_a_box():
    seeds = box_seeds([0.5, 0.5, 0.5, 0.5], (8, 12), inner=0.5, outer=1)
    expected = np.ones((8, 12), int)
    expected[2:6, 3:9] = 0
    expected[3:5, 5:7] = OBJECT
    np.testing.assert_array_equal(seeds, expected)
    # A box of no size is its centre, one beyond the image its border.
    assert (box_seeds([0.1, 0.2, 0, 0], (10, 10)) == OBJECT).sum() == 1
    assert box_seeds([2.0, 0.5, 0.1, 0.1], (10, 10))[9, 5] == OBJECT
    assert box_seeds([0.5] * 6, (6, 6, 6)).shape == (6, 6, 6)
    assert (box_seeds([0.5] * 4, (9, 9))[0] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("box", "arguments", "message"),
    [
        ([0.5, 0.5, 0.1], {}, "must be 4 finite numbers for the shape (8, 8). Got [0.5, 0.5, 0.1]"),
        ([0.5, 0.5, 0.1, np.inf], {}, "finite"),
        ([0.5] * 4, {"inner": 1.5}, "Got 1.5 and 1.2"),
    ],
)
def test_bad_boxes(box, arguments, message):
    with pytest.raises(ValueError, match=r"^\[box_seeds\]") as error:
        box_seeds(box, (8, 8), **arguments)
    assert message in str(error.value)
