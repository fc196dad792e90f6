"""Convolutions and products of bfloat16 and float16: the tiles of mma_tile.cuh, in every size
and with more steps along K than the pipeline has stages, and the plain kernels beside them."""

import ml_dtypes
import numpy as np
import pytest

import convgrad as cg
from tests.device import ON_CPU, lib
from tests.reference.conv import conv, conv_gradients, conv_transpose
from tests.test_conv_cuda import (
    CASES,
    LARGE_WEIGHT,
    assert_addresses_change_no_bit,
    positional,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(ON_CPU, reason="16-bit types are the GPU's"),
]

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
# Significant bits: whole numbers up to 2^bits are exact.
BITS = {"bfloat16": 8, "float16": 11}
each_dtype = pytest.mark.parametrize("name", DTYPES)

# Chosen where it fills half a card: 133 tiles of 128 x 128, in four steps of 64 products.
LARGEST = ((1, 8, 130, 130), (72, 8, 5, 5), {"padding": 2})
# The rest of the tiles is the same for both types.
FLOAT16_CASES = ("64x64 tiles", "128x32 tiles by elements", "slices", "first layer", "phases 3d")


@pytest.fixture
def computed(request):
    lib.force_conv_algorithm(request.param)
    yield request.param
    lib.force_conv_algorithm("auto")


def sparse(rng, shape, share=0.3):
    """-1, 0 or 1, mostly 0: so that sums of thousands stay small."""
    return rng.integers(-1, 2, shape) * (rng.random(shape) < share).astype(float)


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def assert_exact(case, name):
    """Forward, dx and dw of whole numbers, with what is fused to them; and so
    <dy, conv(x, w)> = <dx, x> = <dw, w>."""
    rng = np.random.default_rng(0)
    dtype, limit = DTYPES[name], 2 ** BITS[name]
    x_shape, w_shape, arguments = case
    x, w = sparse(rng, x_shape), sparse(rng, w_shape, 1.0)
    b, mask = rng.integers(-3, 4, w_shape[0]).astype(float), sparse(rng, x_shape, 1.0)
    y = conv(x, w, **arguments)
    dy, at = sparse(rng, y.shape), positional(arguments)
    dx, dw, db = conv_gradients(dy, x, w, **arguments)
    assert max(np.abs(a).max() for a in (y + 3, dx, dw, db)) <= limit  # else nothing is exact
    x16, w16, b16, dy16, mask16 = (a.astype(dtype) for a in (x, w, b, dy, mask))

    def check(got, expected):  # what is fetched of 16 bits is float32
        np.testing.assert_array_equal(got.astype(float), expected)

    with_bias = conv(x, w, b, **arguments)
    check(lib.conv_forward(x16, w16, b16, *at, relu=True), np.maximum(with_bias, 0))
    masked = np.where(mask > 0, dx, 0)
    check(lib.conv_backward_input(dy16, w16, x.shape, *at, mask=mask16), masked)
    got_dw, got_db = lib.conv_backward_weight(dy16, x16, w.shape, *at, True)
    check(got_dw, dw)
    check(got_db, db)
    assert (dy * y).sum() == (dx * x).sum() == (got_dw.astype(float) * w).sum()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("computed", ["mma"], indirect=True)
def test_bfloat16_is_exact_on_integers(case, computed):
    assert_exact(CASES[case], "bfloat16")


@pytest.mark.parametrize("case", FLOAT16_CASES)
@pytest.mark.parametrize("computed", ["mma"], indirect=True)
def test_float16_is_exact_on_integers(case, computed):
    assert_exact(CASES[case], "float16")


@each_dtype
@pytest.mark.parametrize("case", ["groups", "thin groups", "depthwise, strided", "slices"])
@pytest.mark.parametrize("computed", ["auto", "generic"], indirect=True)
def test_other_choices_are_exact_on_integers(case, computed, name):
    assert_exact(CASES[case], name)


def test_largest_tiles_are_exact_on_integers():
    rng = np.random.default_rng(6)
    x_shape, w_shape, arguments = LARGEST
    x, w = sparse(rng, x_shape), sparse(rng, w_shape, 1.0)
    x16, w16 = (a.astype(DTYPES["bfloat16"]) for a in (x, w))
    y = lib.conv_forward(x16, w16, None, *positional(arguments))
    np.testing.assert_array_equal(y.astype(float), conv(x, w, **arguments))
    assert_exact(LARGE_WEIGHT, "float16")


@each_dtype
@pytest.mark.parametrize("case", ["64x64 tiles", "slices", "dilated"])
def test_error_is_one_rounding(case, name):
    """Products are exact and sums float32's, cut off by the tensor cores (2^-23 of all terms'
    sizes for each of 16): what counts is that the result is rounded to 16 bits."""
    rng = np.random.default_rng(1)
    x_shape, w_shape, arguments = CASES[case]
    x, w = (normal(rng, s, DTYPES[name]) for s in (x_shape, w_shape))
    wide = x.astype(float), w.astype(float)
    y = conv(*wide, **arguments)
    dy, at = normal(rng, y.shape, DTYPES[name]), positional(arguments)

    def check(got, exact, sizes, terms):
        bound = np.abs(exact) * 2.0 ** -BITS[name] + sizes * (terms / 16 + 1) * 2.0**-23
        assert (np.abs(got.astype(float) - exact) <= bound).all()

    sizes, terms = conv(*map(np.abs, wide), **arguments), w[0].size
    check(lib.conv_forward(x, w, None, *at), y, sizes, terms)
    wide_dy = dy.astype(float)
    dx, dw, _ = conv_gradients(wide_dy, *wide, **arguments)
    dx_sizes, dw_sizes, _ = conv_gradients(*map(np.abs, (wide_dy, *wide)), **arguments)
    check(lib.conv_backward_input(dy, w, x.shape, *at), dx, dx_sizes, w[:, 0].size)
    got_dw, _ = lib.conv_backward_weight(dy, x, w.shape, *at, False)
    check(got_dw, dw, dw_sizes, dy[:, 0].size)


@pytest.mark.parametrize("channels", [257, 1040])  # one slice of K, and several
def test_sums_are_rounded_once_behind_bias_and_relu(channels):
    """257, the sum and the partial sum, is no bfloat16; with the bias, 256 is one."""
    bfloat16 = DTYPES["bfloat16"]
    x = np.ones((1, channels, 2, 2), bfloat16)
    w = np.zeros((3, channels, 1, 1), bfloat16)
    w[:, :257] = 1
    b = np.full(3, -1, bfloat16)
    y = lib.conv_forward(x, w, b, 1, 0, 1, 1, relu=True)
    np.testing.assert_array_equal(y.astype(float), 256)


def test_infinity_and_nan_come_through():
    x = np.ones((1, 16, 5, 5), np.float16)
    x[0, 3, 0, 0], x[0, 4, 4, 4] = np.inf, np.nan
    w = np.full((4, 16, 1, 1), 60000, np.float16)
    w[0] = -1
    y = lib.conv_forward(x, w, None, 1, 0, 1, 1).astype(float)
    assert (y[0, 0, 0, 0], y[0, 1, 1, 1]) == (-np.inf, np.inf)  # beyond 65504
    assert np.isnan(y[0, :, 4, 4]).all() and (y[0, 0, 1:4] == -16).all()


@each_dtype
@pytest.mark.parametrize("case", ["64x64 tiles", "phases", "first layer"])
def test_addresses_change_no_bit(case, name):
    """Arrays that begin 2 bytes beyond a multiple of 16, which no asynchronous copy can."""
    rng = np.random.default_rng(2)
    x_shape, w_shape, arguments = CASES[case]
    x, w = (normal(rng, s, DTYPES[name]) for s in (x_shape, w_shape))
    dy = normal(rng, conv(x.astype(float), w.astype(float), **arguments).shape, DTYPES[name])
    assert_addresses_change_no_bit(x, w, dy, arguments)


@each_dtype
def test_transposed_convolution_is_exact_on_integers(name):
    rng = np.random.default_rng(3)
    x, w = sparse(rng, (1, 20, 5, 6)), sparse(rng, (20, 36, 2, 2), 1.0)
    b = rng.integers(-3, 4, 36).astype(float)
    x16, w16, b16 = (a.astype(DTYPES[name]) for a in (x, w, b))
    y = lib.conv_transpose_forward(x16, w16, b16, 2, 0, 0, 1, 1, relu=True)
    np.testing.assert_array_equal(y.astype(float), np.maximum(conv_transpose(x, w, b, stride=2), 0))


# Tiles of 64 x 64: whole ones, cut ones, lines of no whole chunk, and one product cut along K.
@pytest.mark.parametrize("m, n, k", [(70, 68, 140), (66, 130, 37), (5, 3, 1100), (64, 64, 64)])
@each_dtype
def test_matrix_products_are_exact_on_integers(m, n, k, name):
    rng = np.random.default_rng(5)
    a, b = sparse(rng, (2, m, k)), sparse(rng, (2, k, n), 1.0)
    dy = sparse(rng, (2, m, n))
    a16, b16, dy16 = (v.astype(DTYPES[name]) for v in (a, b, dy))
    y = lib.matmul_forward(a16, b16)
    da, db = lib.matmul_backward(dy16, a16, b16, True, True)
    for got, expected in ((y, a @ b), (da, dy @ b.swapaxes(1, 2)), (db, a.swapaxes(1, 2) @ dy)):
        assert np.abs(expected).max() <= 2 ** BITS[name]
        np.testing.assert_array_equal(got.astype(float), expected)
    shared = b16[0]  # one right operand for all: one tall product
    np.testing.assert_array_equal(lib.matmul_forward(a16, shared).astype(float), a @ b[0])


def test_largest_tiles_of_products_are_exact_on_integers():
    """33 times 2 x 2 tiles of 128 x 128, in four steps."""
    rng = np.random.default_rng(7)
    a, b = sparse(rng, (33, 130, 200)), sparse(rng, (33, 200, 132), 1.0)
    a16, b16 = a.astype(DTYPES["bfloat16"]), b.astype(DTYPES["bfloat16"])
    np.testing.assert_array_equal(lib.matmul_forward(a16, b16).astype(float), a @ b)


@each_dtype
def test_linear_adds_its_bias_before_it_rounds(name):
    rng = np.random.default_rng(8)
    x, w, b = sparse(rng, (9, 50)), sparse(rng, (11, 50), 1.0), np.arange(11) - 5.0
    x16, w16, b16 = (a.astype(DTYPES[name]) for a in (x, w, b))
    y = lib.linear_forward(x16, w16, b16, True)
    np.testing.assert_array_equal(y.astype(float), np.maximum(x @ w.T + b, 0))


def test_types_must_agree():
    x, w = np.ones((1, 8, 4, 4), np.float16), np.ones((8, 8, 1, 1), np.float32)
    with pytest.raises(TypeError, match="float16 and float32"):
        lib.conv_forward(x, w, None, 1, 0, 1, 1)
    with pytest.raises(TypeError, match="float16"):
        cg.functional.conv2d(cg.tensor(x), cg.tensor(w))
