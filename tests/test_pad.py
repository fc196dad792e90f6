"""Padding: constant, reflect, replicate, circular."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
from convgrad import functional as F
from tests import helpers
from tests.device import lib, values
from tests.reference import move as reference_move
from tests.reference import resample as reference

pytestmark = pytest.mark.kernel


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_constant_is_exact(data):
    rank = data.draw(st.integers(1, 5))
    shape = tuple(data.draw(st.integers(0, 5)) for _ in range(rank))
    axes = data.draw(st.integers(0, rank))
    sides = [
        (data.draw(st.integers(-(n // 2), 3)), data.draw(st.integers(-(n // 2), 3)))
        for n in shape[rank - axes :]
    ]
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(0)
    x = helpers.integers(rng, shape, dtype=dtype)[..., ::-1]
    leaf = cg.tensor(x, requires_grad=True)
    y = F.pad(leaf, [n for side in sides[::-1] for n in side], value=3.0)
    sides = [(0, 0)] * (rank - axes) + sides
    low, high = [a for a, _ in sides], [b for _, b in sides]
    np.testing.assert_array_equal(values(y), reference_move.pad_constant(x, low, high, 3.0))
    dy = helpers.integers(rng, y.shape, dtype=dtype)
    y.backward(cg.tensor(dy))
    expected = reference_move.pad_constant(dy, [-a for a in low], [-b for b in high], 0.0)
    np.testing.assert_array_equal(values(leaf.grad), expected)
    assert lib.is_channels_last(y.array) and lib.is_channels_last(leaf.grad.array)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_repeating_modes_are_exact(data):
    spatial = data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["reflect", "replicate", "circular"]))
    size = [data.draw(st.integers(2, 5)) for _ in range(spatial)]
    most = [{"reflect": n - 1, "replicate": 7, "circular": n}[mode] for n in size]
    low = [data.draw(st.integers(0, m)) for m in most]
    high = [data.draw(st.integers(0, m)) for m in most]
    rng = np.random.default_rng(0)
    shape = (data.draw(st.integers(0, 2)), data.draw(st.sampled_from([1, 5, 16])), *size)
    x = helpers.integers(rng, shape)
    leaf = cg.tensor(x, requires_grad=True)
    y = F.pad(leaf, [n for side in zip(low[::-1], high[::-1]) for n in side], mode)
    matrices = [reference.padding(n, a, b, mode) for n, a, b in zip(size, low, high)]
    np.testing.assert_array_equal(values(y), reference.apply(x, matrices))
    dy = helpers.integers(rng, y.shape)
    y.backward(cg.tensor(dy))
    np.testing.assert_array_equal(values(leaf.grad), reference.apply(dy, [m.T for m in matrices]))
    assert np.sum(dy.astype(float) * values(y)) == np.sum(values(leaf.grad).astype(float) * x)
    assert lib.is_channels_last(y.array) and lib.is_channels_last(leaf.grad.array)


@pytest.mark.quick
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_unbatched_and_values(mode):
    x = np.arange(12, dtype=np.float64).reshape(2, 2, 3)
    y, dx = helpers.forward_and_gradients(lambda t: F.pad(t, (1, 2, 1, 0), mode), [x])
    name = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (1, 0), (1, 2)), name[mode]))
    assert dx.shape == x.shape and dx.sum() == (12 if mode == "constant" else 36)


def test_copies_bits():
    x = np.array([[[-0.0, np.nan, np.inf, 1e-42]]], np.float32)
    for mode in ("constant", "reflect", "replicate", "circular"):
        y = np.ascontiguousarray(values(F.pad(cg.tensor(x), (2, 1), mode)))
        assert y[..., 2:6].tobytes() == x.tobytes()


def test_same_bits_for_any_threads():
    x = np.random.default_rng(2).standard_normal((3, 9, 40, 41)).astype(np.float32)

    def run():
        out = []
        for mode in ("constant", "reflect", "replicate", "circular"):
            out += helpers.forward_and_gradients(lambda t, m=mode: F.pad(t, (3, 9, 8, 5), m), [x])
        return out

    helpers.assert_same_bits_for_any_threads(run)


def test_gradients():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 5, 6))
    for mode in ("constant", "reflect", "replicate", "circular"):
        helpers.assert_gradients(lambda t, m=mode: F.pad(t, (2, 1, 4, 3), m), [x], rng)
    helpers.assert_gradients(lambda t: F.pad(t, (-2, 1, 4, -3, 1, 0), value=2.5), [x], rng)


def test_parity(torch):
    T = torch.nn.functional
    x = np.random.default_rng(5).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    cases = [((1, 2), "constant", None), ((0, 1, -2, 3, 1, 1, 2, 0), "constant", 1.5)]
    for mode in ("reflect", "replicate", "circular"):
        cases += [
            ((3, 2), mode, None),
            ((2, 3, 1, 0), mode, None),
            ((1, 2, 3, 2, 1, 3), mode, None),
        ]
        cases += [((-1, 2, 1, -2), mode, None)]
    for sides, mode, value in cases:
        a = x if mode == "constant" else x[(slice(None),) * 2 + (0,) * (3 - len(sides) // 2)]
        helpers.assert_parity(
            torch,
            lambda t, s=sides, m=mode, v=value: F.pad(t, s, m, v),
            lambda t, s=sides, m=mode, v=value: T.pad(t, s, m, v),
            [a],
        )


def test_errors():
    x = cg.tensor(np.zeros((1, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"low and a high entry.*\(1, 2, 5, 6\). Got \(1, 2, 3\)"):
        F.pad(x, (1, 2, 3))
    with pytest.raises(ValueError, match=r"by at most 5. Got 6 and 0"):
        F.pad(x, (6, 0, 0, 0), "reflect")
    with pytest.raises(ValueError, match=r"by at most 5. Got 0 and 7"):
        F.pad(x, (0, 0, 0, 7), "circular")
    with pytest.raises(ValueError, match=r"size of axis 3 must not be negative. Got.*-4 and -3"):
        F.pad(x, (-4, -3))
    with pytest.raises(ValueError, match=r"mode must be .* Got 'mirror'"):
        F.pad(x, (1, 1), "mirror")
    with pytest.raises(ValueError, match=r"'reflect' takes no value. Got 2"):
        F.pad(x, (1, 1), "reflect", 2)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 5, 6\) and pad \(1, 1\)"):
        F.pad(x, (1, 1), "reflect")
    with pytest.raises(ValueError, match=r"at least 1. Got an axis of 6 with -3 and -3"):
        F.pad(x, (-3, -3, 0, 0), "replicate")
