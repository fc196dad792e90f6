"""Losses against float64 oracles, finite differences and PyTorch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.device import lib, raises_for_value, values
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    assert_same_bits_where_misplaced,
    forward_and_gradients,
    integers,
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
@pytest.mark.parametrize(
    "shape",
    [
        (5, 3),
        (33, 10),
        (4, 1000),
        (2, 3000),
        (7, 1),
        (3, 2, 9, 11),
        (3, 4, 9, 11),
        (3, 7, 9, 11),
        (40, 32),
        (40, 33),
        (3, 5000),
    ],
)
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
    """The sum over 70,000 rows is as good as the terms."""
    x, t = logits_and_classes(RNG(1), (70_000, 3))
    exact, _ = reference.cross_entropy(x, t, reduction="sum")
    terms = reference.cross_entropy(x, t, reduction="none")[0].astype(np.float32)
    sequential = np.cumsum(terms, dtype=np.float32)[-1:]
    got = values(F.cross_entropy(cg.tensor(x), cg.tensor(t), reduction="sum"))
    assert_near_float64(got.reshape(1), np.asarray([exact]), sequential)


def test_cross_entropy_of_huge_logits():
    x = np.array([[1e4, 0.0], [-1e4, 1e4], [3e38, -3e38]], np.float32)
    got = values(F.cross_entropy(cg.tensor(x), cg.tensor([1, 1, 0]), reduction="none"))
    np.testing.assert_array_equal(got, np.array([1e4, 0, 0], np.float32))


def test_cross_entropy_propagates_nan_and_infinity(torch):
    rows = [[np.nan, 1.0], [np.inf, 0.0], [-np.inf, 0.0], [-np.inf, -np.inf], [1.0, np.nan]]
    x = np.array(rows, np.float32)
    for classes in (np.zeros(5, np.int64), np.ones(5, np.int64)):
        ours = functools.partial(F.cross_entropy, target=cg.tensor(classes), reduction="none")
        got = forward_and_gradients(ours, [x])
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
        ours = functools.partial(
            F.cross_entropy, weight=cg.tensor(w), reduction=reduction, label_smoothing=smoothing
        )
        assert_gradients(lambda x, ours=ours: ours(x, cg.tensor(t)), [x], rng)
        assert_gradients(ours, [x, probs], rng)


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
    assert np.isnan(values(F.cross_entropy(empty, none)))
    assert values(F.cross_entropy(empty, none, reduction="sum")) == 0
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
    assert lib.is_channels_last(got_dx)
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(got_dx, dx, rtol=2e-6, atol=1e-6)


@pytest.mark.quick
def test_cross_entropy_errors():
    x = cg.tensor(np.zeros((2, 3), np.float32))
    t = cg.tensor([0, 1])
    with raises_for_value(ValueError, r"\[cross_entropy\].*\[0, 3\).*-100. Got 3\.", 3):
        F.cross_entropy(x, cg.tensor([0, 3]))
    with raises_for_value(ValueError, r"\[nll_loss\].*Got -1\.", -1):
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
    with pytest.raises(TypeError, match=r"float32.* float64.*\. Got int64"):
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


# ---- element by element ----


def signs(rng, shape):
    return rng.choice([-1.0, 1.0], shape)


def unit(rng, shape):
    return 0.02 + 0.96 * rng.random(shape)


# name: (the first argument, the target, options)
POINTWISE = {
    "mse_loss": (np.random.Generator.standard_normal, np.random.Generator.standard_normal, {}),
    "l1_loss": (np.random.Generator.standard_normal, np.random.Generator.standard_normal, {}),
    "smooth_l1_loss": (
        np.random.Generator.standard_normal,
        np.random.Generator.standard_normal,
        {"beta": 0.7},
    ),
    "huber_loss": (
        np.random.Generator.standard_normal,
        np.random.Generator.standard_normal,
        {"delta": 0.7},
    ),
    "binary_cross_entropy": (unit, unit, {}),
    "binary_cross_entropy_with_logits": (np.random.Generator.standard_normal, unit, {}),
    "soft_margin_loss": (np.random.Generator.standard_normal, signs, {}),
    "hinge_loss": (np.random.Generator.standard_normal, signs, {}),
    "hinge_embedding_loss": (np.random.Generator.standard_normal, signs, {"margin": 0.6}),
}


def pointwise_arrays(name, rng, shape, dtype=np.float32):
    first, second, _ = POINTWISE[name]
    return first(rng, shape).astype(dtype), second(rng, shape).astype(dtype)


def float64_values(name, a, b, p):
    """One loss per element, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    d = np.abs(a - b)
    if name == "mse_loss":
        return d**2
    if name == "l1_loss":
        return d
    if name == "smooth_l1_loss":
        return np.where(d < p, d * d / (2 * p), d - p / 2)
    if name == "huber_loss":
        return np.where(d < p, d * d / 2, p * (d - p / 2))
    if name == "binary_cross_entropy":
        return -(b * np.log(a) + (1 - b) * np.log1p(-a))
    if name == "binary_cross_entropy_with_logits":
        return b * np.logaddexp(0, -a) + (1 - b) * np.logaddexp(0, a)
    if name == "soft_margin_loss":
        return np.logaddexp(0, -a * b)
    if name == "hinge_loss":
        return np.maximum(0, 1 - a * b)
    return np.where(b == 1, a, np.maximum(0, p - a))


@pytest.mark.quick
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "hinge_loss"])
def test_whole_numbers_are_exact(name):
    rng = RNG(8)
    a = integers(rng, (3, 5, 700))
    b = signs(rng, a.shape).astype(np.float32) if name == "hinge_loss" else integers(rng, a.shape)
    exact = float64_values(name, a, b, 0)
    fn = getattr(F, name)
    np.testing.assert_array_equal(values(fn(cg.tensor(a), cg.tensor(b), reduction="none")), exact)
    assert values(fn(cg.tensor(a), cg.tensor(b), reduction="sum")) == exact.sum()


def test_the_sum_of_a_million_whole_numbers_is_exact():
    rng = RNG(17)
    a, b = integers(rng, (1_100_003,)), integers(rng, (1_100_003,))
    exact = float64_values("mse_loss", a, b, 0).sum()
    got = values(F.mse_loss(cg.tensor(a), cg.tensor(b), reduction="sum"))
    assert got == np.float32(exact)


def test_any_place_in_memory():
    for name in POINTWISE:
        for reduction in REDUCTIONS:
            options = {"reduction": reduction, **POINTWISE[name][2]}
            fn = functools.partial(getattr(F, name), **options)
            assert_same_bits_where_misplaced(fn, pointwise_arrays(name, RNG(18), (67,)))


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pointwise_error(name, reduction):
    rng = RNG(9)
    options = POINTWISE[name][2]
    a, b = pointwise_arrays(name, rng, (3, 5, 20, 67))
    exact = float64_values(name, a, b, *options.values() or (0,))
    got = values(getattr(F, name)(cg.tensor(a), cg.tensor(b), reduction=reduction, **options))
    if reduction == "none":
        assert np.abs(got - exact).max() <= 8 * np.spacing(np.float32(np.abs(exact).max()))
        assert lib.is_channels_last(got)
    else:
        value = exact.mean() if reduction == "mean" else exact.sum()
        assert got == pytest.approx(value, rel=3e-7)


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pointwise_gradients_and_parity(torch, name, reduction):
    rng = RNG(10)
    options = {"reduction": reduction, **POINTWISE[name][2]}
    ours = functools.partial(getattr(F, name), **options)
    # PyTorch has no gradient for these targets.
    target_matters = name not in ("hinge_embedding_loss", "soft_margin_loss")
    for shape in ((7,), (3, 5, 4), (2, 3, 4, 5)):
        a, b = pointwise_arrays(name, rng, shape)
        if name in ("mse_loss", "soft_margin_loss") or "entropy" in name:
            assert_gradients(ours, [a, b], rng)
        if name == "hinge_loss":

            def theirs(a, b):
                terms = (1 - a * b).clamp_min(0)
                return terms if reduction == "none" else getattr(terms, reduction)()

        else:
            theirs = functools.partial(getattr(torch.nn.functional, name), **options)
        if target_matters:
            assert_parity(torch, ours, theirs, [a, b])
        else:
            assert_parity(
                torch,
                functools.partial(ours, target=cg.tensor(b)),
                functools.partial(theirs, target=torch.tensor(b)),
                [a],
            )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [(True, False), (False, True), (True, True)])
def test_bce_weights_parity(torch, reduction, weights):
    """Weights per element, per channel and one for all, as PyTorch broadcasts them."""
    rng = RNG(11)
    shape = (3, 4, 5)
    x, t = pointwise_arrays("binary_cross_entropy_with_logits", rng, shape)
    for kind in (shape, (4, 1), (1,)):
        given = [rng.random(kind).astype(np.float32) + 0.5 if use else None for use in weights]
        names = "weight", "pos_weight"
        ours = {k: None if w is None else cg.tensor(w) for k, w in zip(names, given)}
        theirs = {k: convert(torch, w) for k, w in zip(names, given)}
        assert_parity(
            torch,
            functools.partial(F.binary_cross_entropy_with_logits, reduction=reduction, **ours),
            functools.partial(
                torch.nn.functional.binary_cross_entropy_with_logits, reduction=reduction, **theirs
            ),
            [x, t],
        )
        if weights[0]:
            p = unit(rng, shape).astype(np.float32)
            assert_parity(
                torch,
                functools.partial(
                    F.binary_cross_entropy, reduction=reduction, weight=ours["weight"]
                ),
                functools.partial(
                    torch.nn.functional.binary_cross_entropy,
                    reduction=reduction,
                    weight=theirs["weight"],
                ),
                [p, t],
                rtol=1e-3,
            )


def test_bce_at_its_edges(torch):
    """0, 1, huge logits, NaN and infinity."""
    y = np.array([0, 0, 1, 1, np.nan, 0.5], np.float32)
    t = np.array([0, 1, 0, 1, 1, np.nan], np.float32)
    got = values(F.binary_cross_entropy(cg.tensor(y), cg.tensor(t), reduction="none"))
    np.testing.assert_array_equal(got, np.array([0, 100, 100, 0, np.nan, np.nan], np.float32))
    x = np.array([1e4, -1e4, 1e4, -1e4, np.nan, 88.0, -104.0], np.float32)
    t = np.array([1, 0, 0, 1, 1, 0, 1], np.float32)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits
    assert_parity_with_nan(torch, F.binary_cross_entropy_with_logits, theirs, x, t)


def assert_parity_with_nan(torch, ours, theirs, x, t):
    a = torch.tensor(x, requires_grad=True)
    y = theirs(a, torch.tensor(t), reduction="none")
    y.sum().backward()
    got = forward_and_gradients(lambda x: ours(x, cg.tensor(t), reduction="none"), [x])
    np.testing.assert_allclose(got[0], y.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(got[1], a.grad.numpy(), rtol=1e-6)


@pytest.mark.quick
def test_pointwise_threads():
    for name in POINTWISE:
        a, b = pointwise_arrays(name, RNG(12), (3, 5, 40, 67))
        assert_same_bits_for_any_threads(
            functools.partial(forward_and_gradients, getattr(F, name), [a, b])
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=0, max_size=5), st.integers(0, 3))
def test_pointwise_any_shape_and_strides(shape, way):
    for name in ("mse_loss", "binary_cross_entropy_with_logits"):
        a, b = (
            pointwise_arrays(name, RNG(13), tuple(shape), np.float64)
            if shape
            else (
                np.array(0.3),
                np.array(0.7),
            )
        )
        exact = float64_values(name, a, b, 0)
        if way & 1 and shape:
            a, b = a[::-1].copy()[::-1], b[::-1].copy()[::-1]
        if way & 2 and shape:
            b = np.asfortranarray(b)
        got, da, db = forward_and_gradients(
            functools.partial(getattr(F, name), reduction="none"), [a, b]
        )
        assert got.shape == da.shape == db.shape == tuple(shape)
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-12)
    assert np.isnan(values(F.mse_loss(cg.tensor(np.zeros((0, 2))), cg.tensor(np.zeros((0, 2))))))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_margin_ranking_parity(torch, reduction, margin):
    rng = RNG(14)
    a, b = (rng.standard_normal((5, 3, 4)).astype(np.float32) for _ in range(2))
    t = signs(rng, a.shape).astype(np.float32)
    kw = {"margin": margin, "reduction": reduction}
    assert_parity(
        torch,
        functools.partial(F.margin_ranking_loss, **kw),
        functools.partial(torch.nn.functional.margin_ranking_loss, **kw),
        [a, b, t],
    )


@pytest.mark.quick
def test_pointwise_errors():
    a, b = cg.tensor(np.zeros((2, 3), np.float32)), cg.tensor(np.zeros((2, 1), np.float32))
    for name in POINTWISE:
        with pytest.raises(ValueError, match=rf"\[{name}\].*one shape. Got \(2, 3\) and \(2, 1\)"):
            getattr(F, name)(a, b)
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 3\) and \(2, 1\)"):
        F.margin_ranking_loss(a, a, b)
    with pytest.raises(ValueError, match=r"\[mse_loss\] reduction must be .* Got 'avg'"):
        F.mse_loss(a, a, reduction="avg")
    with raises_for_value(ValueError, r"from 0 to 1. Got 1.5", 1.5):
        F.binary_cross_entropy(cg.tensor([0.5, 1.5]), cg.tensor([0.5, 0.5]))
    with pytest.raises(
        ValueError, match=r"pos_weight must be broadcastable .*\(2, 3\). Got \(4,\)"
    ):
        F.binary_cross_entropy_with_logits(a, a, pos_weight=cg.tensor([1.0] * 4))
    with pytest.raises(ValueError, match=r"beta must be >= 0. Got -1"):
        F.smooth_l1_loss(a, a, beta=-1)
    with pytest.raises(ValueError, match=r"delta must be > 0. Got 0"):
        F.huber_loss(a, a, delta=0)
    with pytest.raises(
        TypeError, match=r"target must have the input's dtype, float32. Got float64"
    ):
        F.mse_loss(a, cg.tensor(np.zeros((2, 3))))


# ---- multi_margin_loss ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_multi_margin(torch, reduction, p, weighted):
    rng = RNG(15)
    kw = {"p": p, "margin": 0.8, "reduction": reduction}
    for shape in ((6, 5), (5,), (1, 1), (9, 40), (2, 5000), (3000, 7)):
        x = rng.standard_normal(shape).astype(np.float32)
        t = np.asarray(rng.integers(0, shape[-1], shape[:-1]))
        w = rng.random(shape[-1]).astype(np.float32) + 0.5 if weighted else None
        ours = functools.partial(
            F.multi_margin_loss, weight=None if w is None else cg.tensor(w), **kw
        )
        theirs = functools.partial(
            torch.nn.functional.multi_margin_loss, weight=convert(torch, w), **kw
        )
        assert_parity(torch, ours, theirs, [x, t])
    assert_gradients(lambda x: F.multi_margin_loss(x, cg.tensor(t), **kw), [x], rng)
    assert_same_bits_for_any_threads(lambda: forward_and_gradients(ours, [x, t]))


@pytest.mark.quick
def test_multi_margin_errors():
    x = cg.tensor(np.zeros((2, 3), np.float32))
    with raises_for_value(ValueError, r"\[multi_margin_loss\].*\[0, 3\). Got 3\.", 3):
        F.multi_margin_loss(x, cg.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"p must be 1 or 2. Got 3"):
        F.multi_margin_loss(x, cg.tensor([0, 1]), p=3)
    with pytest.raises(ValueError, match=r"\(N, C\) or \(C\).*\(1, 2, 3\)"):
        F.multi_margin_loss(cg.tensor(np.zeros((1, 2, 3))), cg.tensor([[0, 1, 0]]))


# ---- dice_loss ----


def torch_dice(torch, x, t, smooth):
    if t.dtype == torch.int64:
        p = torch.softmax(x, 1)
        t = torch.nn.functional.one_hot(t, x.shape[1]).movedim(-1, 1).to(x.dtype)
    else:
        p = torch.sigmoid(x)
    axes = tuple(range(2, x.ndim))
    if axes:
        both, ps, ts = (p * t).sum(axes), p.sum(axes), t.sum(axes)
    else:
        both, ps, ts = p * t, p, t
    return 1 - ((2 * both + smooth) / (ps + ts + smooth)).mean()


@pytest.mark.parametrize("smooth", [1.0, 10.0])
@pytest.mark.parametrize(
    "shape", [(3, 4), (2, 1, 9), (2, 3, 6, 5), (1, 4, 3, 5, 4), (2, 40, 7), (1, 2, 90, 91)]
)
def test_dice(torch, smooth, shape):
    rng = RNG(16)
    x = rng.standard_normal(shape).astype(np.float32)
    classes = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    mask = (rng.random(shape) < 0.4).astype(np.float32)
    for t in (classes, mask):
        ours = functools.partial(F.dice_loss, target=cg.tensor(t), smooth=smooth)
        assert_parity(
            torch,
            ours,
            lambda x: torch_dice(torch, x, torch.tensor(t), smooth),  # noqa: B023
            [x],
            atol=1e-7,
        )
        y = cg.tensor(t.astype(np.float64) if t is mask else t)
        assert_gradients(lambda x: F.dice_loss(x, y, smooth), [x], rng)  # noqa: B023
        assert_same_bits_for_any_threads(functools.partial(forward_and_gradients, ours, [x]))


@pytest.mark.quick
def test_dice_edges():
    perfect = cg.tensor(np.array([[[200.0, -200.0]]], np.float32))
    assert values(F.dice_loss(perfect, cg.tensor(np.array([[[1.0, 0.0]]], np.float32)))) == 0
    empty = cg.tensor(np.zeros((2, 3, 0), np.float32))
    assert values(F.dice_loss(empty, cg.tensor(np.zeros((2, 0), np.int64)))) == 0
    none = cg.tensor(np.zeros((0, 3, 4), np.float32))
    assert np.isnan(values(F.dice_loss(none, cg.tensor(np.zeros((0, 4), np.int64)))))
    x = cg.tensor(np.zeros((2, 3, 4), np.float32))
    with raises_for_value(ValueError, r"\[dice_loss\].*\[0, 3\). Got -1", -1):
        F.dice_loss(x, cg.tensor(np.full((2, 4), -1)))
    with pytest.raises(ValueError, match=r"one shape. Got \(2, 3, 4\) and \(2, 4\)"):
        F.dice_loss(x, cg.tensor(np.zeros((2, 4), np.float32)))
    with pytest.raises(ValueError, match=r"input \(2, 3, 4\) and target \(2, 3\)"):
        F.dice_loss(x, cg.tensor(np.zeros((2, 3), np.int64)))
