"""Tensors of 16 bits, bfloat16 and float16: arrays of GPUs alone, whose arithmetic is float32's.

Where a kernel does with them just what it does with float32, but for reading and writing, its
result is that of float32 rounded once, to the bit; the other files' tests prove float32's.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import nn, optim
from tests.device import BACKEND, DEVICE, ON_CPU, place, values
from tests.helpers import integers
from tests.reference.conv import conv, conv_gradients

on_gpu = pytest.mark.skipif(ON_CPU, reason="types of GPUs")
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
# Bits of a significand, and the exponent of the smallest normal number.
BITS = {"bfloat16": (8, -126), "float16": (11, -14)}
each_type = pytest.mark.parametrize("name", TYPES)


def bits(array):
    """The patterns of a device's array of 16 bits."""
    return array.view(np.uint16).get()


def convert(array, name):
    return BACKEND.lib.convert(array, name)


def rounded(x, name):
    """Float32 or float64 numbers as the nearest of the type, in float32."""
    return np.asarray(x).astype(TYPES[name]).astype(np.float32)


def half_unit(x, name):
    """Half a unit in the last place of the type at x: what one rounding may change."""
    significand, least = BITS[name]
    exponent = np.floor(np.log2(np.maximum(np.abs(x), 2.0**least)))
    return 2.0 ** (exponent - significand)


def run(fn, arrays, name, dy=None):
    """[fn's value, the gradients of its float arguments], from tensors of the type."""
    inputs = [
        cg.tensor(a, dtype=name, requires_grad=True) if a.dtype.kind == "f" else cg.tensor(a)
        for a in arrays
    ]
    y = fn(*inputs)
    y.backward(cg.tensor(np.ones(y.shape) if dy is None else dy, dtype=y.dtype))
    grads = [t.grad for t in inputs if t.requires_grad]
    assert all(g.dtype.name == name for g in grads)
    return [y, *grads]


# ---- conversion ----


@on_gpu
@each_type
@pytest.mark.kernel
def test_every_pattern_survives_float32(name):
    patterns = np.arange(1 << 16, dtype=np.uint16).view(TYPES[name])
    wide = convert(place(patterns), "float32")
    np.testing.assert_array_equal(wide.get(), patterns.astype(np.float32))
    number = ~np.isnan(patterns.astype(np.float32))
    back = convert(wide, name)
    np.testing.assert_array_equal(bits(back)[number], patterns.view(np.uint16)[number])
    assert np.isnan(back.get().astype(np.float32)[~number]).all()


@on_gpu
@each_type
@pytest.mark.kernel
def test_rounds_to_nearest_ties_to_even(name):
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 1 << 14, dtype=np.uint32).view(np.float32)
    neighbours = np.arange(0, 0x7C00, 7, dtype=np.uint16)
    low = neighbours.view(TYPES[name]).astype(np.float32)
    high = (neighbours + np.uint16(1)).view(TYPES[name]).astype(np.float32)
    ties = (low.astype(np.float64) + high) / 2
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 3.4e38, 6e-8, 2.9e-8]
    with np.errstate(all="ignore"):
        x = np.concatenate([anything, low, ties, -ties, np.nextafter(ties, 1e9), special])
        x = x.astype(np.float32)
        expected = x.astype(TYPES[name])
    got = convert(place(x), name)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(bits(got)[number], expected.view(np.uint16)[number])
    assert np.isnan(got.get().astype(np.float32)[~number]).all()


@on_gpu
@each_type
def test_casts_carry_gradients_and_layouts(name):
    x = cg.randn(2, 3, 4, 5, requires_grad=True)
    y = x.to(TYPES[name]) if name == "float16" else x.bfloat16()
    assert y.dtype == TYPES[name] and BACKEND.lib.is_channels_last(y.array)
    back = y.double()
    assert back.dtype == np.float64
    (back * 2).sum().backward()
    assert x.grad.dtype == np.float32 and (values(x.grad) == 2).all()
    assert y.long().dtype == np.int64 and cg.arange(3).to(TYPES[name]).tolist() == [0, 1, 2]


# ---- results without rounding ----

EXACT = {
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 3, 6, 7), (4, 3, 3, 3)]),
    "conv2d, groups": (
        lambda x, w, b: F.conv2d(x, w, b, 2, groups=2),
        [(1, 4, 7, 7), (6, 2, 3, 3), (6,)],
    ),
    "conv3d": (F.conv3d, [(1, 2, 3, 4, 4), (3, 2, 2, 2, 2)]),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=8), [(2, 8, 5, 5), (8, 1, 3, 3)]),
    "conv_transpose2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        [(2, 4, 4, 4), (4, 3, 3, 3)],
    ),
    "linear": (F.linear, [(9, 20), (7, 20), (7,)]),
    "matmul": (cg.matmul, [(3, 5, 6), (6, 4)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [(2, 8, 7, 7)]),
    "max_pool2d, large": (lambda x: F.max_pool2d(x, 7), [(2, 3, 14, 14)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(4 * x, 2), [(2, 8, 6, 6)]),
    "unpool": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(2, 3, 6, 6)],
    ),
    "relu": (F.relu, [(37,)]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.5), [(4, 8)]),
    "prelu": (F.prelu, [(2, 4, 5), (4,)]),
    "maxout": (lambda x: F.maxout(x, 2), [(2, 6, 5)]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=3.0), [(2, 3, 4, 5)]),
    "reflect": (lambda x: F.pad(x, (1, 2), mode="reflect"), [(2, 3, 9)]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), [(2, 8, 3, 4)]),
    "cat": (lambda x, y: cg.cat([x, y], 1), [(2, 8, 3, 3), (2, 16, 3, 3)]),
    "split": (lambda x: x.split([3, 5], 1)[1], [(9, 8, 3, 3)]),
    "rows": (lambda x: x[cg.tensor([0, 3, 3, 1])], [(4, 8)]),
    "transpose": (lambda x: x.permute(0, 2, 1).reshape(-1), [(2, 33, 40)]),
    "sum": (lambda x: x.sum((0, 2)), [(3, 5, 7)]),
    "broadcast": (lambda x, y: x + y - x * y, [(3, 4, 5), (4, 1)]),
    "arithmetic": (lambda x, y: cg.maximum(x * 3 - y, 1 - x), [(5, 9), (5, 9)]),
    "dropout": (lambda x: (cg.manual_seed(3), F.dropout(x, 0.5))[1], [(40,)]),
}


@on_gpu
@each_type
@pytest.mark.kernel
@pytest.mark.parametrize("case", EXACT)
def test_exact_for_whole_numbers(case, name):
    """Sums below 2^8, bfloat16's last whole number without a gap: as in float64."""
    fn, shapes = EXACT[case]
    rng = np.random.default_rng(1)
    arrays = [integers(rng, s, -1, 1) for s in shapes]
    dy = None
    if case != "dropout":
        dy = integers(rng, fn(*[cg.tensor(a) for a in arrays]).shape, -1, 1)
    for got, exact in zip(run(fn, arrays, name, dy), run(fn, arrays, "float64", dy)):
        assert np.abs(values(exact)).max() <= 256
        np.testing.assert_array_equal(values(got), values(exact))


@on_gpu
@each_type
@pytest.mark.kernel
def test_convolution_against_the_oracle(name):
    """The oracle's float64 sums of the same numbers: off by one rounding, and by what a float32 sum
    of so many terms may lose."""
    rng = np.random.default_rng(2)
    x, w = (rounded(rng.standard_normal(s), name) for s in ((2, 20, 6, 7), (8, 20, 3, 3)))
    dy = rounded(rng.standard_normal((2, 8, 6, 7)), name)
    found = run(lambda x, w: F.conv2d(x, w, padding=1), [x, w], name, dy)
    exact = [conv(x, w, padding=1), *conv_gradients(dy, x, w, padding=1)[:2]]
    for got, true, terms in zip(found, exact, (180, 72, 84)):
        bound = half_unit(true, name) + terms * 2.0**-24 * np.abs(true).max()
        assert (np.abs(values(got) - true) <= bound).all()
        assert values(got).dtype == np.float32


# ---- float32's results, rounded once ----

LIKE_FLOAT32 = {
    **{f.__name__: (f, [(3, 11)]) for f in (F.gelu, F.sigmoid, F.tanh, F.silu, F.softplus, F.elu)},
    "exp": (cg.exp, [(3, 11)]),
    "softmax": (lambda x: F.softmax(x, -1), [(5, 40)]),
    "softmax of channels": (lambda x: F.softmax(x, 1), [(2, 6, 5, 4)]),
    "log_softmax": (lambda x: F.log_softmax(x, -1), [(3, 1100)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), [(2, 8, 7, 7)]),
    "global average": (lambda x: F.adaptive_avg_pool2d(x, 1), [(2, 3, 12, 12)]),
    "bilinear": (lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"), [(2, 4, 3, 4)]),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), [(4, 8, 5, 5)]),
    "group_norm": (lambda x: F.group_norm(x, 2), [(3, 6, 5, 5)]),
    "layer_norm": (lambda x: F.layer_norm(x, (40,)), [(6, 40)]),
    "a number": (lambda x: x * 0.999 + 0.1, [(200,)]),
    "quotient": (lambda x, y: x / (y * y + 1), [(30,), (30,)]),
    "mean": (lambda x: x.mean(1), [(5, 60)]),
    "std": (lambda x: x.std(0), [(5, 6)]),
}


@on_gpu
@each_type
@pytest.mark.kernel
@pytest.mark.parametrize("case", LIKE_FLOAT32)
def test_is_float32_rounded(case, name):
    fn, shapes = LIKE_FLOAT32[case]
    rng = np.random.default_rng(3)
    arrays = [rounded(rng.standard_normal(s), name) for s in shapes]
    dy = rounded(rng.standard_normal(fn(*[cg.tensor(a) for a in arrays]).shape), name)
    found, again, wide = (run(fn, arrays, t, dy) for t in (name, name, "float32"))
    if case in ("a number", "quotient"):  # several roundings
        room = 2.0 ** (2 - BITS[name][0])
        np.testing.assert_allclose(values(found[0]), values(wide[0]), rtol=room)
    else:
        np.testing.assert_array_equal(values(found[0]), rounded(values(wide[0]), name))
    for got, same, true in zip(found[1:], again[1:], wide[1:]):
        assert values(got).tobytes() == values(same).tobytes()
        # Backward passes start from a rounded y; then the gradient is rounded.
        room = 2.0 ** (2 - BITS[name][0]) * np.abs(values(true)).max() + 2.0**-20
        np.testing.assert_allclose(values(got), values(true), rtol=0, atol=room)


@on_gpu
@each_type
@pytest.mark.kernel
def test_norms_keep_float32(name):
    rng = np.random.default_rng(4)
    x = rounded(rng.standard_normal((4, 8, 5, 5)) * 3 + 50, name)
    state = {}
    for dtype in (name, "float32"):
        mean, var = cg.zeros(8), cg.ones(8)
        w, b = cg.full((8,), 1.25, requires_grad=True), cg.zeros(8, requires_grad=True)
        y = F.batch_norm(cg.tensor(x, dtype=dtype), mean, var, w, b, training=True)
        y.backward(cg.tensor(np.ones(y.shape), dtype=dtype))
        state[dtype] = [values(t) for t in (mean, var, w.grad, b.grad)]
        assert all(a.dtype == np.float32 for a in state[dtype])
    for got, true in zip(state[name], state["float32"]):
        np.testing.assert_array_equal(got, true)
    with pytest.raises(TypeError, match=rf"weight must be float32 for a {name} input. Got {name}"):
        F.layer_norm(cg.ones(3, 4, dtype=name), (4,), cg.ones(4, dtype=name))


LOSSES = {
    "cross_entropy": lambda x: F.cross_entropy(x, cg.tensor([1, 0, 2, 4])),
    "rows": lambda x: F.cross_entropy(x, cg.tensor([1, 0, 2, 4]), reduction="none"),
    "weights": lambda x: F.cross_entropy(x, cg.tensor([1, 0, 2, 4]), cg.arange(1.0, 6.0)),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x, cg.tensor([1, 0, 2, 4])),
    "mse_loss": lambda x: F.mse_loss(x, cg.zeros_like(x)),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, cg.ones_like(x), reduction="none"),
    "l1 penalty": lambda x: cg.penalty.l1(x, 0.5),
}


@on_gpu
@each_type
@pytest.mark.kernel
@pytest.mark.parametrize("case", LOSSES)
def test_losses_are_float32(case, name):
    x = rounded(np.random.default_rng(5).standard_normal((4, 5)), name)
    (loss, dx), (true, true_dx) = (run(LOSSES[case], [x], t) for t in (name, "float32"))
    assert loss.dtype == np.float32
    np.testing.assert_array_equal(values(loss), values(true))
    np.testing.assert_array_equal(values(dx), rounded(values(true_dx), name))


@on_gpu
@each_type
def test_dice_loss(name):
    """It sums probabilities that are rounded: each by at most half a unit in the last place."""
    x = rounded(np.random.default_rng(6).standard_normal((2, 3, 4, 5)), name)
    target = np.random.default_rng(6).integers(0, 3, (2, 4, 5))
    fn = lambda x: F.dice_loss(x, cg.tensor(target))  # noqa: E731
    (loss, _), (true, _) = (run(fn, [x], t) for t in (name, "float32"))
    assert loss.dtype == np.float32 and abs(loss.item() - true.item()) <= 2.0 ** -BITS[name][0]


# ---- tensors and modules ----


@on_gpu
@each_type
def test_leaves_the_library_as_float32(name):
    x = cg.tensor([1.5, 2.0], dtype=name)
    assert x.dtype == TYPES[name] == cg.zeros(1, dtype=getattr(cg, name)).dtype
    assert f"dtype={name}" in repr(x) and x.is_floating_point() and x.element_size() == 2
    assert x.numpy().dtype == np.float32 and x.tolist() == [1.5, 2.0] and x[0].item() == 1.5
    y = cg.tensor([1.5], dtype=name, requires_grad=True)
    on_cpu = y.cpu()
    assert on_cpu.dtype == np.float32 and str(on_cpu.device) == "cpu"
    on_cpu.sum().backward()
    assert y.grad.dtype == TYPES[name]
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), cg.from_dlpack(x.array)):
        assert twin.dtype == x.dtype and twin.tolist() == x.tolist()
    assert x.mul_(2).add_(1).tolist() == [4, 5]
    assert cg.tensor(np.ones(2, TYPES[name])).dtype == TYPES[name]


@on_gpu
@each_type
def test_promotion_is_pytorchs(name):
    x, one = cg.ones(2, dtype=name), cg.ones((), dtype=cg.float32)
    assert {(x + other).dtype for other in (1, 2.5, True, one, cg.ones(2, dtype=cg.int64))} == {
        TYPES[name]
    }
    assert (x + cg.ones(2)).dtype == np.float32 and (x + cg.ones(2).double()).dtype == np.float64
    other = "float16" if name == "bfloat16" else "bfloat16"
    assert (x + cg.ones(2, dtype=other)).dtype == np.float32
    assert cg.cat([x, cg.ones(2, dtype=other)]).dtype == np.float32
    assert (x > 0).dtype == np.bool_


@on_gpu
@each_type
@pytest.mark.parametrize("method", ["SGD", "Adam"])
def test_module_trains(name, method):
    cg.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = model.bfloat16() if name == "bfloat16" else model.half()
    types = {key: t.dtype.name for key, t in model.state_dict().items()}
    assert types["0.weight"] == types["4.bias"] == name
    assert types["1.weight"] == types["1.running_var"] == "float32"
    steps = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01}}
    optimizer = getattr(optim, method)(model.parameters(), **steps[method])
    x, y = cg.randn(8, 1, 6, 6, dtype=name), cg.tensor(np.arange(8) % 3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    twin = pickle.loads(pickle.dumps(model))
    assert {key: t.dtype.name for key, t in twin.state_dict().items()} == types
    model.float().load_state_dict(twin.state_dict())
    assert model[0].weight.dtype == np.float32


# ---- errors ----


@on_gpu
def test_one_type_at_a_time():
    x, w = cg.ones(1, 2, 5, 5, dtype="bfloat16"), cg.ones(3, 2, 3, 3)
    with pytest.raises(TypeError, match=r"\[conv2d\] input and weight must have one dtype. Got bf"):
        F.conv2d(x, w)
    with pytest.raises(TypeError, match=r"\[linear\] weight must have the input's dtype, bfloat16"):
        F.linear(x, cg.ones(3, 5))


@pytest.mark.cpu("it is the CPU that refuses them")
@each_type
def test_the_cpu_refuses_them(name):
    match = rf"\[tensor\] dtype must be one of .* 16 bits are on GPUs alone. Got .*{name}"
    with pytest.raises(TypeError, match=match):
        cg.tensor([1.0], dtype=TYPES[name])
    with pytest.raises(TypeError, match=r"\[to\] dtype must be one of .* on GPUs alone"):
        cg.ones(2).to(TYPES[name])
    with pytest.raises(TypeError, match=r"\[Module.to\] dtype must be .* on GPUs alone"):
        nn.Linear(2, 2).to(name)
    array = np.ones((1, 2, 4, 4), TYPES[name])
    with pytest.raises(TypeError, match=rf"\[max_pool2d\] .* is {name}, which CUDA alone computes"):
        F.max_pool2d(cg.Tensor(array), 2)
    assert DEVICE == "cpu"
