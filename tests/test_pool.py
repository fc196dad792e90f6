"""Pooling: maximum, average, adaptive, unpooling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
from convgrad import functional as F
from tests import helpers
from tests.device import lib, raises_for_value, values
from tests.reference import pool as reference

pytestmark = pytest.mark.kernel

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
ADAPTIVE_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
UNPOOL = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}


def zeros(*shape):
    return cg.tensor(np.zeros(shape, np.float32))


def check_max(fn, x, axes):
    """Values, indices and gradients exactly those of the oracle, all of them channels-last."""
    leaf = cg.tensor(x, requires_grad=True)
    y, index = fn(leaf, return_indices=True)
    expected, where = reference.max_pool(x, axes)
    np.testing.assert_array_equal(values(y), expected)
    np.testing.assert_array_equal(values(index), where)
    assert index.array.dtype == np.int64 and not index.requires_grad
    np.testing.assert_array_equal(values(fn(cg.tensor(x))), expected)
    dy = helpers.integers(np.random.default_rng(3), y.shape, dtype=x.dtype)
    y.backward(cg.tensor(dy))
    np.testing.assert_array_equal(
        values(leaf.grad), reference.max_pool_backward(dy, where, x.shape[2:])
    )
    assert all(lib.is_channels_last(a) for a in (values(y), values(index), values(leaf.grad)))


def check_avg(fn, x, axes, padding, *options):
    """Values and gradients as the oracle's; exactly where the sums divide evenly."""
    leaf = cg.tensor(x, requires_grad=True)
    y = fn(leaf)
    tol = {"rtol": 4 * np.finfo(x.dtype).eps, "atol": 1e-5 if x.dtype == np.float32 else 1e-12}
    np.testing.assert_allclose(values(y), reference.avg_pool(x, axes, padding, *options), **tol)
    dy = helpers.integers(np.random.default_rng(3), y.shape, dtype=x.dtype)
    y.backward(cg.tensor(dy))
    expected = reference.avg_pool_backward(dy, axes, x.shape[2:], padding, *options)
    np.testing.assert_allclose(values(leaf.grad), expected, **tol)
    assert lib.is_channels_last(y.array) and lib.is_channels_last(leaf.grad.array)


@st.composite
def cases(draw, dilated):
    """(x, kernel, stride, padding, dilation, ceil_mode) that PyTorch accepts."""
    spatial = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4)) for _ in range(spatial)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    dilation = [draw(st.integers(1, 3)) if dilated else 1 for _ in range(spatial)]
    stride = [draw(st.integers(1, 5)) for _ in range(spatial)]
    size = [
        draw(st.integers(max(1, d, d * (k - 1) + 1 - 2 * p), d * (k - 1) + 8))
        for k, p, d in zip(kernel, padding, dilation)
    ]
    shape = (draw(st.integers(0, 3)), draw(st.sampled_from([1, 2, 3, 4, 6, 8, 17, 36])), *size)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    x = helpers.integers(np.random.default_rng(draw(st.integers(0, 99))), shape, dtype=dtype)
    if draw(st.booleans()):
        x = x.transpose(1, 0, *range(2, x.ndim))[::-1].copy().transpose(1, 0, *range(2, x.ndim))
        x = x[..., ::-1]
    return x, kernel, stride, padding, dilation, draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(cases(dilated=True))
def test_max_pool_is_exact(case):
    x, kernel, stride, padding, dilation, ceil_mode = case
    spatial = x.ndim - 2
    axes = reference.windows(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)

    def fn(t, **options):
        return MAX[spatial](
            t,
            tuple(kernel),
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            ceil_mode=ceil_mode,
            **options,
        )

    check_max(fn, x, axes)


@settings(max_examples=150, deadline=None)
@given(cases(dilated=False), st.booleans(), st.sampled_from([None, None, 3, 8]))
def test_avg_pool(case, count_include_pad, divisor):
    x, kernel, stride, padding, dilation, ceil_mode = case
    spatial = x.ndim - 2
    axes = reference.windows(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    extra = {} if spatial == 1 else {"divisor_override": divisor}

    def fn(t):
        return AVG[spatial](
            t,
            tuple(kernel),
            tuple(stride),
            tuple(padding),
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **extra,
        )

    check_avg(fn, x, axes, padding, count_include_pad, None if spatial == 1 else divisor)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_adaptive_pools(data):
    spatial = data.draw(st.integers(1, 3))
    size = [data.draw(st.integers(1, 9)) for _ in range(spatial)]
    out = tuple(data.draw(st.one_of(st.none(), st.integers(1, 10))) for _ in range(spatial))
    x = helpers.integers(
        np.random.default_rng(0), (2, data.draw(st.sampled_from([1, 5, 16])), *size)
    )
    axes = reference.adaptive_windows(size, out)
    check_max(lambda t, **options: ADAPTIVE_MAX[spatial](t, out, **options), x, axes)
    check_avg(lambda t: ADAPTIVE_AVG[spatial](t, out), x, axes, [0] * spatial)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [1, 3, 6, 16, 40])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_pools_of_two(spatial, c, dtype):
    rng = np.random.default_rng(0)
    x = helpers.integers(rng, (3, c, *(7, 10, 12)[-spatial:]), dtype=dtype)
    axes = reference.windows(x.shape[2:], [2] * spatial, [2] * spatial, [0] * 3, [1] * 3, False)
    check_max(lambda t, **options: MAX[spatial](t, 2, **options), x, axes)
    check_avg(lambda t: AVG[spatial](t, 2), x, axes, [0] * spatial)
    y, *_ = helpers.forward_and_gradients(lambda t: AVG[spatial](t, 2), [x])
    np.testing.assert_array_equal(y, reference.avg_pool(x, axes, [0] * spatial))  # exact: / 2^k


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(2)),
    st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 40)),
    st.integers(1, 40),
    st.integers(1, 3),
)
def test_windows_of_two_side_by_side(kernel, size, c, n):
    """Any number of channels and any rest beyond the last window, which gets zeros."""
    rng = np.random.default_rng([*kernel, *size, c, n])
    x = helpers.integers(rng, (n, c, *size))
    axes = reference.windows(size, kernel, kernel, [0] * 3, [1] * 3, False)
    check_max(lambda t, **options: F.max_pool3d(t, kernel, **options), x, axes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spec", [(2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 1, 1, 1, True)])
@pytest.mark.parametrize("c", [1, 6, 16, 19])
def test_masked_backward_is_also_the_relus(dtype, spec, c):
    """One pass gives what unmasked pooling and a ReLU's backward pass give one after the other."""
    rng = np.random.default_rng(6)
    x = helpers.integers(rng, (3, c, 13, 14), dtype=dtype)
    x[0, 0, :4] = np.nan
    rectified = lib.unary_forward("relu", x)
    y, tap, _ = lib.max_pool_forward(rectified, 2, spec, True, False)
    dy = lib.channels_last(helpers.integers(rng, y.shape, dtype=dtype))
    dx = lib.max_pool_backward(dy, tap, x.shape, 2, spec)
    expected = lib.unary_backward("relu", rectified, dx)
    masked = lib.max_pool_backward(dy, tap, x.shape, 2, spec, mask=y)
    np.testing.assert_array_equal(masked, expected)
    with pytest.raises(ValueError, match="mask must have the gradient's shape"):
        lib.max_pool_backward(dy, tap, x.shape, 2, spec, mask=y[:, :, 1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [3, 4])
@pytest.mark.parametrize("kernel", [255, 256, 257, 300])
def test_windows_beyond_a_byte(kernel, c, dtype):
    x = np.arange(2 * c * 1500, dtype=dtype).reshape(2, c, 1500) * 7919 % 2003
    axes = reference.windows([1500], [kernel], [101], [kernel // 2], [1], True)
    check_max(
        lambda t, **options: F.max_pool1d(t, kernel, 101, kernel // 2, ceil_mode=True, **options),
        x,
        axes,
    )


def test_windows_beyond_65535_elements():
    x = np.random.default_rng(0).permutation(2 * 263 * 260).astype(np.float32)
    x = x.reshape(1, 2, 263, 260)
    check_max(
        lambda t, **options: F.max_pool2d(t, (260, 256), 2, **options),
        x,
        reference.windows([263, 260], [260, 256], [2, 2], [0, 0], [1, 1], False),
    )
    check_max(
        lambda t, **options: F.adaptive_max_pool2d(t, 1, **options),
        x,
        reference.adaptive_windows([263, 260], [1, 1]),
    )


def test_nan_infinity_and_ties():
    x = np.array([[[1, np.nan, 3, 2, 2, -np.inf, -np.inf, np.inf, np.nan, np.nan]]], np.float32)
    for c in (1, 5, 16):
        many = np.repeat(x, c, 1)
        axes = reference.windows([10], [2], [2], [0], [1], False)
        check_max(lambda t, **options: F.max_pool1d(t, 2, **options), many, axes)
    y = values(F.avg_pool1d(cg.tensor(x), 2))
    np.testing.assert_array_equal(y, [[[np.nan, 2.5, -np.inf, np.nan, np.nan]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [3, 8])
def test_nan_infinity_and_ties_in_wide_windows(c, dtype):
    rng = np.random.default_rng(4)
    x = helpers.integers(rng, (2, c, 9, 200), -1, 1, dtype=dtype)
    x[0, :, :, :90][rng.random((c, 9, 90)) < 0.01] = np.nan
    x[1, 0], x[1, 1, 3] = -np.inf, np.inf
    axes = reference.windows([9, 200], [5, 40], [4, 40], [2, 0], [1, 1], False)
    check_max(lambda t, **options: F.max_pool2d(t, (5, 40), (4, 40), (2, 0), **options), x, axes)
    whole = np.nan_to_num(x, nan=1, posinf=2, neginf=-2)
    y = values(F.avg_pool2d(cg.tensor(whole), (5, 40), (4, 40), (2, 0)))
    expected = reference.avg_pool(whole, axes, [2, 0], True, None)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)


def test_adjoint_identity_of_average_is_exact():
    rng = np.random.default_rng(1)
    for args in [(2, 2, 0), (4, 1, 2), (2, 3, 1), (4, 2, 0)]:
        x = helpers.integers(rng, (2, 5, 9, 11))
        dy = helpers.integers(rng, F.avg_pool2d(cg.tensor(x), *args).shape)
        y, dx = helpers.forward_and_gradients(lambda t, a=args: F.avg_pool2d(t, *a), [x], dy)
        assert np.sum(dy.astype(float) * y) == np.sum(dx.astype(float) * x)


@pytest.mark.parametrize(("shape", "kernel"), [((2, 8, 90, 95), None), ((1, 3, 100, 100), 80)])
def test_long_averages_are_near_float64(shape, kernel):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if kernel is None:
        y = values(F.adaptive_avg_pool2d(cg.tensor(x), 1))
        windows = [(slice(None), slice(None))]
    else:
        y = values(F.avg_pool2d(cg.tensor(x), kernel, 20))
        windows = [(slice(i, i + kernel), slice(j, j + kernel)) for i in (0, 20) for j in (0, 20)]
    exact = np.stack([x[(..., *w)].astype(float).mean((-2, -1)) for w in windows], -1)
    flat = [x[(..., *w)].reshape(*shape[:2], -1) for w in windows]
    plain = np.stack(
        [np.cumsum(v, -1, dtype=np.float32)[..., -1] / np.float32(v.shape[-1]) for v in flat], -1
    )
    helpers.assert_near_float64(y.reshape(exact.shape), exact, plain)


def test_global_pools_of_one_channel():
    x = helpers.integers(np.random.default_rng(0), (3, 1, 20, 20, 21))
    axes = reference.adaptive_windows(x.shape[2:], (1, 1, 1))
    check_avg(lambda t: F.adaptive_avg_pool3d(t, 1), x, axes, [0, 0, 0])
    check_max(lambda t, **options: F.adaptive_max_pool3d(t, 1, **options), x, axes)


def test_same_bits_for_any_threads():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 12, 50, 53)).astype(np.float32)

    def run():
        out = []
        for fn in (
            lambda t: F.max_pool2d(t, 2),
            lambda t: F.max_pool2d(t, 3, 2, 1),
            lambda t: F.max_pool2d(t, 3, 2, 0, 2, ceil_mode=True),
            lambda t: F.avg_pool2d(t, 2),
            lambda t: F.avg_pool2d(t, 3, 1, 1, count_include_pad=False),
            lambda t: F.adaptive_avg_pool2d(t, 1),
            lambda t: F.adaptive_avg_pool2d(t, (7, 6)),
            lambda t: F.adaptive_max_pool2d(t, (7, 6)),
        ):
            out += helpers.forward_and_gradients(fn, [x])
        y, index = F.max_pool2d(cg.tensor(x), 3, 1, return_indices=True)
        out += helpers.forward_and_gradients(lambda t: F.max_unpool2d(t, index, 3, 1), [values(y)])
        return out

    helpers.assert_same_bits_for_any_threads(run)


def test_gradients():
    rng = np.random.default_rng(4)
    x = rng.permutation(2 * 3 * 7 * 8).reshape(2, 3, 7, 8) / 10.0
    for fn in (
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.max_pool2d(t, 3, 1, 1, 2),
        lambda t: F.avg_pool2d(t, 3, 2, 1),
        lambda t: F.avg_pool2d(t, 2, divisor_override=3),
        lambda t: F.adaptive_avg_pool2d(t, (3, 5)),
        lambda t: F.adaptive_max_pool2d(t, (3, None)),
        lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2, output_size=(7, 8)),
    ):
        helpers.assert_gradients(fn, [x], rng)


# ---- unpooling ----


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpool(data):
    spatial = data.draw(st.integers(1, 3))
    shape = (
        data.draw(st.integers(0, 3)),
        data.draw(st.sampled_from([1, 3, 8, 20])),
        *[data.draw(st.integers(1, 4)) for _ in range(spatial)],
    )
    rng = np.random.default_rng(0)
    x = helpers.integers(rng, shape, 1, 9)
    size = [2 * n + data.draw(st.integers(0, 1)) for n in shape[2:]]
    index = rng.integers(0, np.prod(size), shape)  # duplicates: the last one wins
    leaf = cg.tensor(x, requires_grad=True)
    y = UNPOOL[spatial](leaf, cg.tensor(index), 2, output_size=size)
    expected = np.zeros((*shape[:2], int(np.prod(size))))
    flat = index.reshape(*shape[:2], int(np.prod(shape[2:])))
    for i, j in np.ndindex(*shape[:2]):
        for at, v in zip(flat[i, j], x[i, j].ravel()):
            expected[i, j, at] = v
    np.testing.assert_array_equal(values(y), expected.reshape(y.shape))
    dy = helpers.integers(rng, y.shape)
    y.backward(cg.tensor(dy))
    gathered = np.take_along_axis(dy.reshape(expected.shape), flat, -1)
    np.testing.assert_array_equal(values(leaf.grad), gathered.reshape(shape))
    assert lib.is_channels_last(y.array) and lib.is_channels_last(leaf.grad.array)


def test_unpool_errors():
    x = zeros(1, 2, 3, 3)
    index = cg.tensor(np.zeros((1, 2, 3, 3), np.int64))
    for bad in (36, -1):
        wrong = values(index).copy()
        wrong[0, 1, 2, 1] = bad
        with raises_for_value(ValueError, rf"from 0 to 35. Got {bad}", bad):
            F.max_unpool2d(x, cg.tensor(wrong), 2)
    with pytest.raises(ValueError, match=r"\(6, 6\) by less than the stride.*Got \(8, 6\)"):
        F.max_unpool2d(x, index, 2, output_size=(8, 6))
    with pytest.raises(ValueError, match=r"input's shape. Got \(1, 2, 3, 2\)"):
        F.max_unpool2d(x, cg.tensor(values(index)[..., :2]), 2)
    with pytest.raises(TypeError, match=r"indices must be int64. Got float32"):
        F.max_unpool2d(x, x, 2)
    with pytest.raises(ValueError, match=r"3 axes, \(N, C, ...\).*Got shape \(1, 2, 3, 3\)"):
        F.max_unpool1d(x, index, 2)


# ---- the interface ----


def test_unbatched():
    x = helpers.integers(np.random.default_rng(0), (3, 8, 9))
    for fn in (
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.avg_pool2d(t, 3, 1),
        lambda t: F.adaptive_avg_pool2d(t, 1),
        lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2, output_size=(8, 9)),
    ):
        y, dx = helpers.forward_and_gradients(fn, [x])
        many, dxs = helpers.forward_and_gradients(fn, [x[None]])
        np.testing.assert_array_equal(y, many[0])
        np.testing.assert_array_equal(dx, dxs[0])


def test_errors():
    x = zeros(1, 2, 5, 6)
    with pytest.raises(ValueError, match=r"half of kernel_size. Got.*\(2, 2\).*\(3, 3\)"):
        F.max_pool2d(x, 3, padding=2)
    with pytest.raises(ValueError, match=r"larger than the padded input.*\(1, 2, 5, 6\).*\(7, 7\)"):
        F.avg_pool2d(x, 7)
    with pytest.raises(ValueError, match=r"stride must be at least 1. Got \(0, 1\)"):
        F.max_pool2d(x, 2, (0, 1))
    with pytest.raises(ValueError, match=r"kernel_size must be at least 1. Got \(0, 0\)"):
        F.avg_pool2d(x, 0)
    with pytest.raises(ValueError, match=r"dilation must be at least 1. Got \(-1, -1\)"):
        F.max_pool2d(x, 2, dilation=-1)
    with pytest.raises(ValueError, match=r"\[max_pool3d\] input must have 5 axes.*\(1, 2\)"):
        F.max_pool3d(zeros(1, 2), 2)
    with pytest.raises(ValueError, match=r"\[adaptive_avg_pool2d\] output_size .* Got \(0, 3\)"):
        F.adaptive_avg_pool2d(x, (0, 3))
    with pytest.raises(ValueError, match=r"output_size must be at least 1"):
        F.adaptive_max_pool2d(x, -1)
    with pytest.raises(ValueError, match=r"have 2 entries. Got \(2, 2, 2\)"):
        F.max_pool2d(x, (2, 2, 2))
    with pytest.raises(ValueError, match=r"divisor_override must not be 0"):
        F.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(ValueError, match=r"empty but for its batch.*\(1, 2, 0, 6\)"):
        F.max_pool2d(zeros(1, 2, 0, 6), 1)
    with pytest.raises(ValueError, match=r"have a tap on the input.*\(1, 1, 2\)"):
        F.max_pool1d(zeros(1, 1, 2), 2, 1, 1, 3)
    with pytest.raises(TypeError, match=r"must be float32.* float64.*\. Got int64"):
        F.max_pool1d(cg.tensor(np.zeros((1, 1, 4), np.int64)), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity(torch, dtype):
    T = torch.nn.functional
    rng = np.random.default_rng(5)
    volume = rng.standard_normal((2, 5, 9, 8, 11)).astype(dtype)
    image, signal = volume[:, :, 0], volume[:, :, 0, 0]
    arrays = {1: signal, 2: image, 3: volume}
    for spatial, x in arrays.items():
        for name, *args in [
            ("max_pool", 2),
            ("max_pool", 3, 2, 1, 1, True),
            ("max_pool", 2, 3, 1, 2),
            ("max_pool", 3, 1, 1, 2, True),
            ("avg_pool", 2),
            ("avg_pool", 3, 2, 1, True, False),
            ("avg_pool", 4, 3, 2, True, True),
            ("adaptive_max_pool", 4),
            ("adaptive_avg_pool", 3),
            ("adaptive_avg_pool", 1),
        ]:
            ours, theirs = getattr(F, f"{name}{spatial}d"), getattr(T, f"{name}{spatial}d")
            helpers.assert_parity(
                torch,
                lambda t, ours=ours, args=args: ours(t, *args),
                lambda t, theirs=theirs, args=args: theirs(t, *args),
                [x],
            )
        _, theirs = getattr(T, f"max_pool{spatial}d")(torch.tensor(x), 3, 2, 1, return_indices=True)
        _, ours = MAX[spatial](cg.tensor(x), 3, 2, 1, return_indices=True)
        np.testing.assert_array_equal(values(ours), theirs.numpy())
        size = x.shape[2:]
        helpers.assert_parity(
            torch,
            lambda t, n=spatial, size=size: UNPOOL[n](
                *MAX[n](t, 2, return_indices=True), 2, output_size=size
            ),
            lambda t, n=spatial, size=size: getattr(T, f"max_unpool{n}d")(
                *getattr(T, f"max_pool{n}d")(t, 2, return_indices=True), 2, output_size=size
            ),
            [x],
        )
    helpers.assert_parity(
        torch,
        lambda t: F.avg_pool2d(t, 3, 2, divisor_override=5),
        lambda t: T.avg_pool2d(t, 3, 2, divisor_override=5),
        [image],
    )
