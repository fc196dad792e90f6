"""linear, matmul and the matrix product under them."""

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
    forward_and_gradients,
    integers,
)
from tests.reference.linear import linear, linear_gradients, sequential_product

pytestmark = pytest.mark.kernel

# (rows, in, out): tile tails in every direction, several packed blocks, products of a vector, more
# terms than one chunk, dot products with ends of rows, rows that cannot be read in place, nothing
# at all.
SIZES = [
    (1, 1, 1),
    (2, 3, 4),
    (7, 5, 33),
    (13, 257, 19),
    (100, 70, 300),
    (64, 520, 10),
    (1, 300, 70),
    (70, 300, 1),
    (5, 1, 5),
    (4500, 6, 10),
    (29, 131, 7),
    (43, 512, 150),
    (150, 333, 41),
    (300, 66, 200),
    (1, 4500, 3),
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (3, 100, 0),
]


@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.quick), np.float64])
def test_linear_is_exact_on_integers(rows, inputs, outputs, dtype):
    rng = np.random.default_rng(0)
    x = integers(rng, (rows, inputs), dtype=dtype)
    w = integers(rng, (outputs, inputs), dtype=dtype)
    b = integers(rng, (outputs,), dtype=dtype)
    dy = integers(rng, (rows, outputs), dtype=dtype)
    got = forward_and_gradients(F.linear, [x, w, b], dy)
    for g, e in zip(got, (linear(x, w, b), *linear_gradients(dy, x, w)), strict=True):
        assert g.shape == e.shape and g.dtype == dtype
        np.testing.assert_array_equal(g, e)


@pytest.mark.quick
@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_and_mask_are_the_separate_ops(rows, inputs, outputs, dtype):
    """The bits of the product, and of a ReLU or of its backward pass after it."""
    rng = np.random.default_rng(10)
    x, w = (rng.standard_normal(s).astype(dtype) for s in ((rows, inputs), (outputs, inputs)))
    b, dy = (rng.standard_normal(s).astype(dtype) for s in (outputs, (rows, outputs)))
    x.flat[:1], w.flat[1:2] = np.nan, np.inf
    for bias in (b, None):
        y = lib.linear_forward(x, w, bias)
        fused = lib.linear_forward(x, w, bias, relu=True)
        np.testing.assert_array_equal(fused, np.where(y < 0, dtype(0), y))
    dx = lib.linear_backward_input(dy, w)
    fused = lib.linear_backward_input(dy, w, mask=x)
    np.testing.assert_array_equal(fused, np.where(x <= 0, dtype(0), dx))


def test_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"mask must have .* \(2, 3\). Got \(3, 2\)"):
        lib.linear_backward_input(
            np.zeros((2, 4), np.float32),
            np.zeros((4, 3), np.float32),
            mask=np.zeros((3, 2), np.float32),
        )


def test_adjoint():
    rng = np.random.default_rng(1)
    x, w = integers(rng, (4, 9, 50)), integers(rng, (21, 50))
    dy = integers(rng, (4, 9, 21))
    y, dx, dw = (a.astype(np.float64) for a in forward_and_gradients(F.linear, [x, w], dy))
    assert (dy * y).sum() == (dx * x).sum() == (dw * w).sum()


@pytest.mark.parametrize("m, n, k", [(20, 33, 700), (1, 40, 9000), (12, 7, 70000)])
def test_error_against_float64(m, n, k):
    rng = np.random.default_rng(2)
    a = rng.standard_normal((m, k), np.float32)
    b = rng.standard_normal((k, n), np.float32)
    exact, plain = a.astype(np.float64) @ b.astype(np.float64), sequential_product(a, b)
    assert_near_float64(lib.linear_forward(a, np.ascontiguousarray(b.T), None), exact, plain)
    assert_near_float64(lib.linear_backward_input(a, b), exact, plain)
    dw, _ = lib.linear_backward_weight(np.ascontiguousarray(a.T), b, False)
    assert_near_float64(dw, exact, plain)


@pytest.mark.parametrize("rows, c", [(70000, 3), (70000, 1), (5000, 40)])
def test_column_sum_error_against_float64(rows, c):
    x = np.random.default_rng(3).standard_normal((rows, c)).astype(np.float32) + 1
    plain = np.zeros(c, np.float32)
    for row in x:
        plain += row
    assert_near_float64(lib.channel_sum(x, 0), x.astype(np.float64).sum(0), plain)


@pytest.mark.parametrize("rows", [0, 1, 5, 1000, 4099])
@pytest.mark.parametrize("c", [1, 2, 3, 8, 17, 64, 130])
def test_column_sum_is_exact_on_integers(rows, c):
    x = integers(np.random.default_rng(4), (rows, c))
    np.testing.assert_array_equal(lib.channel_sum(x, 0), x.astype(np.float64).sum(0))


@pytest.mark.parametrize(
    "rows, inputs, outputs",
    [(300, 70, 130), (9000, 20, 9), (1, 900, 200), (64, 784, 256), (58, 300, 143)],
)
def test_same_bits_for_any_threads(rows, inputs, outputs):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((rows, inputs), np.float32)
    w = rng.standard_normal((outputs, inputs), np.float32)
    b = rng.standard_normal(outputs, np.float32)
    dy = rng.standard_normal((rows, outputs), np.float32)
    assert_same_bits_for_any_threads(lambda: forward_and_gradients(F.linear, [x, w, b], dy))


def test_nan_and_infinity_stay_in_their_rows():
    x, w = np.ones((20, 40), np.float32), np.ones((30, 40), np.float32)
    x[3, 5], x[7, 0] = np.nan, np.inf
    y = lib.linear_forward(x, w, None)
    assert np.isnan(y[3]).all() and np.isposinf(y[7]).all()
    assert (np.delete(y, (3, 7), axis=0) == 40).all()


MATMUL_SHAPES = [
    ((4,), (4,)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (1, 6, 4, 5)),
    ((6, 3, 4), (2, 1, 4, 5)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((0, 3, 4), (4, 5)),
    ((2, 3, 0), (0, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((3, 2, 1, 3, 4), (2, 6, 4, 5)),
    ((3, 40, 70), (3, 70, 33)),
]


@pytest.mark.parametrize("a_shape, b_shape", MATMUL_SHAPES)
def test_matmul_is_exact_on_integers(a_shape, b_shape):
    rng = np.random.default_rng(6)
    a, b = integers(rng, a_shape), integers(rng, b_shape)
    np.testing.assert_array_equal(values(F.matmul(cg.tensor(a), cg.tensor(b))), a @ b, strict=True)


@pytest.mark.parametrize("a_shape, b_shape", MATMUL_SHAPES)
def test_matmul_parity(torch, a_shape, b_shape):
    rng = np.random.default_rng(7)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (a_shape, b_shape)]
    assert_parity(torch, F.matmul, torch.matmul, arrays)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
def test_linear_parity(torch, shape):
    rng = np.random.default_rng(8)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (shape, (4, 7), (4,))]
    assert_parity(torch, F.linear, torch.nn.functional.linear, arrays)


def test_gradients():
    rng = np.random.default_rng(9)
    draw = rng.standard_normal
    assert_gradients(F.linear, [draw((2, 3, 5)), draw((4, 5)), draw(4)], rng)
    assert_gradients(F.matmul, [draw((2, 1, 3, 4)), draw((5, 4, 2))], rng)


sizes = st.integers(0, 40)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_drawn_shapes_with_any_strides(rows, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x = integers(rng, (inputs, rows)).T[:, ::-1]
    w = integers(rng, (outputs, 2 * inputs))[::-1, ::2]
    dy = integers(rng, (2 * rows, outputs))[::2]
    got = forward_and_gradients(F.linear, [x, w, None], dy)
    expected = (linear(x, w), *linear_gradients(dy, x, w)[:2])
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)
    np.testing.assert_array_equal(values(F.matmul(cg.tensor(x), cg.tensor(w.T))), expected[0])


@pytest.mark.parametrize(
    "fn, shapes, message",
    [
        (F.linear, [(2, 3), (4, 5)], r"\[linear\].*last axis.*\(2, 3\).*\(4, 5\)"),
        (F.linear, [(2, 3), (3,)], r"\[linear\].*\(2, 3\).*\(3,\)"),
        (F.linear, [(2, 3), (4, 3), (5,)], r"\[linear\] bias.*4.*\(5,\)"),
        (F.matmul, [(2, 3), (4, 5)], r"\[matmul\].*\(2, 3\) and \(4, 5\)"),
        (F.matmul, [(), (4,)], r"\[matmul\].*\(\) and \(4,\)"),
        (F.matmul, [(2, 3, 4), (3, 4, 5)], r"\[matmul\] The batch axes.*\(2, 3, 4\)"),
    ],
)
def test_errors_name_the_shapes(fn, shapes, message):
    with pytest.raises(ValueError, match=message):
        fn(*[cg.tensor(np.zeros(s, np.float32)) for s in shapes])


@pytest.mark.parametrize("fn", [F.linear, F.matmul])
def test_dtypes_must_agree(fn):
    a, b = np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float64)
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32"):
        fn(cg.tensor(a), cg.tensor(b))


def test_one_hot(torch):
    classes = np.random.default_rng(0).integers(0, 5, (3, 1, 4))
    for count in (-1, 7):
        got = values(F.one_hot(cg.tensor(classes), count))
        expected = torch.nn.functional.one_hot(torch.tensor(classes), count).numpy()
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.int64
    assert F.one_hot(cg.tensor(np.zeros(0, np.int64)), 3).shape == (0, 3)
    for bad, count, words in (
        ([0, 3], 3, "from 0 to 3, num_classes 3"),
        ([-1, 1], -1, "from -1 to 1, num_classes 2"),
        ([], -1, "num_classes -1"),
    ):
        with pytest.raises(ValueError, match=words):
            F.one_hot(cg.tensor(np.array(bad, np.int64)), count)
    with pytest.raises(TypeError, match="must be integers. Got float32"):
        F.one_hot(cg.tensor([1.0]))
