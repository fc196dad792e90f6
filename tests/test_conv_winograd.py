"""Winograd's convolution: csrc/cpu/kernels/conv_winograd*. It is not one of the algorithms with the
error of a plain sum, so it has bounds, and exact inputs, of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.device import lib
from tests.helpers import assert_same_bits_for_any_threads
from tests.reference.conv import conv, conv_gradients

pytestmark = [pytest.mark.kernel, pytest.mark.cpu("of the CPU's Winograd kernels")]

# x (N, C, ...), w (K, C, ...), padding
CASES = {
    "one-pixel": ((1, 1, 3, 3), (1, 1, 3, 3), 0),
    "one-tile": ((1, 16, 4, 4), (16, 16, 3, 3), 1),
    "thin": ((2, 16, 1, 9), (16, 16, 3, 3), 1),
    "thinner-than-the-kernel": ((3, 8, 2, 1), (5, 8, 3, 3), 2),
    "even": ((3, 16, 16, 16), (16, 16, 3, 3), 1),
    "odd": ((2, 16, 9, 11), (32, 16, 3, 3), 1),
    "no-padding": ((2, 8, 10, 15), (16, 8, 3, 3), 0),
    "padding-2": ((1, 32, 7, 6), (16, 32, 3, 3), 2),
    "padding-of-a-tile": ((1, 4, 5, 6), (3, 4, 3, 3), 7),
    "uneven-padding": ((1, 16, 9, 10), (16, 16, 3, 3), ((0, 3), (2, 1))),
    "channel-tails": ((2, 11, 9, 10), (37, 11, 3, 3), 1),
    "few-channels": ((2, 3, 9, 10), (5, 3, 3, 3), 1),
    "blocks-across-images": ((40, 24, 7, 8), (8, 24, 3, 3), 1),
    "many-vectors": ((2, 20, 8, 8), (80, 20, 3, 3), 1),
    "3d": ((2, 16, 6, 8, 9), (16, 16, 3, 3, 3), 1),
    "3d-pairs-of-slices": ((1, 8, 7, 9, 10), (8, 8, 3, 3, 3), 1),
    "3d-few-channels": ((1, 5, 6, 6, 7), (3, 5, 3, 3, 3), 1),
    "3d-no-padding": ((1, 8, 8, 12, 9), (16, 8, 3, 3, 3), 0),
    "3d-padding-2": ((1, 4, 3, 5, 6), (8, 4, 3, 3, 3), 2),
    "3d-one-slice": ((1, 8, 1, 6, 7), (8, 8, 3, 3, 3), 1),
    "3d-padding-of-slices": ((1, 4, 2, 5, 6), (8, 4, 3, 3, 3), (5, 1, 1)),
    "3d-one-deep": ((1, 8, 5, 9, 10), (16, 8, 1, 3, 3), (0, 1, 1)),
    "3d-two-deep": ((1, 8, 5, 6, 7), (8, 8, 2, 3, 3), (1, 1, 1)),
    "3d-many-ranges": ((1, 8, 33, 6, 5), (8, 8, 3, 3, 3), 1),
}
# Every interpolation point is used, and the sums, transformed, are whole numbers below 2^24.
SCALE = 576


@pytest.fixture(autouse=True)
def winograd():
    lib.force_conv_algorithm("winograd")
    yield
    lib.force_conv_algorithm("auto")
    lib.set_exact_algorithms(False)


PASSES = ("forward", "backward_input")


def assert_within_bound(got, exact, terms):
    """The error that conv_winograd.h states."""
    bound = (32 + 6 * np.sqrt(terms)) * np.finfo(np.float32).eps
    assert np.abs(got - exact).max() <= bound * np.abs(exact).max()


def signs(rng, shape, scale=1):
    return (scale * rng.integers(-1, 2, shape)).astype(np.float32)


def algorithms(x_shape, w_shape, padding):
    return [lib.conv_algorithm(x_shape, w_shape, 1, padding, 1, 1, name) for name in PASSES]


def assert_exact(x_shape, w_shape, padding):
    rng = np.random.default_rng(0)
    x, w, b = signs(rng, x_shape), signs(rng, w_shape, SCALE), signs(rng, w_shape[:1], 7)
    y = conv(x, w, b, padding=padding)
    np.testing.assert_array_equal(lib.conv_forward(x, w, b, 1, padding, 1, 1), y)
    dy = signs(rng, y.shape)
    dx, _, _ = conv_gradients(dy, x, w, padding=padding)
    got = lib.conv_backward_input(dy, w, x_shape, 1, padding, 1, 1)
    np.testing.assert_array_equal(got, dx)


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES)
def test_exact_on_integers(case):
    assert algorithms(*CASES[case]) == ["winograd", "winograd"]
    assert_exact(*CASES[case])


@st.composite
def drawn_case(draw):
    spatial = draw(st.integers(2, 3))
    kernel = (draw(st.integers(1, 3)), 3, 3)[3 - spatial :]
    padding = tuple(draw(st.integers(0, 3)) for _ in range(spatial))
    size = tuple(max(1, k - 2 * p) + draw(st.integers(0, 10)) for k, p in zip(kernel, padding))
    n, c, k = draw(st.integers(0, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    return (n, c, *size), (k, c, *kernel), padding


@settings(max_examples=100, deadline=None)
@given(drawn_case())
def test_drawn_shapes_are_exact(case):
    assert_exact(*case)


@pytest.mark.parametrize("case", CASES)
def test_adjoint(case):
    x_shape, w_shape, padding = CASES[case]
    rng = np.random.default_rng(1)
    x, w = signs(rng, x_shape), signs(rng, w_shape, SCALE)
    y = lib.conv_forward(x, w, None, 1, padding, 1, 1).astype(np.float64)
    dy = signs(rng, y.shape)
    dx = lib.conv_backward_input(dy, w, x_shape, 1, padding, 1, 1).astype(np.float64)
    assert (dy * y).sum() == (dx * x).sum()


@pytest.mark.parametrize("x_shape, w_shape", [
    ((2, 16, 32, 32), (16, 16, 3, 3)),
    ((2, 128, 8, 8), (128, 128, 3, 3)),
    ((1, 600, 12, 12), (8, 600, 3, 3)),
    ((1, 8, 16, 16, 16), (8, 8, 3, 3, 3)),
    ((1, 64, 8, 8, 8), (32, 64, 3, 3, 3)),
])  # fmt: skip
def test_error_is_within_its_bound(x_shape, w_shape):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    assert algorithms(x_shape, w_shape, 1) == ["winograd", "winograd"]
    deep = 3 ** (len(x_shape) - 4)
    y = lib.conv_forward(x, w, None, 1, 1, 1, 1)
    assert_within_bound(y, conv(x, w, padding=1), x_shape[1] * deep)
    dx, _, _ = conv_gradients(y, x, w, padding=1)
    got = lib.conv_backward_input(y, w, x_shape, 1, 1, 1, 1)
    assert_within_bound(got, dx, w_shape[0] * deep)


@pytest.mark.parametrize("case", ["odd", "channel-tails", "3d-pairs-of-slices"])
def test_epilogue(case):
    x_shape, w_shape, padding = CASES[case]
    rng = np.random.default_rng(3)
    x, w, b = signs(rng, x_shape), signs(rng, w_shape, SCALE), signs(rng, w_shape[:1], 1000)
    y = conv(x, w, b, padding=padding)
    got = lib.conv_forward(x, w, b, 1, padding, 1, 1, relu=True)
    np.testing.assert_array_equal(got, np.maximum(y, 0))
    dy, mask = signs(rng, y.shape), signs(rng, x_shape)
    dx, _, _ = conv_gradients(dy, x, w, padding=padding)
    got = lib.conv_backward_input(dy, w, x_shape, 1, padding, 1, 1, mask)
    np.testing.assert_array_equal(got, np.where(mask > 0, dx, 0))


@pytest.mark.parametrize("x_shape, w_shape", [
    ((3, 16, 30, 33), (40, 16, 3, 3)),
    ((20, 64, 8, 8), (64, 64, 3, 3)),
    ((1, 8, 12, 13, 14), (8, 8, 3, 3, 3)),
    ((2, 16, 9, 12, 12), (32, 16, 3, 3, 3)),
])  # fmt: skip
def test_same_bits_for_any_threads(x_shape, w_shape):
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    dy = rng.standard_normal((x_shape[0], w_shape[0], *x_shape[2:]), np.float32)
    assert_same_bits_for_any_threads(
        lambda: [
            lib.conv_forward(x, w, None, 1, 1, 1, 1),
            lib.conv_backward_input(dy, w, x_shape, 1, 1, 1, 1),
        ]
    )


def test_nan_stays_within_the_tiles_that_see_it():
    x, w = np.ones((1, 8, 12, 12), np.float32), np.ones((8, 8, 3, 3), np.float32)
    x[0, 2, 5, 6] = np.nan
    y = lib.conv_forward(x, w, None, 1, 1, 1, 1)
    assert np.isnan(y[0, :, 4:7, 5:8]).all()
    assert np.isfinite(y[0, :, 8:]).all() and np.isfinite(y[0, :, :4]).all()


@pytest.mark.parametrize("x_shape, w_shape, arguments", [
    ((1, 16, 9, 9), (16, 16, 3, 3), (2, 1, 1, 1)),
    ((1, 16, 9, 9), (16, 16, 3, 3), (1, 2, 2, 1)),
    ((1, 16, 9, 9), (16, 8, 3, 3), (1, 1, 1, 2)),
    ((1, 16, 9, 9), (16, 16, 5, 3), (1, 1, 1, 1)),
    ((1, 16, 9), (16, 16, 3), (1, 1, 1, 1)),
    ((0, 16, 9, 9), (16, 16, 3, 3), (1, 1, 1, 1)),
    ((1, 0, 9, 9), (16, 0, 3, 3), (1, 1, 1, 1)),
    ((1, 3000, 4, 4), (3000, 3000, 3, 3), (1, 1, 1, 1)),
])  # fmt: skip
def test_other_shapes_take_other_algorithms(x_shape, w_shape, arguments):
    for name in PASSES:
        assert lib.conv_algorithm(x_shape, w_shape, *arguments, name) != "winograd"


def test_exact_algorithms():
    """The switch rules it out, forced or not; without it large shapes get it on their own."""
    large = ((64, 32, 16, 16), (64, 32, 3, 3), 1)
    assert not lib.exact_algorithms()
    lib.force_conv_algorithm("auto")
    assert algorithms(*large) == ["winograd", "winograd"]
    lib.set_exact_algorithms(True)
    assert lib.exact_algorithms()
    assert "winograd" not in algorithms(*large)
    lib.force_conv_algorithm("winograd")
    assert "winograd" not in algorithms(*large)


def test_float64_is_exact_anyway():
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((4, 16, 16, 16)), rng.standard_normal((16, 16, 3, 3))
    y = F.conv2d(cg.tensor(x), cg.tensor(w), padding=1).numpy()
    np.testing.assert_allclose(y, conv(x, w, padding=1), rtol=1e-12, atol=1e-12)


def test_the_public_switch():
    assert not cg.is_exact()
    try:
        cg.set_exact(True)
        assert cg.is_exact() and lib.exact_algorithms()
    finally:
        cg.set_exact(False)
    assert not lib.exact_algorithms()
    with pytest.raises(TypeError, match=r"\[set_exact\] exact must be a bool. Got int"):
        cg.set_exact(1)
