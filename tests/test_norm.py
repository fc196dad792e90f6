"""Normalisation against float64, finite differences and PyTorch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.device import lib, values
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    assert_same_bits_where_misplaced,
    forward_and_gradients,
    integers,
)
from tests.reference import norm as reference

pytestmark = pytest.mark.kernel

RNG = np.random.default_rng
SHAPES = [
    (40, 3),
    (4, 8, 30),
    (3, 12, 7, 9),
    (2, 6, 3, 5, 4),
    (2, 20, 60, 61),
    (9, 1, 1, 2),
    # More channels than a block of GPU threads takes, one by one and by packs of four.
    (5, 301),
    (3, 1028),
]


def batch(x, w, b, eps=1e-5):
    return F.batch_norm(x, None, None, w, b, training=True, eps=eps)


def instance(x, w, b, eps=1e-5):
    return F.instance_norm(x, weight=w, bias=b, eps=eps)


def group(groups):
    return lambda x, w, b, eps=1e-5: F.group_norm(x, groups, w, b, eps)


def layer(axes):
    return lambda x, w, b, eps=1e-5: F.layer_norm(x, x.shape[-axes:], w, b, eps)


def cases(shape):
    """(name, op, oracle's groups, shape of weight and bias) of every kind that takes the shape."""
    c = (shape[1],)
    out = [("batch", batch, reference.batch_groups(shape), c)]
    if len(shape) > 2 and np.prod(shape[2:]) > 1:
        out.append(("instance", instance, reference.sample_groups(shape, c[0]), c))
    for groups in {g for g in (1, 2, 3) if c[0] % g == 0}:
        if np.prod(shape[1:]) > groups:
            out.append((f"group{groups}", group(groups), reference.sample_groups(shape, groups), c))
    for axes in (1, 2, 3)[: len(shape) - 1]:
        if axes == 1 < len(shape) - 1 and shape[-1] == shape[1]:
            continue  # per_channel() could not tell its weights from the channels'
        out.append((f"layer{axes}", layer(axes), reference.row_groups(shape, axes), shape[-axes:]))
    return out


CASES = [
    pytest.param(shape, *case[1:], id=f"{case[0]}-{shape}")
    for shape in SHAPES
    for case in cases(shape)
]


def channels(shape, parameter, a):
    """A parameter with axes of length 1 where x has more: per channel, or of the last axes."""
    if per_channel(shape, parameter):
        return a.reshape(-1, *[1] * (len(shape) - 2))
    return a


def over_rows(shape, parameter, terms):
    if per_channel(shape, parameter):
        return terms.sum(tuple(i for i in range(len(shape)) if i != 1))
    return terms.sum(tuple(range(len(shape) - len(parameter))))


def per_channel(shape, parameter):
    return parameter == (shape[1],)


def inputs(rng, shape, parameter, offset=0.0, dtype=np.float32):
    x = (rng.standard_normal(shape) + offset).astype(dtype)
    w = (rng.standard_normal(parameter) + 1).astype(dtype)
    b = rng.standard_normal(parameter).astype(dtype)
    return x, w, b, rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("shape", "op", "groups", "parameter"), CASES)
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_error(shape, op, groups, parameter, offset):
    x, w, b, dy = inputs(RNG(0), shape, parameter, offset)
    full = [np.array(np.broadcast_to(channels(shape, parameter, a), shape)) for a in (w, b)]
    exact = reference.normalise(x, dy, *full, 1e-5, *groups, np.float64)
    plain = reference.normalise(x, dy, *full, 1e-5, *groups, np.float32)
    got = forward_and_gradients(op, [x, w, b], dy)
    for ours, e, p in zip(got[:2], exact[:2], plain[:2]):
        assert_near_float64(ours, e, p)
    for ours, e in zip(got[2:], exact[2:]):
        e = over_rows(shape, parameter, e)
        scale = np.abs(e).max() + np.sqrt(x.size / e.size)
        assert np.abs(ours - e).max() <= 1e-5 * scale * (1 + abs(offset))


@pytest.mark.quick
def test_whole_numbers_are_exact():
    """Sums of whole numbers: the bias gradient and the running statistics."""
    rng = RNG(1)
    x, dy = integers(rng, (2, 5, 70, 70)), integers(rng, (2, 5, 70, 70))
    mean, var = cg.tensor(np.zeros(5, np.float32)), cg.tensor(np.zeros(5, np.float32))
    b = np.zeros(5, np.float32)
    _, db = forward_and_gradients(
        lambda b: F.batch_norm(cg.tensor(x), mean, var, None, b, True, 1.0), [b], dy
    )
    np.testing.assert_array_equal(db, dy.sum((0, 2, 3), dtype=np.float64))
    exact = x.astype(np.float64)
    np.testing.assert_array_equal(values(mean), exact.mean((0, 2, 3)).astype(np.float32))
    np.testing.assert_allclose(values(var), exact.var((0, 2, 3), ddof=1), rtol=2e-7)


def test_variance_far_from_zero():
    """Mean 1,000 times the deviation, and a first row far from all others."""
    rng = RNG(2)
    x = (1000 + rng.standard_normal((4, 6, 50, 50))).astype(np.float32)
    x[0, :, 0, 0] = 0
    var = cg.tensor(np.zeros(6, np.float32))
    F.batch_norm(cg.tensor(x), cg.tensor(np.zeros(6, np.float32)), var, training=True, momentum=1.0)
    exact = x.astype(np.float64).var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(values(var), exact, rtol=1e-6)
    constant = np.full((2, 3, 5), 0.1, np.float32)
    y = values(F.instance_norm(cg.tensor(constant)))
    np.testing.assert_array_equal(y, np.zeros_like(constant))


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(2, 20, 60, 61), (300, 33)])
def test_threads(shape):
    for _, op, _, parameter in cases(shape):
        x, w, b, dy = inputs(RNG(3), shape, parameter)
        assert_same_bits_for_any_threads(lambda: forward_and_gradients(op, [x, w, b], dy))  # noqa: B023


@pytest.mark.parametrize("shape", [(70, 8), (30, 3)])
def test_any_place_in_memory(shape):
    for _, op, _, parameter in cases(shape):
        x, w, b, _ = inputs(RNG(12), shape, parameter)
        assert_same_bits_where_misplaced(op, [x, w, b])


def test_many_samples():
    """So many that a block of GPU threads takes all rows of one, in several runs."""
    x = (RNG(13).standard_normal((106, 1025, 17)) + 5).astype(np.float32)
    exact = x.astype(np.float64)
    deviation = np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    exact = (exact - exact.mean(2, keepdims=True)) / deviation
    y = values(F.instance_norm(cg.tensor(x)))
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=2e-6)


@pytest.mark.quick
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("per_sample", "groups"), [(False, 0), (True, 1)])
def test_relu_and_residual_are_the_separate_ops(shape, dtype, with_residual, per_sample, groups):
    """norm, add and relu in one pass, forward and backward: the separate ops' bits."""
    rng = RNG(11)
    x, w, b, dy = inputs(rng, shape, (shape[1],), dtype=dtype)
    residual = rng.standard_normal(shape).astype(dtype) if with_residual else None
    x.flat[3], dy.flat[7] = -np.inf, np.nan
    args = "norm", x, w, b, None, None, per_sample, groups, True, 0.1, 1e-5
    plain, mean, var = lib.norm_forward(*args)
    if with_residual:
        plain = lib.add(plain, lib.channels_last(residual))
    expected = values(F.relu(cg.tensor(plain)))
    y, *statistics = lib.norm_forward(*args, relu=True, residual=residual)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(statistics, [mean, var])
    unfused = lib.norm_forward(*args, residual=residual)[0]
    np.testing.assert_array_equal(unfused, plain)

    args = x, w, mean, var, per_sample, groups, False, 1e-5, True, True, True
    masked = np.where(y <= 0, dtype(0), dy)
    *grads, rest = lib.norm_backward("norm", masked, *args)
    assert rest is None
    got = lib.norm_backward("norm", dy, *args, mask=y, need_residual=True)
    for g, e in zip(got, [*grads, masked], strict=True):
        np.testing.assert_array_equal(g, e)
    got = lib.norm_backward("norm", dy, *args, mask=y)
    for g, e in zip(got, [*grads, None], strict=True):
        np.testing.assert_array_equal(g, e)
    got = lib.norm_backward("norm", dy, *args, need_residual=True)
    np.testing.assert_array_equal(got[3], dy)


@pytest.mark.parametrize(
    ("shape", "op", "groups", "parameter"), [c for c in CASES if np.prod(c.values[0]) < 2000]
)
def test_gradients(shape, op, groups, parameter):
    rng = RNG(4)
    x, w, b, _ = inputs(rng, shape, parameter, dtype=np.float64)
    assert_gradients(lambda x, w, b: op(x, w, b, 0.1), [x, w, b], rng)
    assert_gradients(lambda x: op(x, None, None, 0.1), [x], rng)


def test_gradients_of_fixed_statistics():
    rng = RNG(5)
    x, w, b, _ = inputs(rng, (3, 4, 5), (4,), dtype=np.float64)
    mean, var = cg.tensor(rng.standard_normal(4)), cg.tensor(rng.random(4) + 0.5)
    assert_gradients(lambda x, w, b: F.batch_norm(x, mean, var, w, b), [x, w, b], rng)


def theirs_of(torch, op_id):
    f = torch.nn.functional
    if op_id.startswith("batch"):
        return lambda x, w, b: f.batch_norm(x, None, None, w, b, training=True)
    if op_id.startswith("instance"):
        return lambda x, w, b: f.instance_norm(x, weight=w, bias=b)
    number = int(op_id[5])
    if op_id.startswith("group"):
        return lambda x, w, b: f.group_norm(x, number, w, b)
    return lambda x, w, b: f.layer_norm(x, x.shape[-number:], w, b)


@pytest.mark.parametrize("shape", SHAPES)
def test_parity(torch, shape):
    for name, op, _, parameter in cases(shape):
        x, w, b, _ = inputs(RNG(6), shape, parameter)
        theirs = theirs_of(torch, name)
        assert_parity(torch, op, theirs, [x, w, b], rtol=1e-3, atol=1e-3 if x.size > 9999 else 1e-4)
        assert_parity(torch, op, theirs, [x, None, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_parity(torch, kind, training):
    rng = RNG(7)
    x, w, b, _ = inputs(rng, (4, 6, 5, 3), (6,))
    start = rng.standard_normal(6).astype(np.float32), rng.random(6).astype(np.float32) + 0.5
    ours, theirs = [cg.tensor(a) for a in start], [torch.tensor(a) for a in start]
    versions = [t.version[0] for t in ours]
    for step in range(3):
        assert_parity(
            torch,
            lambda x, w, b: getattr(F, kind)(x, *ours, w, b, training, 0.3),
            lambda x, w, b: getattr(torch.nn.functional, kind)(x, *theirs, w, b, training, 0.3),
            [x + step, w, b],
        )
        for a, t in zip(ours, theirs):
            np.testing.assert_allclose(values(a), t.numpy(), rtol=1e-5, atol=1e-6)
    assert [t.version[0] for t in ours] == [v + 3 * training for v in versions]


def test_changed_running_statistics_are_noticed():
    """Evaluation saves the running statistics; a training pass before backward changes them."""
    x = cg.tensor(RNG(8).standard_normal((4, 2)), requires_grad=True)
    mean, var = cg.tensor(np.zeros(2)), cg.tensor(np.ones(2))
    y = F.batch_norm(x, mean, var)
    F.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(cg.tensor(np.ones((4, 2))))


def test_empty_batch():
    x = np.zeros((0, 3, 4), np.float32)
    mean, var = cg.tensor(np.ones(3, np.float32)), cg.tensor(np.ones(3, np.float32))
    for op, size in (
        (lambda x, w, b: F.batch_norm(x, mean, var, w, b, training=True), 3),
        (lambda x, w, b: F.batch_norm(x, mean, var, w, b), 3),
        (instance, 3),
        (group(3), 3),
        (layer(1), 4),
    ):
        w, b = np.ones(size, np.float32), np.zeros(size, np.float32)
        y, dx, dw, db = forward_and_gradients(op, [x, w, b])
        assert y.shape == dx.shape == x.shape
        assert not dw.any() and not db.any()
    np.testing.assert_array_equal(values(mean), np.ones(3))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=3),
    st.integers(2, 5),
    st.integers(1, 35),
    st.integers(0, 3),
)
def test_any_shape_and_strides(spatial, n, c, way):
    shape = (n, c, *spatial)
    for _, op, groups, parameter in cases(shape):
        x, w, b, dy = inputs(RNG(9), shape, parameter, dtype=np.float64)
        full = [np.array(np.broadcast_to(channels(shape, parameter, a), shape)) for a in (w, b)]
        exact = reference.normalise(x, dy, *full, 0.1, *groups, np.float64)
        strided = [(a[::-1].copy()[::-1] if way & 1 else a) for a in (x, dy)]
        strided = [np.asfortranarray(a) if way & 2 else a for a in strided]
        got = forward_and_gradients(functools.partial(op, eps=0.1), [strided[0], w, b], strided[1])
        for ours, e in zip(got[:2], exact[:2]):
            np.testing.assert_allclose(ours, e, rtol=1e-9, atol=1e-9)
        for ours, e in zip(got[2:], exact[2:]):
            np.testing.assert_allclose(ours, over_rows(shape, parameter, e), rtol=1e-9, atol=1e-9)


@pytest.mark.quick
def test_layout():
    for shape in ((3, 5, 4, 4), (3, 1, 4, 4), (3, 5, 1, 1), (2, 4, 3, 3, 3)):
        x = RNG(10).standard_normal(shape).astype(np.float32)
        for view in (x, lib.channels_last(x)):
            for op in (batch, group(1)):
                y, dx = forward_and_gradients(lambda x: op(x, None, None), [view])  # noqa: B023
                assert lib.is_channels_last(y) and lib.is_channels_last(dx)


@pytest.mark.quick
def test_errors():
    x = cg.tensor(np.zeros((2, 6, 3), np.float32))
    one = cg.tensor(np.zeros(5, np.float32))
    six = cg.tensor(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=r"\[batch_norm\] weight .* channel, 6. Got shape \(5,\)"):
        F.batch_norm(x, None, None, one, training=True)
    with pytest.raises(ValueError, match=r"running_mean and running_var must both be given"):
        F.batch_norm(x, None, None)
    with pytest.raises(ValueError, match=r"running_mean must have .* 6. Got shape \(5,\)"):
        F.batch_norm(x, one, six)
    with pytest.raises(TypeError, match=r"running_mean .* float32. Got float64"):
        F.batch_norm(x, cg.tensor(np.zeros(6)), six)
    with pytest.raises(ValueError, match=r"more than 1 value per channel .* \(1, 6, 1\)"):
        F.batch_norm(cg.tensor(np.zeros((1, 6, 1), np.float32)), None, None, training=True)
    with pytest.raises(ValueError, match=r"\[instance_norm\].*more than 1 value .* \(2, 6, 1\)"):
        F.instance_norm(cg.tensor(np.zeros((2, 6, 1), np.float32)))
    with pytest.raises(ValueError, match=r"num_groups must divide .* 6. Got 4"):
        F.group_norm(x, 4)
    with pytest.raises(ValueError, match=r"num_groups must be an int >= 1. Got 0"):
        F.group_norm(x, 0)
    with pytest.raises(ValueError, match=r"at least 2 axes, .* \(5,\)"):
        F.batch_norm(one, None, None, training=True)
    with pytest.raises(ValueError, match=r"Got \(4,\) for input \(2, 6, 3\)"):
        F.layer_norm(x, 4)
    with pytest.raises(ValueError, match=r"weight must have normalized_shape. Got shape \(5,\)"):
        F.layer_norm(x, (3,), one)
    with pytest.raises(TypeError, match=r"float32.* float64.*\. Got int64"):
        F.layer_norm(cg.tensor([1, 2]), 2)
