"""Interpolation: nearest and linear in 1-D, 2-D and 3-D."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
from convgrad import functional as F
from tests import helpers
from tests.device import lib, values
from tests.reference import resample as reference

pytestmark = pytest.mark.kernel

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def check(fn, x, matrices, exact):
    """Values and gradients of the oracle's matrices; channels-last."""
    leaf = cg.tensor(x, requires_grad=True)
    y = fn(leaf)
    dy = helpers.integers(np.random.default_rng(3), y.shape, dtype=x.dtype)
    y.backward(cg.tensor(dy))
    expected = reference.apply(x, matrices)
    expected_dx = reference.apply(dy, [m.T for m in matrices])
    if exact:
        np.testing.assert_array_equal(values(y), expected)
        np.testing.assert_array_equal(values(leaf.grad), expected_dx)
    else:
        for got, want in ((values(y), expected), (values(leaf.grad), expected_dx)):
            # float32 positions round the weights: an error in proportion to what they multiply.
            scale = max(10.0, float(np.abs(want).max(initial=0)))
            tol = scale * (2e-6 if x.dtype == np.float32 else 1e-13)
            np.testing.assert_allclose(got, want, rtol=0, atol=tol)
    assert lib.is_channels_last(y.array) and lib.is_channels_last(leaf.grad.array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nearest_and_linear(data):
    spatial = data.draw(st.integers(1, 3))
    size = [data.draw(st.integers(1, 7)) for _ in range(spatial)]
    out = [data.draw(st.integers(1, 12)) for _ in range(spatial)]
    c = data.draw(st.sampled_from([1, 3, 8, 13, 36]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    shape = (data.draw(st.integers(0, 3)), c, *size)
    x = helpers.integers(np.random.default_rng(0), shape, dtype=dtype)
    check(
        lambda t: F.interpolate(t, out),
        x,
        [reference.nearest(n, m) for n, m in zip(size, out)],
        exact=True,
    )
    corners = data.draw(st.booleans())
    check(
        lambda t: F.interpolate(t, out, mode=LINEAR[spatial], align_corners=corners),
        x,
        [reference.linear(n, m, corners) for n, m in zip(size, out)],
        exact=False,
    )


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [1, 5, 16])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_doubling_is_exact(spatial, c, dtype):
    x = helpers.integers(np.random.default_rng(0), (2, c, *(3, 5, 6)[-spatial:]), dtype=dtype)
    size = x.shape[2:]
    check(
        lambda t: F.interpolate(t, scale_factor=2),
        x,
        [reference.nearest(n, 2 * n) for n in size],
        exact=True,
    )
    check(  # weights of 1/4 and 3/4
        lambda t: F.interpolate(t, scale_factor=2, mode=LINEAR[spatial]),
        x,
        [reference.linear(n, 2 * n, False) for n in size],
        exact=True,
    )


def test_nearest_moves_values_untouched():
    x = np.array([[[-0.0, np.nan, np.inf, 1e-42]]], np.float32)
    y = values(F.interpolate(cg.tensor(x), 8))
    assert np.ascontiguousarray(y).tobytes() == np.repeat(x, 2, 2).tobytes()


def test_adjoint_identity_is_exact():
    rng = np.random.default_rng(1)
    x = helpers.integers(rng, (2, 5, 4, 6))
    for options in (
        {"scale_factor": 2, "mode": "bilinear"},
        {"size": (3, 11)},
        {"size": (7, 11), "mode": "bilinear", "align_corners": True},
    ):
        dy = helpers.integers(rng, F.interpolate(cg.tensor(x), **options).shape)
        y, dx = helpers.forward_and_gradients(lambda t, o=options: F.interpolate(t, **o), [x], dy)
        assert np.sum(dy.astype(float) * y) == np.sum(dx.astype(float) * x)


def test_gaussian_error():
    x = np.random.default_rng(0).standard_normal((2, 16, 9, 10)).astype(np.float32)
    y = values(F.interpolate(cg.tensor(x), (20, 17), mode="bilinear"))
    rows, cols = reference.linear(9, 20, False), reference.linear(10, 17, False)
    plain = np.zeros(y.shape, np.float32)
    for i, j in np.ndindex(9, 10):
        weight = (rows[:, i, None] * cols[None, :, j]).astype(np.float32)
        plain += weight * x[:, :, i, j, None, None]
    helpers.assert_near_float64(y, reference.apply(x, [rows, cols]), plain)


def test_same_bits_for_any_threads():
    x = np.random.default_rng(2).standard_normal((2, 9, 30, 41)).astype(np.float32)

    def run():
        out = []
        for options in (
            {"scale_factor": 2},
            {"scale_factor": 1.7, "mode": "bilinear"},
            {"size": (13, 90), "mode": "bilinear", "align_corners": True},
            {"size": (13, 20), "mode": "bilinear", "antialias": True},
        ):
            out += helpers.forward_and_gradients(lambda t, o=options: F.interpolate(t, **o), [x])
        return out

    helpers.assert_same_bits_for_any_threads(run)


def test_gradients():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 5, 6))
    for options in (
        {"size": (3, 11)},
        {"scale_factor": (0.7, 1.9), "mode": "bilinear"},
        {"size": (9, 4), "mode": "bilinear", "align_corners": True},
        {"size": (3, 4), "mode": "bilinear", "antialias": True},
    ):
        helpers.assert_gradients(lambda t, o=options: F.interpolate(t, **o), [x], rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity(torch, dtype):
    T = torch.nn.functional
    rng = np.random.default_rng(5)
    volume = rng.standard_normal((2, 3, 5, 7, 10)).astype(dtype)
    for spatial, x in {1: volume[:, :, 0, 0], 2: volume[:, :, 0], 3: volume}.items():
        modes = [{"mode": "nearest"}]
        modes += [{"mode": LINEAR[spatial], "align_corners": a} for a in (None, True, False)]
        if spatial == 2:
            modes += [{"mode": "bilinear", "antialias": True, "align_corners": False}]
            modes += [{"mode": "bilinear", "antialias": True, "align_corners": True}]
        sizes = [{"size": n} for n in (1, 7, 13)]
        sizes += [{"scale_factor": f} for f in (0.15, 0.5, 1.2, 2.0, 2.6)]
        sizes += [{"scale_factor": f, "recompute_scale_factor": True} for f in (1.7,)]
        for options in [{**m, **s} for m in modes for s in sizes]:
            try:
                T.interpolate(torch.tensor(x), **options)
            except RuntimeError:  # an empty output
                with pytest.raises(ValueError, match="output size must be at least 1"):
                    F.interpolate(cg.tensor(x), **options)
                continue
            helpers.assert_parity(
                torch,
                lambda t, o=options: F.interpolate(t, **o),
                lambda t, o=options: T.interpolate(t, **o),
                [x],
            )


def test_nearest_picks_the_same_neighbours_as_pytorch(torch):
    for n in (3, 5, 49, 50):
        x = np.arange(n, dtype=np.float32)[None, None]
        for factor in (0.4, 0.7, 1.1, 1.3, 1.7, 2.3, 3.3):
            theirs = torch.nn.functional.interpolate(torch.tensor(x), scale_factor=factor)
            ours = F.interpolate(cg.tensor(x), scale_factor=factor)
            np.testing.assert_array_equal(values(ours), theirs.numpy())
        for out in range(1, 3 * n):
            theirs = torch.nn.functional.interpolate(torch.tensor(x), out)
            np.testing.assert_array_equal(values(F.interpolate(cg.tensor(x), out)), theirs.numpy())


def test_errors():
    x = cg.tensor(np.zeros((1, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"Give exactly one .* Got None and None"):
        F.interpolate(x)
    with pytest.raises(ValueError, match=r"Give exactly one .* Got 3 and 2"):
        F.interpolate(x, 3, 2)
    with pytest.raises(ValueError, match=r"'bilinear' for an input of 4 axes. Got 'linear'"):
        F.interpolate(x, 3, mode="linear")
    with pytest.raises(ValueError, match=r"takes no align_corners. Got True"):
        F.interpolate(x, 3, align_corners=True)
    with pytest.raises(ValueError, match=r"size must have 2 entries. Got \(3, 3, 3\)"):
        F.interpolate(x, (3, 3, 3))
    with pytest.raises(ValueError, match=r"output size must be at least 1. Got \(0, 0\)"):
        F.interpolate(x, 0)
    with pytest.raises(ValueError, match=r"scale_factor must be positive. Got -1"):
        F.interpolate(x, scale_factor=-1.0)
    with pytest.raises(ValueError, match=r"3, 4 or 5 axes.*\(1, 2\)"):
        F.interpolate(cg.tensor(np.zeros((1, 2), np.float32)), 3)
    with pytest.raises(ValueError, match=r"antialias needs mode='bilinear'. Got 'nearest'"):
        F.interpolate(x, 3, antialias=True)
    with pytest.raises(ValueError, match=r"empty but for its batch.*\(1, 2, 0, 6\)"):
        F.interpolate(cg.tensor(np.zeros((1, 2, 0, 6), np.float32)), 3)
