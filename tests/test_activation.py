"""Elementwise functions, prelu and maxout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from convgrad.functional.activation import Unary
from tests.device import lib, tensor_on, values
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
    integers,
)
from tests.reference import activation as reference

pytestmark = pytest.mark.kernel

# Public function, keyword arguments, the oracle's name and arguments.
ACTIVATIONS = [
    ("relu", {}, "relu", ()),
    ("leaky_relu", {}, "leaky_relu", ()),
    ("leaky_relu", {"negative_slope": -0.5}, "leaky_relu", (-0.5,)),
    ("elu", {}, "elu", ()),
    ("elu", {"alpha": 2.0}, "elu", (2.0,)),
    ("elu", {"alpha": -2.0}, "elu", (-2.0,)),
    ("selu", {}, "selu", ()),
    ("silu", {}, "silu", ()),
    ("gelu", {}, "gelu", ()),
    ("gelu", {"approximate": "tanh"}, "gelu_tanh", ()),
    ("mish", {}, "mish", ()),
    ("softplus", {}, "softplus", ()),
    ("softplus", {"beta": 2.0, "threshold": 3.0}, "softplus", (2.0, 3.0)),
    ("softsign", {}, "softsign", ()),
    ("hardtanh", {}, "hardtanh", ()),
    ("hardtanh", {"min_val": -0.5, "max_val": 2.0}, "hardtanh", (-0.5, 2.0)),
    ("relu6", {}, "relu6", ()),
    ("hardsigmoid", {}, "hardsigmoid", ()),
    ("hardswish", {}, "hardswish", ()),
    ("sigmoid", {}, "sigmoid", ()),
    ("logsigmoid", {}, "logsigmoid", ()),
    ("tanh", {}, "tanh", ()),
]
IDS = [
    f"{name}{'-' if kw else ''}{'-'.join(map(str, kw.values()))}" for name, kw, _, _ in ACTIVATIONS
]
# Elementwise functions that the bindings alone offer, with parameters and a range to draw x from.
ARITHMETIC = [
    ("exp", 0, 0, -3, 3),
    ("expm1", 0, 0, -3, 3),
    ("log", 0, 0, 0.1, 5),
    ("log1p", 0, 0, -0.9, 5),
    ("erf", 0, 0, -3, 3),
    ("sqrt", 0, 0, 0.1, 5),
    ("rsqrt", 0, 0, 0.1, 5),
    ("reciprocal", 0, 0, 0.2, 5),
    ("square", 0, 0, -3, 3),
    ("abs", 0, 0, -3, 3),
    ("neg", 0, 0, -3, 3),
    ("clamp", -1, 2, -3, 3),
]


def every_exponent(step: int = 50021) -> np.ndarray:
    """Floats evenly over all bit patterns: every exponent, both signs, subnormals, NaNs; edges."""
    bits = np.arange(0, 2**32, step, dtype=np.uint32)
    ordinary = np.random.default_rng(0).uniform(-20, 20, 30_000).astype(np.float32)
    edges = np.array(
        [
            0,
            -0.0,
            np.inf,
            -np.inf,
            np.nan,
            1e-45,
            -1e-45,
            1.2e-38,
            88.722,
            88.7229,
            88.723,
            89.5,
            -87.5,
            -103.9,
            -103.98,
            -105,
            1,
            -1,
            0.5,
            3.4e38,
            -3.4e38,
            0.625,
            0.9,
        ],
        np.float32,
    )
    return np.concatenate([bits.view(np.float32), ordinary, edges])


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in units of the float32 spacing at exact; equal infinities and NaNs are 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(rounded), np.float32(3e38)))
        error = np.abs(got.astype(np.float64) - exact) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(exact))
    # Next to overflow: the largest float and infinity are one unit apart.
    top = np.isinf(got) & np.isinf(rounded * np.float32(1.0000002)) & (got * rounded > 0)
    return np.where(same, 0, np.where(top, 1, error))


# The bound, and what x f(x) may lose beside it: f is a subnormal where x f(x) may be none.
@pytest.mark.parametrize(
    ("name", "per_x"),
    [
        ("exp", 0),
        ("expm1", 0),
        ("log", 0),
        ("log1p", 0),
        ("sigmoid", 0),
        ("tanh", 0),
        ("erf", 0),
        ("sqrt", 0),
        ("rsqrt", 0),
        ("reciprocal", 0),
        ("logsigmoid", 0),
        ("selu", 0),
        ("softsign", 0),
        ("silu", 1),
        ("mish", 1),
        ("gelu", 1),
        ("gelu_tanh", 1),
    ],
)
def test_at_most_4_ulp_everywhere(name, per_x):
    x = every_exponent()
    if per_x:  # where most roundings add up
        x = np.concatenate([x, np.linspace(-14, 14, 400_000, dtype=np.float32)])
    with np.errstate(all="ignore"):
        exact = reference.FUNCTIONS[name](x.astype(np.float64))
        error = ulps(lib.unary_forward(name, x), exact)
        if per_x:
            slack = np.where(np.abs(exact) < 1.2e-36, np.abs(x), 0)
            error = np.where(np.isfinite(slack), error - slack, error)
    worst = np.nanargmax(error)
    assert not np.isnan(error).any(), x[np.isnan(error)]
    assert error[worst] <= 4, (name, x[worst], error[worst])


@pytest.mark.parametrize("name", ["softplus", "elu"])
def test_at_most_4_ulp_with_parameters(name):
    x = every_exponent()
    a, b = (1.0, 20.0) if name == "softplus" else (1.0, 0.0)
    with np.errstate(all="ignore"):
        exact = reference.FUNCTIONS[name](x.astype(np.float64))
        error = ulps(lib.unary_forward(name, x, a, b), exact)
    assert error.max() <= 4, (x[error.argmax()], error.max())


def test_signed_zeros_survive():
    zeros = np.array([0.0, -0.0] * 9, np.float32)
    for name in ("tanh", "erf", "expm1", "log1p", "sqrt", "softsign", "elu", "neg"):
        y = lib.unary_forward(name, zeros, 1.0)
        assert (np.signbit(y) == (np.signbit(zeros) ^ (name == "neg"))).all(), name


@pytest.mark.quick
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh", "relu6"])
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4, 5), (1, 70_001)])
def test_whole_numbers_exactly(name, shape):
    rng = np.random.default_rng(0)
    x, dy = integers(rng, shape), integers(rng, shape)
    kw = {"leaky_relu": {"negative_slope": 0.25}, "hardtanh": {"min_val": -2, "max_val": 3}}
    y, dx = forward_and_gradients(lambda t: getattr(F, name)(t, **kw.get(name, {})), [x], dy)
    exact = reference.FUNCTIONS[name](x.astype(np.float64), *kw.get(name, {}).values())
    low, high = {"relu": (0, 99), "leaky_relu": (0, 99), "hardtanh": (-2, 3), "relu6": (0, 6)}[name]
    below = 0.25 if name == "leaky_relu" else 0.0
    assert y.shape == shape and (y == exact).all()
    assert (dx == np.where((x > low) & (x < high), 1.0, below) * dy).all()


@pytest.mark.parametrize(("name", "kw", "oracle", "args"), ACTIVATIONS, ids=IDS)
def test_near_float64(name, kw, oracle, args):
    x = (np.random.default_rng(1).standard_normal((3, 17, 5)) * 3).astype(np.float32)
    exact = reference.FUNCTIONS[oracle](x.astype(np.float64), *args)
    plain = reference.FUNCTIONS[oracle](x, *args).astype(np.float32)
    assert_near_float64(values(getattr(F, name)(cg.tensor(x), **kw)), exact, plain)
    double = values(getattr(F, name)(cg.tensor(x.astype(np.float64)), **kw))
    np.testing.assert_allclose(double, exact, rtol=1e-13, atol=1e-15)


@pytest.mark.quick
@pytest.mark.parametrize(("name", "kw", "oracle", "args"), ACTIVATIONS, ids=IDS)
def test_gradients(name, kw, oracle, args):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 9)) * 3
    for kink in (-3, -2, -1, -0.5, 0, 1, 1.5, 2, 3, 6):
        x[np.abs(x - kink) < 0.01] += 0.05
    assert_gradients(lambda t: getattr(F, name)(t, **kw), [x], rng)


@pytest.mark.parametrize(("name", "a", "b", "low", "high"), ARITHMETIC)
def test_arithmetic(name, a, b, low, high):
    rng = np.random.default_rng(3)
    x = rng.uniform(low, high, (4, 9))
    x[np.abs(x) < 0.05] += 0.1
    exact = reference.FUNCTIONS[name](x, a, b) if name == "clamp" else reference.FUNCTIONS[name](x)
    np.testing.assert_allclose(lib.unary_forward(name, x, a, b), exact, rtol=1e-14)
    np.testing.assert_allclose(
        lib.unary_forward(name, x.astype(np.float32), a, b), exact, rtol=2e-6, atol=2e-6
    )
    assert_gradients(lambda t: Unary.apply((t,), name, a, b), [x], rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "kw", "oracle", "args"), ACTIVATIONS, ids=IDS)
def test_parity_at_kinks_and_beyond(torch, dtype, name, kw, oracle, args):
    x = (np.random.default_rng(4).standard_normal((2, 5, 7)) * 3).astype(dtype)
    x.flat[:12] = [0, -0.0, 3, -3, 1, -1, 6, 100, -100, 2, -0.5, np.nan]
    # PyTorch's infinities: only values, its gradients there are 0 times infinity in places.
    theirs = getattr(torch.nn.functional, name)
    assert_parity(
        torch, lambda t: getattr(F, name)(t, **kw), lambda t: theirs(t, **kw), [x], 2e-5, 2e-6
    )
    # In float64: with AVX-512 PyTorch's float32 gelu is NaN at the infinities.
    edges = np.array([np.inf, -np.inf, np.nan] * 6)
    np.testing.assert_array_equal(
        values(getattr(F, name)(cg.tensor(edges.astype(dtype)), **kw)),
        theirs(torch.tensor(edges), **kw).numpy().astype(dtype),
    )


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "softplus"])
def test_same_bits_for_any_threads(name):
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, 3, 201, 101), np.float32), rng.standard_normal((2, 3, 201, 101))
    dy = dy.astype(np.float32)
    assert_same_bits_for_any_threads(lambda: forward_and_gradients(getattr(F, name), [x], dy))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=5),
    steps=st.lists(st.sampled_from([1, 2, -1, -2]), min_size=5, max_size=5),
    name=st.sampled_from(["relu", "sigmoid", "silu"]),
)
def test_any_shape_and_strides(shape, steps, name):
    rng = np.random.default_rng(6)
    whole = rng.standard_normal([abs(s) * n for s, n in zip(steps, shape)], np.float64)
    x = whole[tuple(slice(None, None, s) for s in steps[: len(shape)])]
    dy = np.asarray(
        np.swapaxes(rng.standard_normal(shape[::-1]), 0, -1)
        if len(shape) == 2
        else rng.standard_normal(shape)
    )
    t = tensor_on(np.asarray(x), requires_grad=True)
    y = getattr(F, name)(t)
    y.backward(cg.tensor(dy))
    np.testing.assert_allclose(values(y), reference.FUNCTIONS[name](x), rtol=1e-14, atol=1e-300)
    assert y.shape == tuple(shape) == t.grad.shape


def test_backward_into_the_gradients_own_memory():
    rng = np.random.default_rng(11)
    y, dy = (lib.channels_last(integers(rng, (3, 5, 7))) for _ in range(2))
    expected = lib.unary_backward("relu", y, dy)
    assert lib.unary_backward("relu", y, dy, out=dy) is dy
    np.testing.assert_array_equal(dy, expected)
    with pytest.raises(ValueError, match="out must have shape"):
        lib.unary_backward("relu", y, dy, out=np.empty((3, 5, 7), np.float32))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4), (2, 3, 1, 1), (2, 6, 2, 3, 2)])
def test_channels_last_stays(shape):
    x = np.moveaxis(np.ones((shape[0], *shape[2:], shape[1]), np.float32), -1, 1)
    a = np.ones(shape[1], np.float32)
    for fn in (F.relu, F.gelu, lambda t: F.prelu(t, cg.tensor(a)), lambda t: F.maxout(t, 1)):
        t = tensor_on(x, requires_grad=True)
        y = fn(t)
        y.backward(cg.tensor(np.ones(shape, np.float32)))  # C order: mixed with channels-last
        assert lib.is_channels_last(y.array) and lib.is_channels_last(t.grad.array)


def test_derivatives_from_the_output_keep_only_it():
    x = cg.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    for fn in (F.relu, F.sigmoid, F.tanh, F.elu, F.leaky_relu, F.hardtanh):
        y = fn(x)
        assert len(y.node.saved) == 1 and y.node.saved[0] is y.array


# ---- prelu ----


@pytest.mark.quick
@pytest.mark.parametrize("slopes", [1, "c"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (2, 16, 5, 6), (0, 4, 3), (2, 17, 70, 70)])
def test_prelu_exactly(shape, slopes):
    rng = np.random.default_rng(7)
    x, dy = integers(rng, shape, -2, 2), integers(rng, shape, -2, 2)
    a = integers(rng, (1 if slopes == 1 else shape[1],))
    y, dx, da = forward_and_gradients(F.prelu, [x, a], dy)
    exact_dx, exact_da = reference.prelu_gradients(x, a, dy.astype(np.float64))
    assert (y == reference.prelu(x, a)).all()
    assert (dx == exact_dx).all() and (da == exact_da).all() and da.shape == a.shape


@pytest.mark.parametrize("slopes", [1, 6])
def test_prelu_gradients_parity_and_threads(torch, slopes):
    rng = np.random.default_rng(8)
    x, a = rng.standard_normal((3, 6, 4, 5)), rng.standard_normal(slopes) + 1  # a > 1 too
    assert_gradients(F.prelu, [x, a], rng)
    pair = [x.astype(np.float32), a.astype(np.float32)]
    assert_parity(torch, F.prelu, torch.nn.functional.prelu, pair)
    large = rng.standard_normal((2, 6, 150, 99), np.float32)
    dy = rng.standard_normal(large.shape).astype(np.float32)
    assert_same_bits_for_any_threads(lambda: forward_and_gradients(F.prelu, [large, pair[1]], dy))
    _, _, da = forward_and_gradients(F.prelu, [large, pair[1]], dy)
    _, exact = reference.prelu_gradients(large.astype(np.float64), a, dy.astype(np.float64))
    terms = np.where(large > 0, np.float32(0), large * dy)
    lines = np.moveaxis(terms, 1, 0).reshape(6, -1) if slopes > 1 else terms.reshape(1, -1)
    assert_near_float64(da, exact, np.add.accumulate(lines, axis=1)[:, -1])


def test_prelu_of_nan_and_of_one_axis(torch):
    x = np.array([np.nan, -1, 2, -np.inf], np.float32)
    a = np.array([0.5], np.float32)
    assert_parity(torch, F.prelu, torch.nn.functional.prelu, [x[1:3], a])
    np.testing.assert_array_equal(
        values(F.prelu(cg.tensor(x), cg.tensor(a))),
        np.array([np.nan, -0.5, 2, -np.inf], np.float32),
    )


# ---- maxout ----


@pytest.mark.quick
@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(3, 6), (2, 12, 5), (1, 6, 3, 4), (0, 6, 2), (2, 18, 61, 67)])
def test_maxout_exactly(shape, k):
    rng = np.random.default_rng(9)
    x = integers(rng, shape, -2, 2)  # many equals: the first wins
    dy = integers(rng, (shape[0], shape[1] // k, *shape[2:]))
    y, dx = forward_and_gradients(lambda t: F.maxout(t, k), [x], dy)
    assert (y == reference.maxout(x, k)).all() and (dx == reference.maxout_gradient(x, k, dy)).all()


def test_maxout_gradients_threads_dims_and_nan():
    rng = np.random.default_rng(10)
    assert_gradients(lambda t: F.maxout(t, 3), [rng.standard_normal((2, 6, 5))], rng)
    x = rng.standard_normal((2, 4, 6))
    for dim in (0, 2, -1, -3):
        swapped = reference.maxout(x.swapaxes(1, dim), 2).swapaxes(1, dim)
        assert (values(F.maxout(cg.tensor(x), 2, dim=dim)) == swapped).all()
        assert_gradients(lambda t, dim=dim: F.maxout(t, 2, dim=dim), [x], rng)
    large = rng.standard_normal((2, 8, 91, 97), np.float32)
    dy = rng.standard_normal((2, 4, 91, 97), np.float32)
    assert_same_bits_for_any_threads(
        lambda: forward_and_gradients(lambda t: F.maxout(t, 2), [large], dy)
    )
    y, dx = forward_and_gradients(
        lambda t: F.maxout(t, 3), [np.array([[1, np.nan, np.nan]])], np.array([[5.0]])
    )
    assert np.isnan(y).all() and (dx == [[0, 5, 0]]).all()


# ---- errors ----


@pytest.mark.quick
def test_errors_name_the_values():
    x = cg.tensor(np.ones((2, 6, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[gelu\] approximate .* Got 'erf'"):
        F.gelu(x, approximate="erf")
    with pytest.raises(ValueError, match=r"\[hardtanh\] min_val .* Got 2 and 1"):
        F.hardtanh(x, 2, 1)
    with pytest.raises(ValueError, match=r"\[softplus\] beta .* Got 0"):
        F.softplus(x, beta=0)
    with pytest.raises(ValueError, match=r"\[maxout\] k .* Got k 4 and input \(2, 6, 3\)"):
        F.maxout(x, 4)
    with pytest.raises(ValueError, match=r"\[maxout\] k .* Got k 0"):
        F.maxout(x, 0)
    with pytest.raises(ValueError, match=r"\[maxout\] input .* Got shape \(2, 6, 3\) and dim 3"):
        F.maxout(x, 2, dim=3)
    with pytest.raises(ValueError, match=r"\[prelu\] weight .* 6\. Got weight \(5,\) for .*\(2, 6"):
        F.prelu(x, cg.tensor(np.ones(5, np.float32)))
    with pytest.raises(TypeError, match=r"\[prelu\] weight .* float32\. Got float64"):
        F.prelu(x, cg.tensor(np.ones(6)))
    with pytest.raises(TypeError, match=r"\[relu\] input must be float.* Got int64"):
        F.relu(cg.tensor(np.ones(3, np.int64)))
    with pytest.raises(ValueError, match=r"\[unary\] .* Got 'cosh'"):
        lib.unary_forward("cosh", x.array)
    with pytest.raises(ValueError, match=r"\[relu\] The gradient .*\(2, 6, 3\)\. Got \(2, 6, 4\)"):
        lib.unary_backward("relu", x.array, np.ones((2, 6, 4), np.float32))
