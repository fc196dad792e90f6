"""lambda R(W) as terms of a loss."""

from __future__ import annotations

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import optim, penalty
from tests.device import lib, values
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
    integers,
)

pytestmark = pytest.mark.kernel

RNG = np.random.default_rng
SHAPES = [(3,), (4, 5), (6, 2, 3, 3), (0, 2), (30_000,)]


@pytest.mark.quick
def test_whole_numbers_are_exact():
    arrays = [integers(RNG(0), s) for s in SHAPES]
    for fn, value, slope in (
        (penalty.l1, np.abs, np.sign),
        (penalty.l2, np.square, lambda w: 2 * w),
    ):
        y, *grads = forward_and_gradients(lambda *w: fn(w, 0.5), arrays)  # noqa: B023
        assert y == 0.5 * sum(value(w.astype(np.float64)).sum() for w in arrays)
        for g, w in zip(grads, arrays):
            np.testing.assert_array_equal(g, 0.5 * slope(w))
            assert lib.is_channels_last(g)


def test_error():
    w = RNG(1).standard_normal(100_000).astype(np.float32)
    for fn, value in ((penalty.l1, np.abs), (penalty.l2, np.square)):
        exact = value(w.astype(np.float64)).sum()
        sequential = np.cumsum(value(w), dtype=np.float32)[-1:]
        assert_near_float64(
            values(fn([cg.tensor(w)], 1.0)).reshape(1), np.array([exact]), sequential
        )


def test_threads():
    arrays = [RNG(2).standard_normal(s).astype(np.float32) for s in [(200_000,), (30,), (70_000,)]]
    for fn in (penalty.l1, penalty.l2):
        assert_same_bits_for_any_threads(
            lambda: forward_and_gradients(lambda *w: fn(w, 0.1), arrays)  # noqa: B023
        )


def test_gradients_and_parity(torch):
    rng = RNG(3)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in SHAPES[:3]]
    assert_gradients(lambda *w: penalty.l1(w, 0.3), arrays, rng)
    assert_gradients(lambda *w: penalty.l2(w, 0.3), arrays, rng)
    for ours, power in ((penalty.l1, 1), (penalty.l2, 2)):
        assert_parity(
            torch,
            lambda *w: ours(w, 0.3),  # noqa: B023
            lambda *w: 0.3 * sum((x.abs() ** power).sum() for x in w),  # noqa: B023
            arrays,
        )


@pytest.mark.quick
def test_l2_is_weight_decay():
    """lambda ||W||^2 in the loss takes the steps of weight_decay = 2 lambda."""
    rng = RNG(4)
    x, t = rng.standard_normal((8, 3)).astype(np.float32), rng.integers(0, 4, 8)
    w = rng.standard_normal((4, 3)).astype(np.float32)
    lam = 0.05
    results = []
    for in_loss in (True, False):
        p = cg.tensor(w, requires_grad=True)
        rule = optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0 if in_loss else 2 * lam)
        for _ in range(10):
            rule.zero_grad()
            F.cross_entropy(F.linear(cg.tensor(x), p), cg.tensor(t)).backward()
            if in_loss:
                penalty.l2(p, lam).backward()
            rule.step()
        results.append(values(p))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_nan_and_errors():
    w = np.array([np.nan, 0.0, -2.0, np.inf], np.float32)
    y, g = forward_and_gradients(lambda w: penalty.l1(w, 2.0), [w])
    assert np.isnan(y)
    np.testing.assert_array_equal(g, np.array([np.nan, 0, -2, 2], np.float32))
    with pytest.raises(ValueError, match=r"\[penalty\].*at least one tensor"):
        penalty.l1([], 1.0)
    mixed = penalty.l2([cg.tensor(w[1:3]), cg.tensor(np.array([3.0]))], 1.0)
    assert mixed.item() == 13 and mixed.dtype == np.float32
    with pytest.raises(TypeError, match=r"float32.* float64.*\. Got int64"):
        penalty.l2(cg.tensor([1, 2]), 1.0)
