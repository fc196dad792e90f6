"""backward_weight of convolutions: every kernel of csrc/cpu/kernels/conv_backward_weight*."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import ON_CPU, lib
from tests.helpers import assert_near_float64, assert_same_bits_for_any_threads, integers
from tests.reference.conv_backward_weight import conv_backward_weight as oracle

pytestmark = pytest.mark.kernel


def case(n, c, k, size, kernel, stride=1, padding=0, dilation=1, groups=1):
    axes = len(size)
    stride, padding, dilation = (
        (v,) * axes if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    return (n, c, k, size, kernel, stride, padding, dilation, groups)


ALGORITHMS = ["tile", "slide", "depthwise", "winograd", "product"] if ON_CPU else ["generic"]
of_the_cpu = pytest.mark.cpu("of the CPU's algorithms")

# By the algorithm that each takes on its own.
CASES = {
    # sliding: width 3 or 5, stride and dilation 1 in the width; at most 8 output channels go two
    # rows of pixels at a time where vectors have 16 lanes
    "slide one channel": case(2, 1, 16, (9, 11), (3, 3), padding=1),
    "slide one channel, 5 rows of taps": case(2, 1, 6, (9, 11), (5, 3), padding=(2, 1)),
    "slide one channel, strided rows": case(2, 1, 6, (9, 11), (3, 3), (2, 1), (1, 1)),
    "slide one channel, volume": case(1, 1, 8, (5, 6, 7), (3, 3, 3), padding=1),
    "slide two channels": case(2, 2, 8, (9, 8), (3, 3), padding=1),
    "slide three channels": case(3, 3, 32, (8, 8), (3, 3), padding=1),
    "slide four channels": case(2, 4, 8, (6, 5), (3, 3)),
    "slide k tail": case(2, 5, 10, (7, 9), (3, 3), padding=1),
    "slide k below a vector": case(2, 7, 3, (7, 9), (3, 3), padding=1),
    "slide volume": case(2, 8, 8, (4, 5, 6), (3, 3, 3), padding=1),
    "slide line": case(5, 16, 32, (37,), (3,)),
    "slide wide padding": case(2, 4, 8, (3, 2), (3, 3), padding=(4, 5)),
    "slide narrower than the kernel": case(2, 4, 8, (3, 1), (3, 3), padding=1),
    "slide rows dilated": case(2, 4, 8, (9, 9), (3, 3), padding=2, dilation=(2, 1)),
    "slide groups": case(2, 8, 12, (6, 7), (3, 3), padding=1, groups=4),
    "slide one channel per group": case(2, 4, 8, (6, 7), (3, 3), padding=1, groups=4),
    "slide many strips": case(1, 2, 8, (40, 41), (3, 3), padding=1),
    "slide long line": case(1, 2, 8, (2500,), (3,), padding=1),
    "slide small images": case(40, 4, 8, (4, 4), (3, 3), padding=1),
    "slide five wide, one channel": case(2, 1, 6, (11, 12), (5, 5), padding=2),
    "slide five wide": case(2, 6, 16, (9, 17), (5, 5)),
    "slide five wide, seven rows of taps": case(2, 1, 24, (9, 13), (7, 5), padding=(3, 2)),
    "slide eight channels, odd rows": case(1, 9, 8, (7, 9), (3, 3), padding=1),
    "slide eight channels, one row": case(3, 4, 8, (1, 9), (1, 3), padding=(0, 1)),
    "slide eight channels, one row in all": case(1, 4, 8, (1, 9), (1, 3), padding=(0, 1)),
    # tile: anything else
    "tile line of one channel": case(3, 1, 16, (50,), (3,)),
    "tile many rows": case(2, 6, 16, (9, 9), (4, 4)),
    "tile five wide, narrow": case(2, 7, 5, (4, 3), (5, 5), padding=2),
    "tile eight channels": case(3, 14, 8, (9, 9), (3, 3), 2, 1),
    "tile stride 2": case(2, 5, 17, (9, 10), (3, 3), 2, 1),
    "tile stride 3, kernel 2": case(2, 3, 4, (9, 10), (2, 2), 3),
    "tile transposed 2x2x2": case(1, 8, 16, (4, 6, 8), (2, 2, 2), 2),
    "tile dilated": case(2, 4, 24, (9, 10), (3, 3), 1, 2, 2),
    "tile even kernel": case(2, 3, 9, (5, 6), (4, 2), padding=(3, 1)),
    "tile pointwise stride 2": case(3, 16, 20, (6, 7), (1, 1), 2),
    "tile pointwise padded": case(2, 3, 8, (4, 5), (1, 1), padding=1),
    "tile groups": case(2, 6, 20, (6, 7), (3, 3), 2, 1, groups=2),
    "tile two k blocks": case(2, 3, 40, (6, 7), (4, 4), padding=2),
    # depthwise
    "depthwise": case(2, 16, 16, (7, 8), (3, 3), padding=1, groups=16),
    "depthwise tail": case(2, 11, 11, (7, 8), (3, 3), 2, 1, groups=11),
    "depthwise 7 wide, dilated": case(2, 8, 8, (5, 20), (3, 7), padding=6, dilation=2, groups=8),
    "depthwise volume": case(1, 9, 9, (4, 5, 6), (3, 3, 3), padding=1, groups=9),
    "depthwise line": case(2, 3, 3, (30,), (5,), padding=2, groups=3),
    "tile pointwise": case(3, 20, 12, (6, 7), (1, 1)),
    "tile pointwise, many pixels": case(2, 3, 5, (70, 70), (1, 1)),
    "tile pointwise, wide": case(2, 40, 50, (5, 5), (1, 1)),
    # a matrix product
    "product whole input": case(9, 3, 7, (4, 5), (4, 5)),
    "product line": case(4, 1, 1, (9,), (9,)),
    # Winograd: 3x3 taps at stride 1, enough channels and pixels
    "winograd": case(3, 16, 16, (12, 12), (3, 3), padding=1),
    "winograd ragged tiles, unpadded": case(2, 17, 20, (15, 17), (3, 3)),
    "winograd many tiles": case(9, 10, 40, (18, 20), (3, 3), padding=1),
    "winograd wide padding": case(1, 16, 33, (13, 14), (3, 3), padding=(3, 5)),
    "winograd volume": case(1, 9, 16, (5, 8, 8), (3, 3, 3), padding=1),
    "winograd volume, ranges of slices": case(1, 8, 10, (11, 20, 12), (3, 3, 3), padding=(0, 1, 1)),
    "winograd volume, two depth taps": case(2, 8, 16, (6, 8, 8), (2, 3, 3), padding=(1, 1, 1)),
    # nothing
    "no images": case(0, 4, 8, (5, 5), (3, 3), padding=1),
    "no images, product": case(0, 4, 8, (5, 5), (5, 5)),
    "no images, tile": case(0, 4, 8, (5, 5), (2, 2)),
}


def arrays(shape, fill):
    n, c, k, size, kernel, stride, padding, dilation, groups = shape
    out = [
        (i + 2 * p - d * (f - 1) - 1) // s + 1
        for i, f, s, p, d in zip(size, kernel, stride, padding, dilation)
    ]
    return fill((n, k, *out)), fill((n, c, *size)), (k, c // groups, *kernel)


@pytest.fixture
def algorithm(request):
    lib.force_conv_algorithm(request.param)
    yield request.param
    lib.force_conv_algorithm("auto")
    lib.set_exact_algorithms(False)


def algorithm_of(shape):
    n, c, k, size, kernel, *arguments, groups = shape
    x_shape, w_shape = (n, c, *size), (k, c // groups, *kernel)
    return lib.conv_algorithm(x_shape, w_shape, *arguments, groups, "backward_weight")


def run(shape, dy, x, w_shape, with_bias=True):
    return lib.conv_backward_weight(dy, x, w_shape, *shape[5:], with_bias)


# One of each kernel.
QUICK = {
    "slide one channel",
    "slide k tail",
    "slide volume",
    "tile stride 2",
    "depthwise tail",
    "product whole input",
    "winograd volume",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.quick) if n in QUICK else n for n in CASES]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_exact_on_integers(name, dtype):
    rng = np.random.default_rng(0)
    shape = CASES[name]
    dy, x, w_shape = arrays(shape, lambda s: integers(rng, s, dtype=dtype))
    for got, exact in zip(run(shape, dy, x, w_shape), oracle(dy, x, w_shape, *shape[5:])):
        assert got.shape == exact.shape and got.dtype == dtype
        np.testing.assert_array_equal(got, exact)


@of_the_cpu
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("no ")])
def test_algorithm_of_a_shape(name):
    assert algorithm_of(CASES[name]) == name.split()[0].strip(",")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("algorithm", ALGORITHMS, indirect=True)
def test_each_algorithm_is_exact_on_integers(name, algorithm):
    """Where an algorithm does not support the shape, the one it falls back to is."""
    shape = CASES[name]
    dy, x, w_shape = arrays(shape, lambda s: integers(np.random.default_rng(1), s))
    for got, exact in zip(run(shape, dy, x, w_shape), oracle(dy, x, w_shape, *shape[5:])):
        np.testing.assert_array_equal(got, exact)


@of_the_cpu
@pytest.mark.parametrize(
    "algorithm, name, used",
    [
        ("generic", "tile stride 2", "tile"),  # there is none
        ("tile", "slide volume", "tile"),
        ("tile", "depthwise", "tile"),
        ("tile", "product line", "tile"),
        ("slide", "winograd", "slide"),
        ("slide", "tile stride 2", "tile"),
        ("slide", "tile five wide, narrow", "slide"),
        ("depthwise", "tile groups", "tile"),
        ("winograd", "slide two channels", "winograd"),
        ("winograd", "slide volume", "winograd"),
        ("winograd", "slide groups", "slide"),
        ("winograd", "tile stride 2", "tile"),
        ("winograd", "slide five wide", "slide"),
        ("product", "tile pointwise", "tile"),
    ],
    indirect=["algorithm"],
)
def test_algorithm_is_the_forced_one_where_it_can_be(algorithm, name, used):
    assert algorithm_of(CASES[name]) == used


@of_the_cpu
@pytest.mark.parametrize("algorithm", ["auto", "winograd"], indirect=True)
def test_exact_algorithms(algorithm):
    assert algorithm_of(CASES["winograd"]) == "winograd"
    lib.set_exact_algorithms(True)
    assert algorithm_of(CASES["winograd"]) == "slide"


def test_unknown_pass():
    with pytest.raises(ValueError, match=r"\[conv_algorithm\] The pass .* Got 'backward'\."):
        lib.conv_algorithm((1, 1, 4), (1, 1, 3), 1, 0, 1, 1, "backward")


def test_without_bias():
    shape = CASES["slide volume"]
    dy, x, w_shape = arrays(shape, lambda s: integers(np.random.default_rng(1), s))
    dw, db = run(shape, dy, x, w_shape, with_bias=False)
    assert db is None
    np.testing.assert_array_equal(dw, oracle(dy, x, w_shape, *shape[5:])[0])


@pytest.mark.parametrize(
    "shape",
    [
        case(3, 8, 8, (24, 24), (3, 3), padding=1),
        case(2, 3, 20, (33, 32), (5, 5), 2, 2),
        case(2, 24, 24, (30, 30), (3, 3), padding=1, groups=24),
        case(1, 2, 8, (12, 13, 14), (3, 3, 3), padding=1),
        case(8, 12, 5, (40, 30), (1, 1)),
        case(2, 6, 16, (24, 24), (5, 5), padding=2),
        case(300, 12, 5, (8, 4), (8, 4)),
        case(3, 16, 24, (30, 33), (3, 3), padding=1),
        case(1, 16, 16, (13, 14, 16), (3, 3, 3), padding=1),
    ],
    ids=[
        "slide",
        "tile",
        "depthwise",
        "volume",
        "pointwise",
        "slide five wide",
        "product",
        "winograd",
        "winograd volume",
    ],
)
def test_same_bits_for_any_threads(shape):
    rng = np.random.default_rng(2)
    dy, x, w_shape = arrays(shape, lambda s: rng.standard_normal(s).astype(np.float32))
    assert_same_bits_for_any_threads(lambda: run(shape, dy, x, w_shape))


# 70,000 terms per sum.
@pytest.mark.parametrize(
    "shape",
    [
        case(1, 2, 3, (70000,), (3,), padding=1),
        case(1, 2, 3, (264, 265), (3, 3), padding=1),
        case(1, 1, 3, (264, 265), (3, 3), padding=1),
        case(1, 2, 3, (70000,), (2,)),
        case(1, 8, 8, (70000,), (3,), padding=1, groups=8),
        case(1, 2, 3, (70000,), (1,)),
        case(1, 1, 20, (264, 265), (5, 5), padding=2),
    ],
    ids=["slide line", "slide", "slide one channel", "tile", "depthwise", "pointwise", "five wide"],
)
def test_error_of_long_sums(shape):
    rng = np.random.default_rng(3)
    dy, x, w_shape = arrays(shape, lambda s: rng.standard_normal(s).astype(np.float32))
    dy += np.float32(0.5)
    dw, db = run(shape, dy, x, w_shape)
    exact_dw, exact_db = oracle(dy, x, w_shape, *shape[5:])
    assert_near_float64(dw, exact_dw, sequential(shape, dy, x, w_shape))
    plain = np.cumsum(dy, axis=-1, dtype=np.float32)[..., -1] if dy.ndim == 3 else None
    if plain is not None:
        assert_near_float64(db, exact_db, plain.sum(0))


# Up to 70,000 terms per sum, whose mean is not zero.
@of_the_cpu
@pytest.mark.parametrize(
    "shape",
    [
        case(1, 4, 16, (8, 8), (3, 3), padding=1),
        case(1, 8, 16, (264, 265), (3, 3), padding=1),
        case(40, 8, 16, (40, 39), (3, 3), padding=1),
        case(1, 4, 8, (40, 41, 42), (3, 3, 3), padding=1),
    ],
    ids=["one image", "large image", "many images", "volume"],
)
@pytest.mark.parametrize("algorithm", ["winograd"], indirect=True)
def test_error_bound_of_winograd(shape, algorithm):
    assert algorithm_of(shape) == "winograd"
    rng = np.random.default_rng(3)
    dy, x, w_shape = arrays(shape, lambda s: rng.standard_normal(s).astype(np.float32))
    dy += np.float32(0.5)
    eps = np.finfo(np.float32).eps
    bounds = (64 * eps, 8 * eps)  # conv_backward_weight_winograd.h; db is a blocked sum
    exact = oracle(dy, x, w_shape, *shape[5:])
    for got, want, bound in zip(run(shape, dy, x, w_shape), exact, bounds):
        assert np.abs(got - want).max() <= bound * np.abs(want).max()


def sequential(shape, dy, x, w_shape):
    """dw as a plain float32 sum, pixel after pixel."""
    size, kernel, groups = shape[3], shape[4], shape[8]
    pad = shape[6]
    xp = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in pad]])
    dw = np.zeros(w_shape, np.float32)
    k_per_group, c_per_group = w_shape[0] // groups, w_shape[1]
    assert len(size) == len(kernel)
    for k in range(w_shape[0]):
        for c in range(c_per_group):
            plane = xp[0, k // k_per_group * c_per_group + c]
            for tap in np.ndindex(*kernel):
                window = tuple(slice(t, t + o) for t, o in zip(tap, dy.shape[2:]))
                terms = (dy[0, k] * plane[window]).ravel()
                dw[(k, c, *tap)] = np.cumsum(terms, dtype=np.float32)[-1]
    return dw


def test_infinity_meets_only_its_windows():
    shape = case(1, 4, 8, (6, 6), (3, 3), padding=1)
    dy, x, w_shape = arrays(shape, lambda s: np.ones(s, np.float32))
    x[0, 1, 0, 0] = np.inf  # the corner: taps (2, .) and (., 2) never reach it
    dw, db = run(shape, dy, x, w_shape)
    assert np.isposinf(dw[:, 1, :2, :2]).all()
    assert np.isfinite(dw[:, 1, 2]).all() and np.isfinite(dw[:, 1, :, 2]).all()
    assert np.isfinite(dw[:, [0, 2, 3]]).all() and (db == 36).all()


@st.composite
def drawn(draw):
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, k = (groups * draw(st.integers(1, 6)) for _ in range(2))
    tuples = [
        tuple(draw(st.integers(lo, hi)) for _ in range(axes))
        for lo, hi in ((1, 4), (1, 3), (0, 4), (1, 3), (0, 6))
    ]
    kernel, stride, padding, dilation, extra = tuples
    size = tuple(
        max(1, d * (f - 1) + 1 - 2 * p) + e for d, f, p, e in zip(dilation, kernel, padding, extra)
    )
    return (draw(st.integers(0, 3)), c, k, size, kernel, stride, padding, dilation, groups)


@settings(max_examples=80, deadline=None)
@given(drawn(), st.integers(0, 2**32 - 1))
def test_drawn_shapes(shape, seed):
    rng = np.random.default_rng(seed)
    dy, x, w_shape = arrays(shape, lambda s: integers(rng, s))
    dy, x = dy[::-1], x[..., ::-1]  # negative strides
    for got, exact in zip(run(shape, dy, x, w_shape), oracle(dy, x, w_shape, *shape[5:])):
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("layout", ["1x1", "one channel"])
def test_gradients_are_physically_channels_last(layout):
    shape = case(2, 3, 4, (5, 5), (1, 1)) if layout == "1x1" else case(2, 1, 4, (5, 5), (3, 3))
    dy, x, w_shape = arrays(shape, lambda s: np.ones(s, np.float32))
    assert lib.is_channels_last(run(shape, dy, x, w_shape)[0])
