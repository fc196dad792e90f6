"""Convolution and transposed convolution, forward and backward, by every algorithm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
import convgrad.functional as F
from tests.device import ON_CPU, lib
from tests.helpers import (
    assert_gradients,
    assert_near_float64,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
    integers,
)
from tests.reference.conv import (
    conv,
    conv_gradients,
    conv_transpose,
    conv_transpose_gradients,
    sequential_conv,
)

pytestmark = pytest.mark.kernel

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
EACH_ALGORITHM = ("auto", "generic", "tile", "slide", "depthwise", "fold")
ALGORITHMS = EACH_ALGORITHM if ON_CPU else ("auto", "generic")

# x (N, C, ...), w (K, C / groups, ...), arguments
CASES = {
    "one-pixel": ((1, 1, 1), (1, 1, 1), {}),
    "1d": ((2, 1, 30), (16, 1, 3), {}),
    "1d-long": ((1, 3, 900), (5, 3, 5), {"padding": 2}),
    "lenet-1": ((2, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "lenet-2": ((2, 6, 14, 14), (16, 6, 5, 5), {}),
    "3x3": ((2, 8, 9, 25), (8, 8, 3, 3), {"padding": 1}),
    "narrow": ((2, 4, 9, 25), (4, 4, 3, 3), {"padding": 1}),
    "3x3-wide-tail": ((1, 5, 7, 13), (37, 5, 3, 3), {"padding": 1}),
    "2x4-even": ((2, 3, 9, 8), (4, 3, 2, 4), {"padding": (1, 2)}),
    "2x2": ((2, 5, 6, 19), (7, 5, 2, 2), {"padding": 1}),
    "1x1": ((2, 9, 6, 7), (20, 9, 1, 1), {}),
    "1x1-strided": ((2, 9, 6, 7), (4, 9, 1, 1), {"stride": 2}),
    "1x1-padded": ((1, 2, 3, 3), (3, 2, 1, 1), {"padding": 2}),
    "column": ((2, 4, 40, 1), (8, 4, 3, 1), {"padding": (1, 0)}),
    "3d": ((1, 4, 6, 7, 14), (8, 4, 3, 3, 3), {"padding": 1}),
    "3d-first": ((1, 1, 5, 5, 13), (8, 1, 3, 3, 3), {"padding": 1}),
    "3d-up": ((1, 3, 4, 6, 8), (5, 3, 2, 2, 2), {"stride": 2}),
    "up-3": ((2, 3, 9, 12), (7, 3, 3, 3), {"stride": 3}),
    "strided": ((2, 5, 15, 16), (17, 5, 3, 3), {"stride": 2, "padding": 1}),
    "strided-gaps": ((1, 2, 11, 11), (3, 2, 2, 2), {"stride": (5, 3)}),
    "dilated": ((1, 3, 17, 19), (9, 3, 3, 3), {"dilation": (2, 3), "padding": (2, 3)}),
    "dilated-rows": ((2, 3, 15, 9), (9, 3, 4, 4), {"dilation": (3, 1), "padding": (7, 2)}),
    "dilated-strided": ((1, 2, 21, 23), (3, 2, 3, 3), {"dilation": 2, "stride": 4, "padding": 3}),
    "dilated-strided-odd": ((2, 2, 30), (3, 2, 4), {"dilation": 3, "stride": 2, "padding": 4}),
    "grouped": ((2, 12, 8, 9), (18, 4, 3, 3), {"groups": 3, "padding": 1}),
    "grouped-dilated": ((1, 16, 9, 9), (6, 8, 3, 3), {"groups": 2, "dilation": 2}),
    "grouped-1x1": ((2, 16, 5, 4), (4, 8, 1, 1), {"groups": 2}),
    "depthwise": ((2, 11, 9, 20), (11, 1, 3, 3), {"groups": 11, "padding": 1}),
    "depthwise-wide": ((1, 20, 6, 23), (20, 1, 3, 5), {"groups": 20, "padding": (1, 2)}),
    "depthwise-whole": ((1, 16, 9, 9), (16, 1, 3, 3), {"groups": 16}),
    "depthwise-strided": ((1, 8, 11, 9), (8, 1, 5, 3), {"groups": 8, "stride": 2, "dilation": 2}),
    "depthwise-twice": ((1, 5, 8, 8), (10, 1, 3, 3), {"groups": 5, "padding": 1}),
    "padding-beyond-kernel": ((1, 2, 3, 4), (3, 2, 2, 3), {"padding": 5}),
    "same": ((1, 2, 7, 8), (3, 2, 5, 3), {"padding": "same", "dilation": (1, 2)}),
    "same-even": ((1, 2, 7, 8), (3, 2, 4, 3), {"padding": "same"}),
    "valid": ((1, 2, 7, 8), (3, 2, 4, 3), {"padding": "valid"}),
    "pairs": ((1, 2, 7, 8), (3, 2, 2, 3), {"padding": ((0, 3), (2, 1))}),
    "many-phases": ((1, 1, 20, 20), (2, 1, 3, 3), {"stride": 10}),
    "big-kernel": ((1, 2, 40, 3), (3, 2, 33, 3), {"padding": (16, 1)}),
    "no-images": ((0, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
    "no-channels": ((2, 0, 5, 5), (4, 0, 3, 3), {"padding": 1}),
    "empty-axis": ((2, 3, 0, 5), (4, 3, 1, 3), {"padding": 1}),
}

# x (N, C, ...), w (C, K / groups, ...), arguments
TRANSPOSED = {
    "1d": ((2, 3, 7), (3, 4, 3), {}),
    "up-2": ((2, 16, 5, 6), (16, 8, 2, 2), {"stride": 2}),
    "up-2-3d": ((1, 8, 2, 3, 4), (8, 5, 2, 2, 2), {"stride": 2}),
    "up-2-odd": ((1, 4, 5, 6), (4, 3, 2, 2), {"stride": 2, "output_padding": 1}),
    "3x3-2": ((2, 6, 5, 7), (6, 9, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "4x4-2": ((1, 4, 6, 6), (4, 3, 4, 4), {"stride": 2, "padding": 1}),
    "grouped": ((1, 6, 5, 6), (6, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 9, 5, 6), (9, 1, 3, 3), {"groups": 9, "stride": 2}),
    "dilated": ((1, 3, 6, 7), (3, 4, 2, 3), {"dilation": (3, 2), "stride": (2, 1)}),
    "extra": ((1, 2, 4), (2, 3, 2), {"stride": 2, "dilation": 5, "output_padding": 4}),
    "no-images": ((0, 3, 5), (3, 4, 2), {"stride": 2}),
}


@pytest.fixture
def algorithm(request):
    lib.force_conv_algorithm(request.param)
    yield request.param
    lib.force_conv_algorithm("auto")


each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, indirect=True)
each_algorithm_one_quick = pytest.mark.parametrize(
    "algorithm",
    [pytest.param("auto", marks=pytest.mark.quick), *ALGORITHMS[1:]],
    indirect=True,
)


def draw(rng, x_shape, w_shape, out_c, dtype=np.float32):
    return [integers(rng, shape, dtype=dtype) for shape in (x_shape, w_shape, (out_c,))]


def assert_conv_exact(x_shape, w_shape, arguments, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, w, b = draw(rng, x_shape, w_shape, w_shape[0], dtype)
    y = conv(x, w, b, **arguments)
    dy = integers(rng, y.shape, dtype=dtype)
    got = forward_and_gradients(lambda *t: CONV[w.ndim - 2](*t, **arguments), [x, w, b], dy)
    for g, e in zip(got, (y, *conv_gradients(dy, x, w, **arguments)), strict=True):
        assert g.shape == e.shape and g.dtype == dtype
        np.testing.assert_array_equal(g, e)


def assert_transposed_exact(x_shape, w_shape, arguments, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, w, b = draw(rng, x_shape, w_shape, w_shape[1] * arguments.get("groups", 1), dtype)
    y = conv_transpose(x, w, b, **arguments)
    dy = integers(rng, y.shape, dtype=dtype)
    fn = CONV_TRANSPOSE[w.ndim - 2]
    got = forward_and_gradients(lambda *t: fn(*t, **arguments), [x, w, b], dy)
    for g, e in zip(got, (y, *conv_transpose_gradients(dy, x, w, **arguments)), strict=True):
        assert g.shape == e.shape and g.dtype == dtype
        np.testing.assert_array_equal(g, e)


@pytest.mark.parametrize("case", CASES)
@each_algorithm_one_quick
def test_conv_is_exact_on_integers(case, algorithm):
    assert_conv_exact(*CASES[case])


@pytest.mark.parametrize("case", TRANSPOSED)
@each_algorithm_one_quick
def test_conv_transpose_is_exact_on_integers(case, algorithm):
    assert_transposed_exact(*TRANSPOSED[case])


@pytest.mark.parametrize("case", CASES)
def test_conv_is_exact_in_float64(case):
    assert_conv_exact(*CASES[case], np.float64)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose_is_exact_in_float64(case):
    assert_transposed_exact(*TRANSPOSED[case], np.float64)


@pytest.mark.parametrize("k", range(1, 34))
@pytest.mark.parametrize("algorithm", ["auto", "tile", "slide"], indirect=True)
def test_every_number_of_output_channels(k, algorithm):
    """Vectors of two pixels, whole and partial vectors, in rows of an odd number of pixels."""
    rng = np.random.default_rng(0)
    x, w, b = draw(rng, (2, 3, 4, 23), (k, 3, 3, 3), k)
    y = conv(x, w, b, padding=1)
    got = lib.conv_forward(x, w, b, 1, 1, 1, 1, relu=True)
    np.testing.assert_array_equal(got, np.maximum(y, 0))
    dy, mask = integers(rng, (2, 3, 4, 23)), integers(rng, y.shape)
    dx, _, _ = conv_gradients(dy, mask, w.swapaxes(0, 1), padding=1)
    got = lib.conv_backward_input(dy, w.swapaxes(0, 1), mask.shape, 1, 1, 1, 1, mask=mask)
    np.testing.assert_array_equal(got, np.where(mask > 0, dx, 0))


@pytest.mark.cpu("its algorithms by name; a GPU's are in test_conv_cuda.py")
@pytest.mark.parametrize("algorithm, case, used, used_backward", [
    ("auto", "narrow", "slide", "slide"),
    ("auto", "strided", "tile", "tile"),
    ("auto", "depthwise", "depthwise", "depthwise"),
    ("auto", "many-phases", "tile", "generic"),
    ("generic", "3x3", "generic", "generic"),
    ("tile", "3x3", "tile", "tile"),
    ("tile", "depthwise", "tile", "tile"),
    ("slide", "lenet-2", "slide", "slide"),
    ("slide", "strided", "tile", "tile"),
    ("depthwise", "narrow", "slide", "slide"),
    ("depthwise", "depthwise-strided", "depthwise", "depthwise"),
], indirect=["algorithm"])  # fmt: skip
@pytest.mark.cpu("of the CPU's algorithms")
def test_algorithm_is_the_forced_one_where_it_can_be(algorithm, case, used, used_backward):
    x_shape, w_shape, kwargs = CASES[case]
    arguments = [kwargs.get(k, v) for k, v in [("stride", 1), ("padding", 0), ("dilation", 1)]]
    groups = kwargs.get("groups", 1)
    both = [
        lib.conv_algorithm(x_shape, w_shape, *arguments, groups, name)
        for name in ("forward", "backward_input")
    ]
    assert both == [used, used_backward]


@pytest.mark.cpu("of the CPU's algorithms")
@pytest.mark.parametrize("algorithm, case, folded", [
    ("auto", "lenet-2", True),
    ("auto", "3x3", False),
    ("fold", "3x3", True),
    ("fold", "dilated-rows", True),
    ("fold", "dilated", False),
    ("fold", "grouped", False),
    ("fold", "strided", False),
], indirect=["algorithm"])  # fmt: skip
def test_which_gradients_are_folded(algorithm, case, folded):
    x_shape, w_shape, kwargs = CASES[case]
    arguments = [kwargs.get(k, v) for k, v in [("stride", 1), ("padding", 0), ("dilation", 1)]]
    groups = kwargs.get("groups", 1)
    used = lib.conv_algorithm(x_shape, w_shape, *arguments, groups, "backward_input")
    assert (used == "fold") == folded


LONG_SUMS = {
    # More terms than are summed in one run of the accumulators.
    "long": ((1, 520, 4, 6), (3, 520, 3, 3), {"padding": 1}),
    "long-rows": ((1, 5000, 6), (2, 5000, 3), {}),
}


@pytest.mark.parametrize("case", CASES | LONG_SUMS)
@each_algorithm_one_quick
def test_relu_and_mask_as_separate_passes(case, algorithm):
    """conv_forward(relu) is relu(conv), conv_backward_input(mask) is relu's gradient, exactly."""
    x_shape, w_shape, kwargs = (CASES | LONG_SUMS)[case]
    rng = np.random.default_rng(1)
    x, w, b = draw(rng, x_shape, w_shape, w_shape[0])
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    arguments = tuple({**defaults, **kwargs}.values())
    y = lib.conv_forward(x, w, b, *arguments)
    fused = lib.conv_forward(x, w, b, *arguments, relu=True)
    np.testing.assert_array_equal(fused, np.maximum(y, 0))
    dx = lib.conv_backward_input(y, w, x.shape, *arguments)
    masked = lib.conv_backward_input(y, w, x.shape, *arguments, mask=x)
    np.testing.assert_array_equal(masked, np.where(x > 0, dx, 0))


@pytest.mark.parametrize("case", TRANSPOSED)
@each_algorithm
def test_transposed_relu_and_mask_as_separate_passes(case, algorithm):
    x_shape, w_shape, kwargs = TRANSPOSED[case]
    rng = np.random.default_rng(1)
    x, w, b = draw(rng, x_shape, w_shape, w_shape[1] * kwargs.get("groups", 1))
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    arguments = {**defaults, **kwargs}
    y = lib.conv_transpose_forward(x, w, b, *arguments.values())
    fused = lib.conv_transpose_forward(x, w, b, *arguments.values(), relu=True)
    np.testing.assert_array_equal(fused, np.maximum(y, 0))
    del arguments["output_padding"]
    dx = lib.conv_transpose_backward_input(y, w, x.shape, *arguments.values())
    masked = lib.conv_transpose_backward_input(y, w, x.shape, *arguments.values(), mask=x)
    np.testing.assert_array_equal(masked, np.where(x > 0, dx, 0))


def test_masks_of_another_shape_or_dtype_are_refused():
    dy, w = np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 3, 3, 3), np.float32)
    arguments = ((1, 3, 6, 6), 1, 0, 1, 1)
    with pytest.raises(ValueError, match=r"\[conv2d\] The mask .* Got \(1, 3, 4, 4\) for"):
        lib.conv_backward_input(dy, w, *arguments, np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(TypeError, match=r"\[conv2d\] gradient and mask .* float32 and float64"):
        lib.conv_backward_input(dy, w, *arguments, np.zeros((1, 3, 6, 6)))


def test_unknown_algorithm():
    with pytest.raises(ValueError, match=r"\[force_conv_algorithm\] .* Got 'fast'"):
        lib.force_conv_algorithm("fast")


@pytest.mark.parametrize("case", ["3x3", "strided", "dilated", "grouped", "3d", "depthwise"])
@each_algorithm
def test_adjoint(case, algorithm):
    x_shape, w_shape, arguments = CASES[case]
    rng = np.random.default_rng(1)
    x, w = integers(rng, x_shape), integers(rng, w_shape)
    dy = integers(rng, conv(x, w, **arguments).shape)
    y, dx, dw = (
        a.astype(np.float64)
        for a in forward_and_gradients(lambda *t: CONV[w.ndim - 2](*t, **arguments), [x, w], dy)
    )
    assert (dy * y).sum() == (dx * x).sum() == (dw * w).sum()


# The last three have more terms than one block: rows, and a row, are cut.
@pytest.mark.parametrize("x_shape, w_shape", [
    ((2, 16, 9, 9), (16, 16, 3, 3)),
    ((1, 600, 5, 5), (8, 600, 3, 3)),
    ((1, 600, 5, 5), (17, 600, 3, 3)),
    ((1, 9000, 2, 2), (9, 9000, 1, 1)),
])  # fmt: skip
@each_algorithm
def test_error_against_float64(x_shape, w_shape, algorithm):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    y = lib.conv_forward(x, w, None, 1, w_shape[2] // 2, 1, 1)
    padding = w_shape[2] // 2
    assert_near_float64(y, conv(x, w, padding=padding), sequential_conv(x, w, padding))
    # dx of stride 1 is the convolution of dy with the flipped, transposed weight.
    flipped = np.ascontiguousarray(np.flip(w, (2, 3)).swapaxes(0, 1))
    dx = lib.conv_backward_input(y, w, x_shape, 1, padding, 1, 1)
    exact, plain = conv(y, flipped, padding=padding), sequential_conv(y, flipped, padding)
    assert_near_float64(dx, exact, plain)


@pytest.mark.parametrize("x_shape, w_shape, arguments", [
    ((2, 16, 40, 40), (24, 16, 3, 3), {"padding": 1}),
    ((1, 8, 12, 12, 12), (8, 8, 3, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 64, 6, 6), (64, 64, 3, 3), {"padding": 1}),
    ((3, 4, 700), (16, 4, 5), {"dilation": 2}),
    ((4, 32, 20, 20), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
])  # fmt: skip
@each_algorithm
def test_same_bits_for_any_threads(x_shape, w_shape, arguments, algorithm):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    fn = CONV[w.ndim - 2]
    assert_same_bits_for_any_threads(
        lambda: forward_and_gradients(lambda *t: fn(*t, **arguments), [x, w])
    )


@pytest.mark.parametrize(
    "case", ["3x3-wide-tail", "strided", "dilated-strided", "grouped", "3d-up"]
)
def test_gradients(case):
    x_shape, w_shape, arguments = CASES[case]
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(shape) for shape in (x_shape, w_shape, w_shape[:1])]
    fn = CONV[len(w_shape) - 2]
    assert_gradients(lambda *t: fn(*t, **arguments), arrays, rng)


@pytest.mark.parametrize("case", ["up-2", "3x3-2", "grouped", "dilated"])
def test_transposed_gradients(case):
    x_shape, w_shape, arguments = TRANSPOSED[case]
    rng = np.random.default_rng(4)
    out_c = w_shape[1] * arguments.get("groups", 1)
    arrays = [rng.standard_normal(shape) for shape in (x_shape, w_shape, (out_c,))]
    fn = CONV_TRANSPOSE[len(w_shape) - 2]
    assert_gradients(lambda *t: fn(*t, **arguments), arrays, rng)


# PyTorch has no (low, high) pairs, warns of uneven padding, and refuses empty channels and axes.
NOT_IN_PYTORCH = {"pairs", "same-even", "no-channels", "empty-axis"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", sorted(set(CASES) - NOT_IN_PYTORCH))
def test_parity(torch, case, bias):
    x_shape, w_shape, arguments = CASES[case]
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, w_shape[:1])]
    arrays[2] = arrays[2] if bias else None
    spatial = len(w_shape) - 2
    theirs = getattr(torch.nn.functional, f"conv{spatial}d")
    assert_parity(
        torch, lambda *t: CONV[spatial](*t, **arguments), lambda *t: theirs(*t, **arguments),
        arrays, rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", sorted(set(TRANSPOSED) - {"extra"}))
def test_transposed_parity(torch, case, bias):
    x_shape, w_shape, arguments = TRANSPOSED[case]
    rng = np.random.default_rng(5)
    out_c = w_shape[1] * arguments.get("groups", 1)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, (out_c,))]
    arrays[2] = arrays[2] if bias else None
    spatial = len(w_shape) - 2
    theirs = getattr(torch.nn.functional, f"conv_transpose{spatial}d")
    assert_parity(
        torch, lambda *t: CONV_TRANSPOSE[spatial](*t, **arguments),
        lambda *t: theirs(*t, **arguments), arrays, rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_unbatched(torch, spatial):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((4, *(6, 7, 8)[:spatial])).astype(np.float32)
    w = rng.standard_normal((4, 2, *(3, 2, 3)[:spatial])).astype(np.float32)
    for ours, name, b_size in ((CONV, "conv", 4), (CONV_TRANSPOSE, "conv_transpose", 4)):
        b = rng.standard_normal(b_size).astype(np.float32)
        theirs = getattr(torch.nn.functional, f"{name}{spatial}d")
        assert_parity(
            torch, lambda *t, f=ours: f[spatial](*t, groups=2),
            lambda *t, f=theirs: f(*t, groups=2), [x, w, b],
        )  # fmt: skip


@st.composite
def drawn_case(draw_from):
    spatial = draw_from(st.integers(1, 3))
    groups = draw_from(st.sampled_from([1, 1, 2, 3]))
    per_group = st.integers(1, 9)

    def axes(low, high):
        return tuple(draw_from(st.integers(low, high)) for _ in range(spatial))

    kernel, stride, dilation, padding = axes(1, 5 - spatial), axes(1, 3), axes(1, 3), axes(0, 4)
    size = tuple(
        max(1, d * (k - 1) + 1 - 2 * p) + draw_from(st.integers(0, 15 // spatial))
        for k, d, p in zip(kernel, dilation, padding)
    )
    x_shape = (draw_from(st.integers(0, 2)), groups * draw_from(per_group), *size)
    w_shape = (groups * draw_from(per_group), x_shape[1] // groups, *kernel)
    arguments = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    return x_shape, w_shape, arguments


@settings(max_examples=120, deadline=None)
@given(drawn_case(), st.sampled_from(ALGORITHMS))
def test_drawn_shapes_are_exact(case, name):
    lib.force_conv_algorithm(name)
    try:
        assert_conv_exact(*case)
        # The same numbers read as a transposed convolution, where its output is not empty.
        x_shape, w_shape, arguments = case
        size = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, k, s, p, d in zip(
                x_shape[2:], w_shape[2:], arguments["stride"], arguments["padding"],
                arguments["dilation"],
            )
        ]  # fmt: skip
        if min(size) > 0:
            transposed = (x_shape[1], w_shape[0] // arguments["groups"], *w_shape[2:])
            assert_transposed_exact(x_shape, transposed, arguments)
    finally:
        lib.force_conv_algorithm("auto")


# ---- layouts ----


def is_channels_last(a):
    return np.moveaxis(a, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("x_shape, w_shape", [
    ((2, 3, 5, 6), (4, 3, 3, 3)),
    ((2, 1, 5, 6), (1, 1, 3, 3)),
    ((2, 3, 1, 1), (4, 3, 1, 1)),
    ((2, 3, 9), (4, 3, 3)),
    ((1, 2, 4, 5, 6), (3, 2, 3, 3, 3)),
])  # fmt: skip
@pytest.mark.parametrize("last", [True, False])
def test_outputs_are_channels_last(x_shape, w_shape, last):
    rng = np.random.default_rng(7)
    x, w = integers(rng, x_shape), integers(rng, w_shape)
    if last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    y, dx, dw = forward_and_gradients(CONV[w.ndim - 2], [x, w])
    assert is_channels_last(y) and is_channels_last(dx) and is_channels_last(dw)


def test_strided_and_read_only_inputs():
    rng = np.random.default_rng(8)
    base, w = integers(rng, (9, 11, 4, 3)), integers(rng, (3, 3, 2, 5))
    base.flags.writeable = w.flags.writeable = False
    x = base[::-2, ::-1].transpose(2, 3, 1, 0)  # negative strides, an order of its own
    got = lib.conv_forward(x, w.transpose(0, 1, 3, 2)[:, :, ::-1], None, 1, 0, 1, 1)
    np.testing.assert_array_equal(got, conv(x, w.transpose(0, 1, 3, 2)[:, :, ::-1]))
    np.testing.assert_array_equal(
        lib.conv_forward(np.broadcast_to(x[:, :, :1, :1], (4, 3, 9, 9)), w, None, 1, 0, 1, 1),
        conv(np.broadcast_to(x[:, :, :1, :1], (4, 3, 9, 9)), w),
    )


# ---- NaN and infinity ----


@each_algorithm
def test_nan_and_infinity_reach_the_windows_that_see_them(algorithm):
    x, w = np.ones((1, 8, 9, 12), np.float32), np.ones((8, 8, 3, 3), np.float32)
    x[0, 2, 4, 5], x[0, 0, 0, 0] = np.nan, np.inf
    y = lib.conv_forward(x, w, None, 1, 1, 1, 1)
    assert np.isnan(y[0, :, 3:6, 4:7]).all() and np.isposinf(y[0, :, :2, :2]).all()
    assert np.isfinite(y).sum() == y.size - 8 * (9 + 4)
    dx = lib.conv_backward_input(x, w, x.shape, 1, 1, 1, 1)
    np.testing.assert_array_equal(dx, y)  # all weights are equal: the same sums


@each_algorithm
def test_padding_is_zeros_that_multiply_weights(algorithm):
    """0 * inf is NaN: an infinite weight shows wherever its tap falls on padding."""
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((3, 1, 3, 3), np.float32)
    w[1, 0, 0, 0] = np.inf
    y = lib.conv_forward(x, w, None, 1, 1, 1, 1)
    assert np.isnan(y[0, 1, 0]).all() and np.isnan(y[0, 1, :, 0]).all()
    assert np.isposinf(y[0, 1, 1:, 1:]).all() and np.isfinite(y[0, [0, 2]]).all()


# ---- errors ----

X, W = (2, 4, 8, 8), (6, 4, 3, 3)


@pytest.mark.parametrize("x_shape, w_shape, b_size, arguments, message", [
    ((4, 8), W, None, {}, r"\[conv2d\] input must have 4 axes.*\(4, 8\)"),
    (X, (6, 4, 3), None, {}, r"\[conv2d\] weight must have 4 axes.*\(6, 4, 3\)"),
    ((2, 5, 8, 8), W, None, {}, r"\[conv2d\] The input must have 4 channels.*\(2, 5, 8, 8\)"),
    ((2, 8, 8, 4), W, None, {}, r"\(2, 8, 8, 4\), which looks channels-last"),
    (X, W, 5, {}, r"\[conv2d\] bias must have one value per output channel, 6\. Got 5"),
    (X, W, None, {"groups": 4}, r"groups must divide the output channels. Got groups 4"),
    (X, W, None, {"groups": 3}, r"must have 12 channels on axis 1 .* groups 3.*\(2, 4, 8, 8\)"),
    (X, W, None, {"groups": 0}, r"\[conv2d\] groups must be at least 1. Got \(0,\)"),
    (X, W, None, {"stride": 0}, r"\[conv2d\] stride must be at least 1. Got \(0, 0\)"),
    (X, W, None, {"stride": (1, -2)}, r"stride must be at least 1. Got \(1, -2\)"),
    (X, W, None, {"dilation": (0, 1)}, r"dilation must be at least 1. Got \(0, 1\)"),
    (X, W, None, {"padding": -1}, r"padding must not be negative. Got \(-1, -1\)"),
    (X, W, None, {"padding": (1, 2, 3)}, r"padding must be an int or have 2 entries.*\(1, 2, 3\)"),
    (X, W, None, {"padding": "full"}, r"padding must be ints, 'same' or 'valid'. Got 'full'"),
    (X, W, None, {"padding": "same", "stride": 2}, r"padding='same' needs stride 1.*\(2, 2\)"),
    (X, (6, 4, 9, 3), None, {}, r"larger than the padded input.*\(2, 4, 8, 8\).*\(6, 4, 9, 3\)"),
    (X, W, None, {"dilation": 4}, r"larger than the padded input.*dilation \(4, 4\)"),
    (X, (6, 4, 0, 3), None, {}, r"The kernel size must be at least 1. Got \(0, 3\)"),
])  # fmt: skip
def test_conv_errors(x_shape, w_shape, b_size, arguments, message):
    x, w = cg.tensor(np.zeros(x_shape, np.float32)), cg.tensor(np.zeros(w_shape, np.float32))
    b = None if b_size is None else cg.tensor(np.zeros(b_size, np.float32))
    with pytest.raises(ValueError, match=message):
        F.conv2d(x, w, b, **arguments)


@pytest.mark.parametrize("x_shape, w_shape, b_size, arguments, message", [
    ((4, 8), W, None, {}, r"\[conv_transpose2d\] input must have 4 axes.*\(4, 8\)"),
    (X, W, None, {}, r"\[conv_transpose2d\] The input must have 6 channels.*\(2, 4, 8, 8\)"),
    ((2, 8, 8, 6), W, None, {}, r"\(2, 8, 8, 6\), which looks channels-last"),
    (X, (4, 6, 3, 3), 7, {}, r"\[conv_transpose2d\] bias must have one value.*6\. Got 7"),
    (X, (4, 6, 3, 3), None, {"groups": 3}, r"groups must divide the input channels. Got groups 3"),
    (X, (4, 6, 3, 3), None, {"output_padding": 1}, r"output_padding must be .* Got \(1, 1\)"),
    (X, (4, 6, 3, 3), None, {"output_padding": -1}, r"output_padding must be .* Got \(-1, -1\)"),
    (X, (4, 6, 3, 3), None, {"padding": 5}, r"The output would be empty.*padding \(5, 5\)"),
    (X, (4, 6, 3, 3), None, {"padding": "same"}, r"padding must be an int or a tuple.*'same'"),
    (X, (4, 6, 3, 3), None, {"stride": 0}, r"stride must be at least 1. Got \(0, 0\)"),
])  # fmt: skip
def test_conv_transpose_errors(x_shape, w_shape, b_size, arguments, message):
    x, w = cg.tensor(np.zeros(x_shape, np.float32)), cg.tensor(np.zeros(w_shape, np.float32))
    b = None if b_size is None else cg.tensor(np.zeros(b_size, np.float32))
    with pytest.raises(ValueError if "'same'" not in message else TypeError, match=message):
        F.conv_transpose2d(x, w, b, **arguments)


@pytest.mark.parametrize("fn", [F.conv2d, F.conv_transpose2d])
def test_dtype_errors(fn):
    single, double = (cg.tensor(np.zeros((4, 4, 4, 4), t)) for t in (np.float32, np.float64))
    whole = cg.tensor(np.zeros((4, 4, 4, 4), np.int64))
    with pytest.raises(TypeError, match=r"one dtype. Got float32 and float64"):
        fn(single, double)
    with pytest.raises(TypeError, match=r"must be float32.* float64.*\. Got int64"):
        fn(whole, single)
    with pytest.raises(TypeError, match=r"bias must have the input's dtype, float32. Got float64"):
        fn(single, single, cg.tensor(np.zeros(4)))
    with pytest.raises(TypeError, match=r"stride must be an int or a tuple of ints. Got 1.5"):
        fn(single, single, stride=1.5)


def test_gradients_of_another_dtype_or_shape_are_refused():
    x, w, dy = (np.zeros(s, np.float32) for s in ((1, 2, 5), (3, 2, 3), (1, 3, 3)))
    with pytest.raises(TypeError, match=r"one dtype. Got float64 and float32"):
        lib.conv_backward_input(dy.astype(np.float64), w, x.shape, 1, 0, 1, 1)
    with pytest.raises(TypeError, match=r"one dtype. Got float64 and float32"):
        lib.conv_backward_weight(dy.astype(np.float64), x, w.shape, 1, 0, 1, 1, True)
    with pytest.raises(ValueError, match=r"gradient must have the output's shape. Got \(1, 3, 4\)"):
        lib.conv_backward_input(np.zeros((1, 3, 4), np.float32), w, x.shape, 1, 0, 1, 1)
    with pytest.raises(ValueError, match=r"gradient must have the output's shape. Got \(1, 2, 4\)"):
        lib.conv_transpose_backward_input(np.zeros((1, 2, 4), np.float32), w, (1, 3, 9), 1, 0, 1, 1)


HUGE = 2**62


@pytest.mark.parametrize("arguments, error, message", [
    ({"padding": HUGE}, ValueError, rf"padding is too large. Got \({HUGE},\)"),
    ({"padding": 2**58}, ValueError, r"elements of the output overflows"),
    ({"dilation": HUGE}, ValueError, rf"dilation is too large. Got \({HUGE},\)"),
    ({"stride": HUGE}, ValueError, rf"stride is too large. Got \({HUGE},\)"),
    ({"groups": HUGE}, ValueError, rf"groups must divide .* Got groups {HUGE}"),
    ({"padding": 2**70}, ValueError, r"padding does not fit 64 bits"),
    ({"padding": 2**45}, MemoryError, r"\[convgrad\] .* Got 18014398509482\d{3} bytes"),
])  # fmt: skip
def test_huge_sizes_raise(arguments, error, message):
    x, w = np.zeros((1, 1, 5), np.float32), np.zeros((64, 1, 3), np.float32)
    by_cupy = error is MemoryError and not ON_CPU  # in its own words
    with pytest.raises(error, match="18,014,398,509" if by_cupy else message):
        F.conv1d(cg.tensor(x), cg.tensor(w), **arguments)


def test_huge_transposed_sizes_raise():
    x, w = np.zeros((1, 1, 5), np.float32), np.zeros((1, 64, 3), np.float32)
    for stride in (2**57, 2**58):
        with pytest.raises(ValueError, match="elements of the input overflows"):
            F.conv_transpose1d(cg.tensor(x), cg.tensor(w), stride=stride)
    with pytest.raises(MemoryError):
        F.conv_transpose1d(cg.tensor(x), cg.tensor(w), stride=2**45)


def test_huge_steps_over_small_inputs():
    """A stride or dilation beyond the input is legal when the output is not empty."""
    x, w = integers(np.random.default_rng(9), (1, 2, 9)), np.ones((3, 2, 1), np.float32)
    y, dx, _ = forward_and_gradients(lambda *t: F.conv1d(*t, stride=2**40, dilation=2**40), [x, w])
    np.testing.assert_array_equal(y, x[:, :, :1].sum(1, keepdims=True).repeat(3, 1))
    assert (dx[:, :, 0] == 3).all() and (dx[:, :, 1:] == 0).all()
