"""Philox, and dropout of elements and of channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from convgrad.random import default_generator
from tests.device import lib, tensor_on, values
from tests.helpers import assert_gradients, assert_same_bits_for_any_threads, forward_and_gradients
from tests.reference import dropout as reference

pytestmark = pytest.mark.kernel


def state(*numbers: int) -> np.ndarray:
    return np.array([n % 2**64 for n in numbers], np.uint64).view(np.int64)


def words_of(count: int, key: int, low: int, high: int = 0) -> list[int]:
    words = np.empty(count, np.int32)
    lib.random_words(words, state(key, low, high))
    return words.view(np.uint32).tolist()


# The known answers published with Random123 (kat_vectors): counter, key, block.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.quick
@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_philox_known_answers(counter, key, block):
    c, k = counter, key
    assert tuple(reference.philox(c, k)) == block
    got = words_of(4, k[0] | k[1] << 32, c[0] | c[1] << 32, c[2] | c[3] << 32)
    assert tuple(got) == block


@pytest.mark.quick
def test_philox_counts_across_32_bits():
    first = 2**32 - 3
    got = words_of(80, 7, first)
    for i in range(20):
        at = first + i
        assert got[4 * i : 4 * i + 4] == reference.philox((at % 2**32, at >> 32, 0, 0), (7, 0))


@pytest.mark.quick
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mask_is_the_stream(p, dtype):
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 64, 1000):
        x = rng.standard_normal(n).astype(dtype)
        y = lib.dropout(x, p, state(12345, 10**10), False)
        m = reference.mask(12345, 10**10, n, p).astype(dtype)
        assert y.dtype == dtype and (y == x * m).all()
    for shape in ((2, 3, 4), (3, 5, 1), (2, 130, 3, 2), (0, 3, 2), (3, 61, 2)):
        x = rng.standard_normal(shape).astype(dtype)
        y = lib.dropout(x, p, state(5, 3), True)
        m = reference.mask(5, 3, shape[0] * shape[1], p).astype(dtype)
        assert (y == x * m.reshape(*shape[:2], *[1] * (len(shape) - 2))).all()


def test_elements_are_numbered_channels_last():
    cg.manual_seed(3)
    x = np.ones((2, 3, 4, 5), np.float32)
    y = values(F.dropout(cg.tensor(x), 0.5))
    cg.manual_seed(3)
    flat = values(F.dropout(cg.tensor(np.ones(x.size, np.float32)), 0.5))
    assert (np.moveaxis(y, 1, -1).ravel() == flat).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_statistics(per_channel):
    x = np.ones((400, 500, 2) if per_channel else (400, 500), np.float32)
    for p in (0.1, 0.5, 0.8):
        y = lib.dropout(x, p, state(1, 0), per_channel)
        draws = y[..., 0] if per_channel else y
        deviation = np.sqrt(p * (1 - p) / draws.size)
        assert abs((draws == 0).mean() - p) < 5 * deviation
        assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}
        if per_channel:
            assert (y[..., 0] == y[..., 1]).all()


@pytest.mark.quick
def test_backward_draws_the_same_mask_again():
    """Whatever was drawn in between, and however often backward runs."""
    x = cg.tensor(np.random.default_rng(1).standard_normal((3, 4, 5)), requires_grad=True)
    for fn in (F.dropout, F.dropout1d):
        x.grad = None
        y = fn(x, 0.4)
        F.dropout(x, 0.4)
        y.backward(cg.tensor(np.ones(x.shape)), retain_graph=True)
        assert (values(y) == values(x) * values(x.grad)).all()
        assert not y.node.saved


def test_gradients_through_the_tape():
    rng = np.random.default_rng(2)

    def fixed(t):
        cg.manual_seed(9)
        return F.dropout2d(F.dropout(t, 0.3), 0.3)

    assert_gradients(fixed, [rng.standard_normal((2, 4, 3, 3))], rng)


@pytest.mark.parametrize("fn", [F.dropout, F.dropout2d])
def test_same_bits_for_any_threads(fn):
    x = np.random.default_rng(3).standard_normal((3, 70, 41, 37), np.float32)

    def both():
        cg.manual_seed(4)
        return forward_and_gradients(lambda t: fn(t, 0.5), [x])

    assert_same_bits_for_any_threads(both)


def test_calls_draw_anew_and_seeds_repeat():
    x = cg.tensor(np.ones(1001, np.float32))
    cg.manual_seed(1)
    first, second = values(F.dropout(x)), values(F.dropout(x))
    assert (first != second).any()
    cg.manual_seed(1)
    assert (values(F.dropout(x)) == first).all() and (values(F.dropout(x)) == second).all()


def test_evaluation_and_p_0_are_the_identity():
    x = cg.tensor(np.ones((2, 3, 4), np.float32))
    offset = default_generator.state_dict()["offset"]
    assert F.dropout(x, training=False) is x and F.dropout(x, 0.0) is x
    assert F.dropout1d(x, training=False) is x
    assert default_generator.state_dict()["offset"] == offset
    assert (values(F.dropout(x, 1.0)) == 0).all()


def test_parity_of_the_law(torch):
    """PyTorch's draws are its own; its zeros, scales, NaN and shapes are ours."""
    x = np.full((50, 40, 2, 2), 3.0, np.float32)
    for name in ("dropout", "dropout2d"):
        ours = values(getattr(F, name)(cg.tensor(x), 0.25))
        theirs = getattr(torch.nn.functional, name)(torch.tensor(x), 0.25).numpy()
        assert ours.shape == theirs.shape and set(np.unique(ours)) == set(np.unique(theirs))
    nan = cg.tensor(np.full(100, np.nan, np.float32))
    assert np.isnan(values(F.dropout(nan))).all()  # 0 times NaN, as there


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=3, max_size=5),
    steps=st.lists(st.sampled_from([1, 2, -1, -2]), min_size=5, max_size=5),
    per_channel=st.booleans(),
)
def test_any_shape_and_strides(shape, steps, per_channel):
    rng = np.random.default_rng(5)
    whole = rng.standard_normal([abs(s) * n for s, n in zip(steps, shape)])
    x = whole[tuple(slice(None, None, s) for s in steps[: len(shape)])]
    y = lib.dropout(x, 0.5, state(1, 2), per_channel)
    dense = lib.dropout(np.ascontiguousarray(x), 0.5, state(1, 2), per_channel)
    assert y.shape == x.shape and (y == dense).all() and ((y == 0) | (y == 2 * x)).all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 4), (2, 3, 1, 1)])
def test_channels_last_stays(shape):
    x = np.moveaxis(np.ones((shape[0], *shape[2:], shape[1]), np.float32), -1, 1)
    for fn in (F.dropout, F.dropout2d):
        t = tensor_on(x, requires_grad=True)
        y = fn(t, 0.5)
        y.backward(cg.tensor(np.ones(shape, np.float32)))  # C order: mixed with channels-last
        assert lib.is_channels_last(y.array) and lib.is_channels_last(t.grad.array)


def test_unbatched_channels():
    for fn, shape in (
        (F.dropout1d, (40, 3)),
        (F.dropout2d, (40, 3, 2)),
        (F.dropout3d, (40, 1, 3, 2)),
    ):
        y = values(fn(cg.tensor(np.ones(shape, np.float32)), 0.5))
        flat = y.reshape(40, -1)
        assert y.shape == shape and (flat == flat[:, :1]).all() and 0 < (flat == 0).mean() < 1


@pytest.mark.quick
def test_errors_name_the_values():
    x = cg.tensor(np.ones((2, 6), np.float32))
    with pytest.raises(ValueError, match=r"\[dropout\] p must be from 0 to 1\. Got 1.5"):
        F.dropout(x, 1.5)
    with pytest.raises(ValueError, match=r"\[dropout1d\] p must be from 0 to 1\. Got -0.1"):
        F.dropout1d(x, -0.1)
    with pytest.raises(ValueError, match=r"\[dropout\] p must be from 0 to 1\. Got nan"):
        F.dropout(x, float("nan"))
    with pytest.raises(
        ValueError, match=r"\[dropout3d\] input must have 5 axes.*Got shape \(2, 6\)"
    ):
        F.dropout3d(x)
    with pytest.raises(TypeError, match=r"\[dropout\] input .* Got int64"):
        F.dropout(cg.tensor(np.ones(3, np.int64)))
    with pytest.raises(ValueError, match=r"\[dropout\] state .* 2 numbers\. Got shape \(3,\)"):
        lib.dropout(x.array, 0.5, state(1, 2, 3), False)
