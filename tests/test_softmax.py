"""Softmax and log_softmax along any axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.device import lib, tensor_on, values
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
)
from tests.reference import softmax as reference

pytestmark = pytest.mark.kernel

OPS = [("softmax", False), ("log_softmax", True)]
SHAPES = [
    ((4, 10), 1),
    ((3, 1), 1),
    ((2, 3, 4, 5), 1),
    ((2, 20, 5), 1),
    ((3, 7, 6), 0),
    ((3, 7, 33), 2),
    ((9,), 0),
    ((2, 3, 4, 5), -1),
    ((2, 9000), 1),
    ((2, 2, 9000), 2),
    # On CUDA each power of two is a kernel of its own, up to rows of 1,024.
    *(((3, n), 1) for n in (2, 4, 7, 33, 64, 100, 130, 300, 513, 1024, 1025)),
]


@pytest.mark.quick
@pytest.mark.parametrize(("op", "log"), OPS)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_near_float64(op, log, shape, dim):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    y, dx = forward_and_gradients(lambda t: getattr(F, op)(t, dim), [x], dy)
    exact = getattr(reference, op)(x.astype(np.float64), dim)
    plain = reference.sequential(x, dim, log)
    assert_near_float64(y, exact, plain)
    exact_dx = reference.gradient(exact, dy.astype(np.float64), dim, log)
    assert_near_float64(dx, exact_dx, reference.gradient(plain, dy, dim, log), factor=3)
    y, dx = forward_and_gradients(
        lambda t: getattr(F, op)(t, dim), [x.astype(np.float64)], dy.astype(np.float64)
    )
    np.testing.assert_allclose(y, exact, rtol=1e-13)
    np.testing.assert_allclose(dx, exact_dx, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("op", "log"), OPS)
def test_equal_inputs_exactly(op, log):
    """Equal inputs, whatever they are: 1 / n, a power of two."""
    for value in (0.0, 3e38, -3e38, 1e-45):
        y = values(getattr(F, op)(cg.tensor(np.full((3, 64, 5), value, np.float32)), 1))
        assert (y == (np.float32(np.log(1 / 64)) if log else np.float32(1 / 64))).all()


@pytest.mark.parametrize(("op", "log"), OPS)
@pytest.mark.parametrize(("shape", "dim"), SHAPES[:8])
def test_gradients_and_parity(torch, op, log, shape, dim):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape) * 3
    assert_gradients(lambda t: getattr(F, op)(t, dim), [x], rng)
    theirs = getattr(torch.nn.functional, op)
    assert_parity(
        torch, lambda t: getattr(F, op)(t, dim), lambda t: theirs(t, dim), [x.astype(np.float32)]
    )


@pytest.mark.parametrize(("op", "log"), OPS)
@pytest.mark.parametrize("dim", [0, 1])
def test_infinities_and_nan_as_in_torch(torch, op, log, dim):
    x = np.zeros((6, 6), np.float32)
    x[0] = -np.inf
    x[1, 2], x[2, 3], x[3, 4], x[4, 5] = np.inf, -np.inf, np.nan, 1e38
    for a in (x, x.astype(np.float64), x[1:, 1:3], x[2:3], x[3:, :2]):
        theirs = getattr(torch.nn.functional, op)(torch.tensor(a), dim).numpy()
        ours = values(getattr(F, op)(cg.tensor(a), dim))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(("op", "log"), OPS)
@pytest.mark.parametrize(("shape", "dim"), [((301, 257), 1), ((2, 30, 60, 40), 2)])
def test_same_bits_for_any_threads(op, log, shape, dim):
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    assert_same_bits_for_any_threads(
        lambda: forward_and_gradients(lambda t: getattr(F, op)(t, dim), [x], dy)
    )


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    steps=st.lists(st.sampled_from([1, 2, -1, -2]), min_size=5, max_size=5),
    data=st.data(),
)
def test_any_shape_and_strides(shape, steps, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(3)
    whole = rng.standard_normal([abs(s) * n for s, n in zip(steps, shape)])
    x = whole[tuple(slice(None, None, s) for s in steps[: len(shape)])]
    t = tensor_on(x, requires_grad=True)
    y = F.softmax(t, dim)
    y.backward(cg.tensor(np.ones(shape)))
    assert y.shape == tuple(shape) == t.grad.shape
    if x.size:
        np.testing.assert_allclose(values(y), reference.softmax(x, dim), rtol=1e-13)
        np.testing.assert_allclose(values(t.grad), 0, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4), (2, 3, 1, 1)])
def test_channels_last_stays(shape):
    x = np.moveaxis(np.ones((shape[0], *shape[2:], shape[1]), np.float32), -1, 1)
    for dim in range(len(shape)):
        t = tensor_on(x, requires_grad=True)
        y = F.log_softmax(t, dim)
        y.backward(cg.tensor(np.ones(shape, np.float32)))  # C order: mixed with channels-last
        assert lib.is_channels_last(y.array) and lib.is_channels_last(t.grad.array)


def test_dtype_converts_before():
    x = cg.tensor(np.array([[1, 2, 3]], np.int64))
    y = F.softmax(x, 1, dtype=np.float64)
    np.testing.assert_allclose(
        values(y), reference.softmax(values(x).astype(np.float64), 1), rtol=1e-14
    )
    half = cg.tensor(np.ones((1, 4), np.float32), requires_grad=True)
    F.log_softmax(half, 1, dtype=np.float64).sum().backward()
    assert half.grad.array.dtype == np.float32


@pytest.mark.quick
def test_errors_name_the_values():
    x = cg.tensor(np.ones((2, 6), np.float32))
    with pytest.raises(
        ValueError, match=r"\[softmax\] dim must name .* Got None for shape \(2, 6\)"
    ):
        F.softmax(x)
    with pytest.raises(ValueError, match=r"\[log_softmax\] dim .* Got 2 for shape \(2, 6\)"):
        F.log_softmax(x, 2)
    with pytest.raises(TypeError, match=r"\[softmax\] input .* Got int64"):
        F.softmax(cg.tensor(np.ones((2, 2), np.int64)), 1)
    with pytest.raises(ValueError, match=r"\[softmax\] The gradient .*\(2, 6\)\. Got \(2, 5\)"):
        lib.softmax_backward(x.array, np.ones((2, 5), np.float32), 1, False)
