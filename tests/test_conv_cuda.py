"""CUDA's convolutions and matrix products: every kernel of the choice, in several tiles and slices,
with more steps along K than the pipeline has stages."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import backend
from tests.device import ON_CPU, lib
from tests.helpers import assert_near_float64, integers
from tests.reference.conv import conv, conv_gradients, conv_transpose, sequential_conv
from tests.reference.linear import sequential_product

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(ON_CPU, reason="about the GPU's kernels"),
]

# x (N, C, ...), w (K, C / groups, ...), arguments. Tiles are 128 or 64 positions by 128, 64 or 32
# channels, steps of 32 products; shapes with few tiles are cut along K.
CASES = {
    "64x64 tiles": ((2, 36, 9, 11), (68, 36, 3, 3), {"padding": 1}),
    "128x64 tiles": ((2, 36, 11, 12), (64, 36, 3, 3), {"padding": 1}),
    "128x32 tiles": ((3, 40, 9, 10), (24, 40, 3, 3), {"padding": 1}),
    "64x64 tiles by elements": ((1, 35, 11, 12), (70, 35, 3, 3), {"padding": 1}),
    "128x32 tiles by elements": ((3, 21, 9, 10), (19, 21, 3, 3), {"padding": 1}),
    "slices": ((1, 260, 5, 5), (40, 260, 3, 3), {"padding": 1}),
    "first layer": ((2, 3, 20, 21), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "more taps than large tiles take": ((1, 16, 9, 8), (72, 16, 6, 6), {"padding": 2}),
    "four channels": ((2, 4, 12, 13), (16, 4, 3, 3), {"padding": 1}),
    "phases": ((1, 40, 12, 13), (36, 40, 3, 3), {"padding": 1, "stride": 2}),
    "phases 3d": ((1, 16, 5, 6, 7), (20, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
    "phases without taps": ((1, 16, 11, 9), (20, 16, 1, 1), {"stride": 2}),
    "side by side": ((1, 16, 6, 6, 8), (36, 16, 2, 2, 2), {"stride": 2}),
    "dilated": ((1, 32, 30), (40, 32, 5), {"dilation": 3, "padding": 4}),
    "groups": ((1, 40, 9, 10), (72, 20, 3, 3), {"padding": 1, "groups": 2}),
    "thin groups": ((2, 12, 8, 9), (18, 4, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 132, 7, 9), (132, 1, 3, 3), {"groups": 132, "padding": 1}),
    "depthwise, strided": (
        (2, 11, 9, 13),
        (11, 1, 3, 5),
        {"groups": 11, "stride": 2, "dilation": 2},
    ),
    "depthwise 3d": ((1, 8, 5, 6, 7), (8, 1, 3, 3, 3), {"groups": 8, "padding": 1}),
}
# Tiles of 128 x 128 are chosen where they fill half a card: for a large product alone.
LARGE = ((1, 4, 93, 94), (130, 4, 3, 3), {"padding": 1})
LARGE_WEIGHT = ((2, 68, 7, 9), (132, 68, 3, 3), {"padding": 1})
# Algorithm and precision.
COMPUTED = ("generic", "auto", "mma", "fma", "mma in tf32")


@pytest.fixture
def computed(request):
    lib.force_conv_algorithm(request.param.split()[0])
    cg.set_float32_precision("tf32" if "tf32" in request.param else "highest")
    yield request.param
    lib.force_conv_algorithm("auto")
    cg.set_float32_precision("highest")


each_algorithm = pytest.mark.parametrize("computed", COMPUTED, indirect=True)


def positional(arguments):
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return tuple({**defaults, **arguments}.values())


def draw(case, rng, values=integers):
    x_shape, w_shape, arguments = case
    x, w, b = (values(rng, s) for s in (x_shape, w_shape, w_shape[:1]))
    return x, w, b, values(rng, conv(x, w, **arguments).shape), arguments


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_exact(case):
    """Forward, dx and dw of whole numbers, with everything that is fused to them."""
    rng = np.random.default_rng(0)
    x, w, b, dy, arguments = draw(case, rng)
    mask, at = integers(rng, x.shape), positional(arguments)
    y = lib.conv_forward(x, w, b, *at, relu=True)
    np.testing.assert_array_equal(y, np.maximum(conv(x, w, b, **arguments), 0))
    exact_dx, exact_dw, exact_db = conv_gradients(dy, x, w, **arguments)
    dx = lib.conv_backward_input(dy, w, x.shape, *at, mask=mask)
    np.testing.assert_array_equal(dx, np.where(mask > 0, exact_dx, 0))
    dw, db = lib.conv_backward_weight(dy, x, w.shape, *at, True)
    np.testing.assert_array_equal(dw, exact_dw)
    np.testing.assert_array_equal(db, exact_db)


@pytest.mark.parametrize("name", CASES)
@each_algorithm
def test_is_exact_on_integers(name, computed):
    assert_exact(CASES[name])


@pytest.mark.parametrize("computed", ["mma", "fma", "mma in tf32"], indirect=True)
def test_largest_tiles_are_exact_on_integers(computed):
    for x_shape, w_shape, arguments in (LARGE, LARGE_WEIGHT):
        assert_exact((x_shape, w_shape, arguments))


def assert_addresses_change_no_bit(x, w, dy, arguments):
    """Arrays that begin one element beyond a multiple of 16 bytes give the same results."""
    at = positional(arguments)

    def moved(a):
        last = np.moveaxis(a, 1, -1)
        memory = np.empty(a.size + 1, a.dtype)[1:]
        memory[...] = last.ravel()
        return np.moveaxis(memory.reshape(last.shape), -1, 1)

    for call in (
        lambda x, w, dy: lib.conv_forward(x, w, None, *at),
        lambda x, w, dy: lib.conv_backward_input(dy, w, x.shape, *at),
        lambda x, w, dy: lib.conv_backward_weight(dy, x, w.shape, *at, False)[0],
    ):
        np.testing.assert_array_equal(call(x, w, dy), call(moved(x), moved(w), moved(dy)))


@pytest.mark.parametrize("name", ["64x64 tiles", "depthwise", "phases", "slices"])
@pytest.mark.parametrize("computed", ["auto", "mma"], indirect=True)
def test_addresses_change_no_bit(name, computed):
    """Arrays that begin 4 bytes beyond a multiple of 16 are copied element by element."""
    rng = np.random.default_rng(1)
    x, w, _, dy, arguments = draw(CASES[name], rng, normal)
    assert_addresses_change_no_bit(x, w, dy, arguments)


@pytest.mark.parametrize("name, computed, used", [
    ("64x64 tiles", "auto", ["mma"] * 3),
    ("64x64 tiles", "generic", ["generic"] * 3),
    ("64x64 tiles", "fma", ["fma"] * 3),
    ("64x64 tiles", "winograd", ["mma"] * 3),
    ("depthwise", "auto", ["depthwise"] * 3),
    ("depthwise", "mma", ["mma"] * 3),
    ("groups", "auto", ["mma"] * 3),
    ("thin groups", "auto", ["generic"] * 3),
    ("thin groups", "fma", ["fma"] * 3),
], indirect=["computed"])  # fmt: skip
def test_algorithm_is_the_forced_one_where_it_can_be(name, computed, used):
    x_shape, w_shape, arguments = CASES[name]
    passes = ("forward", "backward_input", "backward_weight")
    at = positional(arguments)
    assert [lib.conv_algorithm(x_shape, w_shape, *at, p) for p in passes] == used


@pytest.mark.parametrize("computed", ["mma", "fma"], indirect=True)
@pytest.mark.parametrize("shape", [
    ((2, 16, 9, 9), (16, 16, 3, 3)),
    ((1, 300, 5, 5), (17, 300, 3, 3)),
    ((1, 9000, 2, 2), (9, 9000, 1, 1)),
    ((2, 3, 9, 9), (16, 3, 3, 3)),
])  # fmt: skip
def test_error_is_a_plain_sums(shape, computed):
    rng = np.random.default_rng(2)
    x, w = (normal(rng, s) for s in shape)
    padding = w.shape[2] // 2
    y = lib.conv_forward(x, w, None, 1, padding, 1, 1)
    assert_near_float64(y, conv(x, w, padding=padding), sequential_conv(x, w, padding))


def test_error_of_tf32():
    """Operands keep 11 bits: each product is wrong by at most 2^-10 of it."""
    rng = np.random.default_rng(3)
    x, w = normal(rng, (2, 24, 9, 9)), normal(rng, (20, 24, 3, 3))
    bound = conv(np.abs(x), np.abs(w), padding=1) * 2.0**-10
    cg.set_float32_precision("tf32")
    try:
        y = lib.conv_forward(x, w, None, 1, 1, 1, 1)
        cg.set_exact(True)
        plain = lib.conv_forward(x, w, None, 1, 1, 1, 1)
    finally:
        cg.set_exact(False)
        cg.set_float32_precision("highest")
    exact = conv(x, w, padding=1)
    assert (np.abs(y - exact) <= bound).all()
    assert np.abs(y - exact).max() > 1e-4 > np.abs(plain - exact).max() * 5


@pytest.mark.parametrize("computed", ["mma", "fma"], indirect=True)
def test_infinity_and_nan_are_as_in_a_plain_sum(computed):
    rng = np.random.default_rng(4)
    x, w, _, dy, arguments = draw(CASES["64x64 tiles"], rng, normal)
    x[0, 3, 4, 5], x[1, 7, 2, 2], w[5, 6, 1, 1] = np.inf, np.nan, -np.inf
    x[1, 9, 8, 9] = np.finfo(np.float32).max  # TF32 rounds it to infinity
    w[:, 9] = np.abs(w[:, 9]) * 0.01
    at = positional(arguments)
    lib.force_conv_algorithm("generic")
    plain = lib.conv_forward(x, w, None, *at), lib.conv_backward_weight(dy, x, w.shape, *at, False)
    lib.force_conv_algorithm(computed.split()[0])
    got = lib.conv_forward(x, w, None, *at), lib.conv_backward_weight(dy, x, w.shape, *at, False)
    for g, p in zip((got[0], got[1][0]), (plain[0], plain[1][0])):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(p))
        np.testing.assert_array_equal(np.isinf(g), np.isinf(p))
    assert np.isinf(plain[0]).any() and np.isnan(plain[0]).any()


# (m, n, k): tiles of 64 x 64, whole and cut ones, and one product cut along K.
@pytest.mark.parametrize("m, n, k", [(70, 68, 140), (66, 130, 37), (5, 3, 900), (64, 64, 32)])
@pytest.mark.parametrize("precision", ["highest", "tf32"])
def test_matrix_products_are_exact_on_integers(m, n, k, precision):
    rng = np.random.default_rng(5)
    cg.set_float32_precision(precision)
    try:
        a, b, dy = integers(rng, (2, m, k)), integers(rng, (2, k, n)), integers(rng, (2, m, n))
        y = lib.matmul_forward(a, b)
        da, db = lib.matmul_backward(dy, a, b, True, True)
    finally:
        cg.set_float32_precision("highest")
    np.testing.assert_array_equal(y, a.astype(float) @ b)
    np.testing.assert_array_equal(da, dy.astype(float) @ b.swapaxes(1, 2))
    np.testing.assert_array_equal(db, a.swapaxes(1, 2).astype(float) @ dy)


@pytest.mark.parametrize("k", [8, 40, 1000])
def test_error_of_a_product_is_a_plain_sums(k):
    rng = np.random.default_rng(6)
    a, b = normal(rng, (70, k)), normal(rng, (66, k))
    y = lib.linear_forward(a, b, None)
    assert_near_float64(y, a.astype(float) @ b.T, sequential_product(a, b.T))


def test_many_small_products_in_the_largest_tiles():
    rng = np.random.default_rng(7)
    a, b = integers(rng, (140, 130, 40)), integers(rng, (140, 40, 132))
    np.testing.assert_array_equal(lib.matmul_forward(a, b), a.astype(float) @ b)


def test_transposed_bias_repeats_where_windows_lie_side_by_side():
    rng = np.random.default_rng(8)
    x, w, b = (integers(rng, s) for s in ((1, 20, 5, 6), (20, 36, 2, 2), (36,)))
    y = lib.conv_transpose_forward(x, w, b, 2, 0, 0, 1, 1, relu=True)
    np.testing.assert_array_equal(y, np.maximum(conv_transpose(x, w, b, stride=2), 0))


def test_precision_is_one_of_two_words():
    with pytest.raises(ValueError, match=r"\[set_float32_precision\] .* Got 'high'"):
        cg.set_float32_precision("high")
    assert cg.get_float32_precision() == "highest" == backend.get_float32_precision()
