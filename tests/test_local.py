"""Locally connected layers."""

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
from tests.reference.local import local, local_gradients

pytestmark = pytest.mark.kernel

FUNCTIONS = {1: F.locally_connected1d, 2: F.locally_connected2d, 3: F.locally_connected3d}
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def out_size(size, kernel, stride, padding, dilation):
    return tuple(
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )


# (n, c, k, input, kernel, stride, padding, dilation)
CASES = [
    (2, 1, 1, (10,), (3,), (1,), (1,), (1,)),
    (70, 3, 17, (9,), (4,), (2,), (2,), (1,)),
    (3, 5, 8, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 16, 4, (7, 8), (3, 2), (2, 1), (0, 1), (2, 3)),
    (2, 2, 3, (4, 5, 6), (2, 3, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2)),
    (1, 40, 20, (3, 3), (3, 3), (1, 1), (3, 3), (1, 1)),
    (0, 2, 3, (5, 5), (2, 2), (1, 1), (0, 0), (1, 1)),
]


def draw_arrays(case, fill):
    n, c, k, size, kernel, *geometry = case
    out = out_size(size, kernel, *geometry)
    return [fill((n, c, *size)), fill((k, c, *out, *kernel)), fill((k, *out))], fill((n, k, *out))


def layer(case):
    return lambda x, w, b: FUNCTIONS[len(case[3])](x, w, b, *case[5:])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.quick), np.float64])
def test_is_exact_on_integers(case, dtype):
    rng = np.random.default_rng(0)
    (x, w, b), dy = draw_arrays(case, lambda s: integers(rng, s, dtype=dtype))
    got = forward_and_gradients(layer(case), [x, w, b], dy)
    expected = local(x, w, b, *case[5:]), *local_gradients(dy, x, w, *case[5:])
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape and g.dtype == dtype
        np.testing.assert_array_equal(g, e)


def test_adjoint():
    rng = np.random.default_rng(1)
    (x, w, _), dy = draw_arrays(CASES[3], lambda s: integers(rng, s))
    y, dx, dw = (
        a.astype(np.float64)
        for a in forward_and_gradients(lambda x, w: layer(CASES[3])(x, w, None), [x, w], dy)
    )
    assert (dy * y).sum() == (dx * x).sum() == (dw * w).sum()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_equal_filters_make_it_a_convolution(axes):
    rng = np.random.default_rng(2)
    x, filters = integers(rng, (2, 3, *[6] * axes)), integers(rng, (4, 3, *[3] * axes))
    conv = values(CONVS[axes](cg.tensor(x), cg.tensor(filters), None, 1, 1))
    expanded = filters.reshape(4, 3, *[1] * axes, *[3] * axes)
    w = np.broadcast_to(expanded, (4, 3, *[6] * axes, *[3] * axes))
    got = values(FUNCTIONS[axes](cg.tensor(x), cg.tensor(w), None, 1, 1))
    np.testing.assert_array_equal(got, conv)


def test_150_to_150_has_450_weights():
    w = cg.tensor(np.ones((1, 1, 150, 3), np.float32))
    y = F.locally_connected1d(cg.tensor(np.ones((1, 1, 150), np.float32)), w, padding=1)
    assert w.array.size == 450 and y.shape == (1, 1, 150)
    np.testing.assert_array_equal(values(y)[0, 0], [2] + [3] * 148 + [2])


def test_error_against_float64():
    rng = np.random.default_rng(3)
    (x, w, b), _ = draw_arrays(CASES[5], lambda s: rng.standard_normal(s).astype(np.float32))
    exact = local(x, w, b, *CASES[5][5:])
    plain = np.zeros_like(exact, np.float32)
    xp = np.pad(x, [(0, 0), (0, 0), (3, 3), (3, 3)])
    for c, i, j in np.ndindex(*w.shape[1:2], 3, 3):
        seen = xp[:, c, i : i + 7, j : j + 7]
        plain += seen[:, None] * w[None, :, c, :, :, i, j]
    got = values(layer(CASES[5])(cg.tensor(x), cg.tensor(w), cg.tensor(b)))
    assert_near_float64(got, exact, plain + b)


def test_same_bits_for_any_threads():
    rng = np.random.default_rng(4)
    case = (9, 6, 10, (12, 13), (3, 3), (1, 1), (1, 1), (1, 1))
    (x, w, b), dy = draw_arrays(case, lambda s: rng.standard_normal(s).astype(np.float32))
    assert_same_bits_for_any_threads(lambda: forward_and_gradients(layer(case), [x, w, b], dy))


def test_gradients():
    rng = np.random.default_rng(5)
    (x, w, b), _ = draw_arrays(CASES[4], rng.standard_normal)
    assert_gradients(layer(CASES[4]), [x, w, b], rng)


def test_parity_with_unfold(torch):
    rng = np.random.default_rng(6)
    case = CASES[2]
    (x, w, b), _ = draw_arrays(case, lambda s: rng.standard_normal(s).astype(np.float32))

    def theirs(x, w, b):
        columns = torch.nn.functional.unfold(x, 3, padding=1)  # (n, c * 9, positions)
        filters = w.permute(0, 1, 4, 5, 2, 3).reshape(8, 45, 42)
        return torch.einsum("nrp,krp->nkp", columns, filters).reshape(3, 8, 6, 7) + b

    assert_parity(torch, layer(case), theirs, [x, w, b])


def test_unbatched_and_channels_last():
    rng = np.random.default_rng(7)
    x, w = integers(rng, (1, 6, 7)), integers(rng, (4, 1, 4, 5, 3, 3))
    one = values(F.locally_connected2d(cg.tensor(x), cg.tensor(w)))
    batch = values(F.locally_connected2d(cg.tensor(x[None]), cg.tensor(w)))
    assert one.shape == (4, 4, 5) and lib.is_channels_last(batch)
    np.testing.assert_array_equal(one, batch[0])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_drawn_shapes(data):
    axes = data.draw(st.integers(1, 2))
    n, c, k = (data.draw(st.integers(lo, 5)) for lo in (0, 1, 1))
    kernel, stride, dilation, extra, padding = (
        tuple(data.draw(st.integers(lo, hi)) for _ in range(axes))
        for lo, hi in ((1, 3), (1, 3), (1, 2), (0, 4), (0, 3))
    )
    size = tuple(
        max(1, d * (f - 1) + 1 - 2 * p) + e for f, d, e, p in zip(kernel, dilation, extra, padding)
    )
    case = (n, c, k, size, kernel, stride, padding, dilation)
    rng = np.random.default_rng(8)
    (x, w, b), dy = draw_arrays(case, lambda s: integers(rng, s))
    x, dy = x[..., ::-1], dy[::-1]
    got = forward_and_gradients(layer(case), [x, w, b], dy)
    expected = local(x, w, b, *case[5:]), *local_gradients(dy, x, w, *case[5:])
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)


@pytest.mark.parametrize(
    "x, w, b, message",
    [
        ((2, 3, 8), (4, 3, 5, 3), None, r"\[locally_connected1d\].*\(6,\).*\(4, 3, 5, 3\)"),
        ((2, 3, 8), (4, 2, 6, 3), None, r"\[locally_connected1d\].*\(2, 3, 8\)"),
        ((2, 3, 8), (4, 3, 6, 3), (4,), r"\[locally_connected1d\] bias.*\(4, 3, 6, 3\).*\(4,\)"),
        (
            (2, 3, 8),
            (4, 3, 6),
            None,
            r"\[locally_connected1d\] weight must have 4 axes.*\(4, 3, 6\)",
        ),
    ],
)
def test_errors_name_the_shapes(x, w, b, message):
    tensors = [None if s is None else cg.tensor(np.zeros(s, np.float32)) for s in (x, w, b)]
    with pytest.raises(ValueError, match=message):
        F.locally_connected1d(*tensors)


def test_dtypes_must_agree():
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32"):
        F.locally_connected1d(
            cg.tensor(np.zeros((1, 1, 4), np.float32)), cg.tensor(np.zeros((1, 1, 2, 3)))
        )
