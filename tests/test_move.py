"""Moving data: layout conversion, cat, narrow, rows by index, constant padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import helpers
from tests.device import lib, raises_for_value
from tests.reference import move as reference

pytestmark = pytest.mark.kernel


def views(draw, shape, dtype):
    """An array of this shape whose memory is permuted, stepped, reversed or broadcast."""
    rank = len(shape)
    order = draw(st.permutations(range(rank)))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in range(rank)]
    base = np.arange(np.prod([n * abs(s) for n, s in zip(shape, steps)]), dtype=dtype)
    base = base.reshape([shape[i] * abs(steps[i]) for i in order])
    x = base.transpose(np.argsort(order))[(..., *[slice(None, None, s) for s in steps])]
    if rank and shape[-1] > 1 and draw(st.booleans()):
        x = np.broadcast_to(x[..., :1], shape)
    return x


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_layouts_of_any_view(data):
    rank = data.draw(st.integers(0, 6))
    shape = tuple(data.draw(st.integers(0, 9)) for _ in range(rank))
    x = views(data.draw, shape, data.draw(st.sampled_from([np.float32, np.float64])))
    last, c = lib.channels_last(x), lib.contiguous(x)
    assert lib.is_channels_last(last) and c.flags.c_contiguous
    np.testing.assert_array_equal(last, x)
    np.testing.assert_array_equal(c, x)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 37, 21, 45),
        (1, 3, 90, 97),
        (1, 130, 150),
        (2, 1, 9, 200),
        (2, 16, 16, 16),
        *[(2, c, 7, 11) for c in (2, 4, 5, 6, 7, 8, 9, 15)],
        (1, 5, 200, 301),  # more than one work item
    ],
)
def test_transposition_is_exact(shape, dtype):
    x = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    x.flat[5] = np.nan
    x.flat[7] = -0.0
    y = lib.channels_last(x)
    assert lib.is_channels_last(y)
    assert np.ascontiguousarray(y).tobytes() == x.tobytes()
    assert lib.contiguous(y).tobytes() == x.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cat_and_narrow(data):
    rank = data.draw(st.integers(1, 5))
    shape = [data.draw(st.integers(0, 5)) for _ in range(rank)]
    axis = data.draw(st.integers(-rank, rank - 1))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.int64, np.int32]))
    parts = []
    for _ in range(data.draw(st.integers(1, 4))):
        shape[axis] = data.draw(st.integers(0, 7))
        parts.append(views(data.draw, tuple(shape), dtype))
    y = lib.cat(parts, axis)
    assert lib.is_channels_last(y)
    np.testing.assert_array_equal(y, np.concatenate(parts, axis))
    check_pieces(y, parts, axis)


def check_pieces(y, parts, axis):
    """narrow and split give back what was joined."""
    start = 0
    pieces = lib.split(y, axis, [part.shape[axis] for part in parts])
    assert len(pieces) == len(parts)
    for part, piece in zip(parts, pieces):
        narrowed = lib.narrow(y, axis, start, part.shape[axis])
        assert lib.is_channels_last(piece) and lib.is_channels_last(narrowed)
        np.testing.assert_array_equal(narrowed, part)
        np.testing.assert_array_equal(piece, part)
        start += part.shape[axis]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("shape", [(2, 0, 9, 10), (3, 0, 150), (1, 0, 4, 5, 6), (70, 0)])
@pytest.mark.parametrize("channels", [(8, 8), (1, 3, 2), (16, 32), (5, 0, 40), (2, 19)])
def test_channels_side_by_side(shape, channels, dtype):
    rng = np.random.default_rng(4)
    sizes = [(shape[0], c, *shape[2:]) for c in channels]
    parts = [lib.channels_last(rng.integers(-9, 9, s).astype(dtype)) for s in sizes]
    y = lib.cat(parts, 1)
    np.testing.assert_array_equal(y, np.concatenate(parts, 1))
    check_pieces(y, parts, 1)


def test_cat_and_narrow_errors():
    a, b = np.zeros((2, 3, 4), np.float32), np.zeros((2, 4, 4), np.float32)
    for lengths in ([1, 1], [4, -1]):
        with pytest.raises(
            ValueError, match=r"\[split\] The lengths must add up to that of axis 1"
        ):
            lib.split(a, 1, lengths)
    with pytest.raises(ValueError, match=r"except along axis 0. Got \(2, 3, 4\) and \(2, 4, 4\)"):
        lib.cat([a, b], 0)
    with pytest.raises(ValueError, match=r"from -3 to 2 for shape \(2, 3, 4\). Got 3"):
        lib.cat([a, a], 3)
    with pytest.raises(ValueError, match="at least 1 array"):
        lib.cat([], 0)
    with pytest.raises(TypeError, match="float32 and float64"):
        lib.cat([a, a.astype(np.float64)], 0)
    with pytest.raises(ValueError, match=r"axis 1 of shape \(2, 3, 4\). Got start 2 and length 2"):
        lib.narrow(a, 1, 2, 2)


@pytest.mark.quick
@pytest.mark.parametrize("tail", [(), (1,), (5,), (3, 4, 2), (300,), (17, 20)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_by_index_and_its_adjoint(tail, dtype):
    rng = np.random.default_rng(0)
    x = helpers.integers(rng, (40, *tail), dtype=dtype)
    index = rng.integers(-40, 40, 300)
    y = lib.index_rows(x, index)
    assert lib.is_channels_last(y)
    np.testing.assert_array_equal(y, x[index])
    dy = helpers.integers(rng, y.shape, dtype=dtype)
    dx = lib.index_add(index, dy, 40)
    assert lib.is_channels_last(dx)
    np.testing.assert_array_equal(dx, reference.index_add(index, dy, 40))
    assert (dy * y).sum() == (dx * x).sum()


def test_index_add_sums_duplicates_in_index_order():
    rng = np.random.default_rng(1)
    for shape in [(20000,), (3000, 40), (100, 1000)]:
        index = rng.integers(0, 7, shape[0])
        values = rng.standard_normal(shape).astype(np.float32)
        out = lib.index_add(index, values, 7)
        np.testing.assert_array_equal(out, reference.index_add(index, values, 7))
        helpers.assert_same_bits_for_any_threads(
            lambda index=index, values=values: [lib.index_add(index, values, 7)]
        )


def test_index_errors():
    x = np.zeros((4, 2), np.float32)
    for bad in (4, -5, 2**40):
        with raises_for_value(IndexError, rf"from -4 to 3. Got {bad}", bad):
            lib.index_rows(x, np.array([0, bad]))
        with raises_for_value(IndexError, rf"from -4 to 3. Got {bad}", bad):
            lib.index_add(np.array([0, bad]), x[:2], 4)
    with pytest.raises(ValueError, match=r"one row per index, 3. Got shape \(4, 2\)"):
        lib.index_add(np.array([0, 1, 2]), x, 4)
    assert lib.index_rows(x, np.zeros(0, np.int64)).shape == (0, 2)
    np.testing.assert_array_equal(lib.index_add(np.zeros(0, np.int64), x[:0], 3), np.zeros((3, 2)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pad_constant(data):
    rank = data.draw(st.integers(1, 5))
    shape = tuple(data.draw(st.integers(0, 5)) for _ in range(rank))
    x = views(data.draw, shape, np.float32)
    low = tuple(data.draw(st.integers(-3, 3)) for _ in range(rank))
    high = tuple(data.draw(st.integers(-3, 3)) for _ in range(rank))
    if any(n + a + b < 0 for n, a, b in zip(shape, low, high)):
        with pytest.raises(ValueError, match="must not be negative"):
            lib.pad_constant(x, low, high, 7.0)
        return
    y = lib.pad_constant(x, low, high, 7.0)
    assert lib.is_channels_last(y)
    np.testing.assert_array_equal(y, reference.pad_constant(x, low, high, 7.0))


def test_same_bits_for_any_threads():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 20, 60, 70)).astype(np.float32)
    index = rng.integers(0, 3, 9)
    helpers.assert_same_bits_for_any_threads(
        lambda: [
            lib.channels_last(x),
            lib.contiguous(x[:, ::-1]),
            lib.cat([x, x], 1),
            lib.narrow(x, 1, 3, 9),
            *lib.split(lib.channels_last(x), 1, [3, 17]),
            lib.index_rows(x, index),
            lib.add(x, x[:, :, ::-1]),
            lib.pad_constant(x, (0, 0, 1, -2), (0, 0, 3, 4), 0.5),
        ]
    )
