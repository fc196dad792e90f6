"""Losses against float64 oracles, finite differences and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
)
from tests.reference import loss as reference

pytestmark = pytest.mark.kernel

REDUCTIONS = ("none", "mean", "sum")
RNG = np.random.default_rng


def logits_and_classes(rng, shape, scale=1.0, ignored=0.0, dtype=np.float32):
    x = (scale * rng.standard_normal(shape)).astype(dtype)
    classes = rng.integers(0, shape[1], size=(shape[0], *shape[2:]))
    return x, np.where(rng.random(classes.shape) < ignored, -100, classes)


# ---- cross_entropy ----


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(5, 3), (33, 10), (4, 1000), (2, 3000), (3, 4, 9, 11), (7, 1)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cross_entropy_error(shape, scale):
    rng = RNG(0)
    x, t = logits_and_classes(rng, shape, scale, ignored=0.2)
    w = rng.random(shape[1]).astype(np.float32) + 0.5
    for options in ({}, {"weight": w}, {"weight": w, "label_smoothing": 0.1}):
        exact, dx = reference.cross_entropy(x, t, reduction="none", **options)
        keyed = {k: cg.tensor(v) if k == "weight" else v for k, v in options.items()}
        ours = lambda x: F.cross_entropy(x, cg.tensor(t), reduction="none", **keyed)  # noqa: B023, E731
        got, got_dx = forward_and_gradients(ours, [x])
        scale_of_error = np.abs(exact).max() + 1
        assert np.abs(got - exact).max() <= 4 * np.spacing(np.float32(scale_of_error))
        assert np.abs(got_dx - dx).max() <= 4e-7 * np.abs(dx).max() + 1e-9


def test_cross_entropy_sum_error():
    """The sum over 20,000 rows is as good as the terms."""
    x, t = logits_and_classes(RNG(1), (20_000, 3))
    exact, _ = reference.cross_entropy(x, t, reduction="sum")
    terms = reference.cross_entropy(x, t, reduction="none")[0].astype(np.float32)
    sequential = np.cumsum(terms, dtype=np.float32)[-1:]
    got = F.cross_entropy(cg.tensor(x), cg.tensor(t), reduction="sum").array
    assert_near_float64(got.reshape(1), np.asarray([exact]), sequential)


def test_cross_entropy_of_huge_logits():
    x = np.array([[1e4, 0.0], [-1e4, 1e4], [3e38, -3e38]], np.float32)
    got = F.cross_entropy(cg.tensor(x), cg.tensor([1, 1, 0]), reduction="none").array
    np.testing.assert_array_equal(got, np.array([1e4, 0, 0], np.float32))


def test_cross_entropy_propagates_nan_and_infinity(torch):
    rows = [[np.nan, 1.0], [np.inf, 0.0], [-np.inf, 0.0], [-np.inf, -np.inf], [1.0, np.nan]]
    x = np.array(rows, np.float32)
    for classes in (np.zeros(5, np.int64), np.ones(5, np.int64)):
        got = forward_and_gradients(
            lambda x: F.cross_entropy(x, cg.tensor(classes), reduction="none"),
            [x],
        )
        t = torch.tensor(x, requires_grad=True)
        y = torch.nn.functional.cross_entropy(t, torch.tensor(classes), reduction="none")
        y.sum().backward()
        np.testing.assert_array_equal(got[0], y.detach().numpy())
        np.testing.assert_array_equal(got[1], t.grad.numpy())


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(2000, 10), (2, 4, 80, 90), (40, 1000)])
def test_cross_entropy_threads(shape):
    x, t = logits_and_classes(RNG(2), shape, ignored=0.1)
    assert_same_bits_for_any_threads(
        lambda: forward_and_gradients(lambda x: F.cross_entropy(x, cg.tensor(t)), [x])
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_gradients(reduction):
    rng = RNG(3)
    x, t = logits_and_classes(rng, (6, 5, 3), ignored=0.2)
    probs = np.abs(rng.standard_normal(x.shape)) + 0.1
    w = rng.random(5) + 0.5
    for smoothing in (0.0, 0.3):
        kw = {"reduction": reduction, "label_smoothing": smoothing}
        assert_gradients(
            lambda x: F.cross_entropy(x, cg.tensor(t), cg.tensor(w), **kw),
            [x],
            rng,
        )
        assert_gradients(
            lambda x, p: F.cross_entropy(x, p, cg.tensor(w), **kw),
            [x, probs],
            rng,
        )


def convert(torch, value):
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 7), (2, 3, 4, 5), (2, 3, 2, 4, 3)])
def test_cross_entropy_parity(torch, reduction, smoothing, weighted, shape):
    rng = RNG(4)
    x, t = logits_and_classes(rng, shape, ignored=0.2)
    t[0] = np.where(t[0] == 1, 2, t[0])
    probs = np.exp(reference.log_softmax(rng.standard_normal(shape), 1)).astype(np.float32)
    w = rng.random(shape[1]).astype(np.float32) + 0.5 if weighted else None
    kw = {"reduction": reduction, "label_smoothing": smoothing}
    tw = convert(torch, w)
    ow = None if w is None else cg.tensor(w)
    theirs = torch.nn.functional.cross_entropy
    assert_parity(
        torch,
        lambda x, t: F.cross_entropy(x, t, ow, **kw),
        lambda x, t: theirs(x, t, tw, **kw),
        [x, t],
    )
    assert_parity(
        torch,
        lambda x, t: F.cross_entropy(x, t, ow, ignore_index=2, **kw),
        lambda x, t: theirs(x, t, tw, ignore_index=2, **kw),
        [x, np.abs(t) % shape[1]],
    )
    assert_parity(
        torch,
        lambda x, p: F.cross_entropy(x, p, ow, **kw),
        lambda x, p: theirs(x, p, tw, **kw),
        [x, probs],
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_parity_unbatched(torch, reduction):
    x = RNG(5).standard_normal(7).astype(np.float32)
    for target in (np.array(3), np.exp(x) / np.exp(x).sum()):
        assert_parity(
            torch,
            lambda x, t: F.cross_entropy(x, t, reduction=reduction),
            lambda x, t: torch.nn.functional.cross_entropy(x, t, reduction=reduction),
            [x, target],
        )


def test_cross_entropy_without_a_single_row(torch):
    """As in PyTorch: the mean of nothing is NaN, its gradient zero."""
    x = np.ones((3, 4), np.float32)
    ignored = cg.tensor(np.full(3, -100))
    y, dx = forward_and_gradients(lambda x: F.cross_entropy(x, ignored), [x])
    assert np.isnan(y) and not dx.any()
    empty = cg.tensor(np.zeros((0, 4), np.float32))
    none = cg.tensor(np.zeros(0, np.int64))
    assert np.isnan(F.cross_entropy(empty, none).array)
    assert F.cross_entropy(empty, none, reduction="sum").array == 0
    assert F.cross_entropy(empty, none, reduction="none").shape == (0,)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.integers(0, 6),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_cross_entropy_any_shape_and_strides(spatial, n, c, way):
    rng = RNG(6)
    x, t = logits_and_classes(rng, (n, c, *spatial), ignored=0.3)
    if way & 1:
        x, t = x[::-1], t[::-1]
    if way & 2 and x.ndim > 2:
        x = np.asfortranarray(x)
        t = np.asfortranarray(t)
    exact, dx = reference.cross_entropy(x, t, reduction="none")
    got, got_dx = forward_and_gradients(
        lambda x: F.cross_entropy(x, cg.tensor(t), reduction="none"), [x]
    )
    assert cg._cpu.is_channels_last(got_dx)
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(got_dx, dx, rtol=2e-6, atol=1e-6)


@pytest.mark.quick
def test_cross_entropy_errors():
    x = cg.tensor(np.zeros((2, 3), np.float32))
    t = cg.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\[cross_entropy\].*\[0, 3\).*-100. Got 3\."):
        F.cross_entropy(x, cg.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"\[nll_loss\].*Got -1\."):
        F.nll_loss(x, cg.tensor([-1, 0]))
    with pytest.raises(ValueError, match=r"reduction must be .* Got 'avg'"):
        F.cross_entropy(x, t, reduction="avg")
    with pytest.raises(ValueError, match=r"input \(2, 3\) and target \(3,\)"):
        F.cross_entropy(x, cg.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"\(2, 3\)\. Got \(2, 4\)"):
        F.cross_entropy(x, cg.tensor(np.zeros((2, 4), np.float32)))
    with pytest.raises(ValueError, match=r"one value per class, 3. Got shape \(2,\)"):
        F.cross_entropy(x, t, cg.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"label_smoothing must be from 0 to 1. Got 1.5"):
        F.cross_entropy(x, t, label_smoothing=1.5)
    with pytest.raises(TypeError, match=r"target must be int64 .* Got int32"):
        F.cross_entropy(x, cg.tensor(np.zeros(2, np.int32)))
    with pytest.raises(TypeError, match=r"float32 or float64. Got int64"):
        F.cross_entropy(t, t)


# ---- nll_loss ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 7), (2, 3, 4, 5)])
def test_nll_loss_parity(torch, reduction, weighted, shape):
    rng = RNG(7)
    x, t = logits_and_classes(rng, shape, ignored=0.2)
    w = rng.random(shape[1]).astype(np.float32) + 0.5 if weighted else None
    ow = None if w is None else cg.tensor(w)
    tw = convert(torch, w)
    assert_parity(
        torch,
        lambda x, t: F.nll_loss(x, t, ow, reduction=reduction),
        lambda x, t: torch.nn.functional.nll_loss(x, t, tw, reduction=reduction),
        [x, t],
    )
