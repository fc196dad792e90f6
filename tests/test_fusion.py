"""Passes that are saved: layers with their ReLU, ReLU's backward pass in the op that follows."""

import copy

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import nn
from convgrad.functional.activation import ReLU, Unary
from convgrad.functional.conv import Conv, ConvTranspose
from convgrad.functional.linear import Linear
from convgrad.nn import fusion
from tests.device import ON_CPU, values

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def one_by_one(model, x):
    for module in model:
        x = module(x)
    return x


def bits(model, call, x):
    """The output's, and every gradient's."""
    x = cg.tensor(x, requires_grad=True)
    model.zero_grad()
    y = call(x)
    rng = np.random.default_rng(5)
    y.backward(cg.tensor(rng.standard_normal(y.shape).astype(np.float32)))
    arrays = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
    return [np.array(a.numpy(), order="C").tobytes() for a in arrays]


def assert_equal_bits(model, x):
    assert bits(model, model, x) == bits(model, lambda t: one_by_one(model, t), x)


def draw(shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.quick
@pytest.mark.kernel
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_sequential_gives_the_bits_of_its_modules_one_by_one(dim):
    cg.manual_seed(0)
    model = nn.Sequential(
        CONV[dim](3, 8, 3, padding=1), nn.ReLU(), CONV[dim](8, 5, 3, padding=1), nn.ReLU(),
        POOL[dim](2), CONV_TRANSPOSE[dim](5, 18, 2, stride=2), nn.ReLU(),
        CONV[dim](18, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8**dim, 7), nn.ReLU(),
        nn.Linear(7, 3),
    )  # fmt: skip
    assert_equal_bits(model, draw((2, 3) + (8,) * dim))


@pytest.mark.parametrize("first", [
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2, bias=False),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.Conv2d(4, 4, 3, groups=4),
])  # fmt: skip
def test_layers_of_every_kind_with_their_relu(first):
    assert_equal_bits(nn.Sequential(first, nn.ReLU()), draw((2, 4, 9, 10)))
    assert_equal_bits(nn.Sequential(first, nn.ReLU()), draw((4, 9, 10)))


def ops_of(y):
    """The types of the ops that lead to y, nearest first."""
    types, node = [], y.node
    while node is not None:
        types.append(type(node))
        source = node.edges[0]
        node = source[0] if source is not None and isinstance(source[0], cg.autograd.Op) else None
    return types


def test_what_is_fused_and_what_is_not():
    x = cg.tensor(draw((1, 2, 6, 6)))
    conv, relu = nn.Conv2d(2, 3, 3), nn.ReLU()
    assert ops_of(nn.Sequential(conv, relu)(x)) == [Conv]
    up = nn.ConvTranspose2d(2, 3, 2)
    assert ops_of(nn.Sequential(up, relu)(x)) == [ConvTranspose]
    assert ops_of(nn.Sequential(conv, nn.LeakyReLU())(x)) == [Unary, Conv]

    class MyReLU(nn.ReLU):
        def forward(self, input):
            return super().forward(input)

    assert ops_of(nn.Sequential(conv, MyReLU())(x)) == [ReLU, Conv]
    assert ops_of(nn.Sequential(conv)(x)) == [Conv]
    assert ops_of(nn.Sequential(nn.Linear(6, 2), relu)(x)) == [Linear]


@pytest.mark.parametrize("hooked", [0, 1])
def test_hooks_see_each_module(hooked):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    seen = []
    handle = model[hooked].register_forward_hook(lambda m, args, out: seen.append(out))
    x = cg.tensor(draw((1, 2, 6, 6)))
    y = model(x)
    assert len(seen) == 1 and ops_of(y) == [ReLU, Conv]
    handle.remove()
    model[hooked].forward = lambda t: t
    assert model(x).shape in ((1, 3, 4, 4), (1, 2, 6, 6))
    assert not fusion._is_plain(model[hooked])


# ---- the mask in the op that follows a ReLU ----

CONSUMERS = {
    "conv": lambda r, w: F.conv2d(r, w, padding=1),
    "linear": lambda r, w: F.linear(r, w.reshape(18, 8)),
    "conv-transpose": lambda r, w: F.conv_transpose2d(r, w.transpose(0, 1), padding=1),
    "strided": lambda r, w: F.conv2d(r, w, stride=2),
    "max-pool": lambda r, w: F.max_pool2d(r, 2),
    "overlapping-max-pool": lambda r, w: F.max_pool2d(r, 3, 1, 1),
    "adaptive-max-pool": lambda r, w: F.adaptive_max_pool2d(r, 3),
    "avg-pool": lambda r, w: F.avg_pool2d(r, 2),
}


def gradient_of_relu_input(consumers, shape=(2, 4, 8, 8)):
    """d(sum of weighted consumers(relu(x))) / dx, and the same by hand from d/d relu(x)."""
    w = cg.tensor(draw((4, 4, 3, 3), 1))

    def total(r):
        parts = [CONSUMERS[name](r, w) for name in consumers]
        weights = [cg.tensor(draw(p.shape, 7 + i)) for i, p in enumerate(parts)]
        out = (parts[0] * weights[0]).sum()
        for p, v in zip(parts[1:], weights[1:], strict=True):
            out = out + (p * v).sum()
        return out

    x = cg.tensor(draw(shape), requires_grad=True)
    total(F.relu(x)).backward()
    r = F.relu(x.detach()).requires_grad_()
    total(r).backward()
    return x.grad.numpy(), np.where(x.detach().numpy() > 0, r.grad.numpy(), 0)


@pytest.mark.parametrize("name", CONSUMERS)
def test_the_gradient_behind_a_relu_is_masked_exactly(name):
    got, expected = gradient_of_relu_input([name])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("names", [("conv", "max-pool"), ("conv", "avg-pool"), ("avg-pool", "conv"),
                                   ("conv", "conv", "max-pool")])  # fmt: skip
def test_several_consumers(names):
    got, expected = gradient_of_relu_input(names)
    np.testing.assert_array_equal(got, expected)


def test_whoever_looks_at_the_relu_sees_the_whole_gradient():
    w = cg.tensor(draw((4, 4, 3, 3), 1))
    x = cg.tensor(draw((2, 4, 8, 8)), requires_grad=True)

    def relu_gradient(look):
        r = F.relu(x)
        seen = look(r)
        y = F.conv2d(r, w)
        dy = cg.tensor(draw(y.shape))
        (gradient,) = cg.autograd.grad(y, r, dy, retain_graph=True)
        y.backward(dy, retain_graph=True)
        y.backward(dy)
        return [gradient, *seen]

    found = []

    def look(r):
        r.register_hook(lambda g: found.append(g.clone()))
        return ()

    expected = relu_gradient(lambda r: ())[0].numpy()
    assert (expected[x.detach().numpy() <= 0] != 0).any()
    np.testing.assert_array_equal(relu_gradient(look)[0].numpy(), expected)
    for g in found:
        np.testing.assert_array_equal(g.numpy(), expected)
    assert len(found) == 3  # grad() and two walks


def test_walking_twice_and_gradients_that_arrive_twice():
    w = cg.tensor(draw((4, 4, 3, 3), 1))
    x = cg.tensor(draw((2, 4, 8, 8)), requires_grad=True)
    y = F.conv2d(F.relu(x), w)
    dy = cg.tensor(draw(y.shape))
    y.backward(dy, retain_graph=True)
    once = x.grad.numpy(copy=True)
    y.backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)
    assert np.all(dy.numpy() == draw(y.shape))  # the caller's own array is never written


def test_nan_goes_through_a_masked_relu_as_through_a_relu():
    x = draw((1, 2, 5, 5))
    x[0, 0, 2, 2] = np.nan
    t = cg.tensor(x, requires_grad=True)
    w = cg.tensor(draw((3, 2, 1, 1), 1))
    F.conv2d(F.relu(t), w).sum().backward()
    np.testing.assert_array_equal(t.grad.numpy() != 0, ~(x <= 0))


def test_gradients_that_someone_holds_are_not_written_over():
    x = cg.tensor(draw((2, 4, 8, 8)), requires_grad=True)
    w = cg.tensor(draw((4, 4, 3, 3), 1))
    held = []
    before = F.relu(x)  # writes its gradient over the one it is given, if that is its alone
    middle = F.avg_pool2d(before, 2)
    before.register_hook(held.append)
    dy = draw(middle.shape)
    middle.backward(cg.tensor(dy))
    np.testing.assert_array_equal(held[0].numpy(), np.kron(dy, np.full((2, 2), 0.25, np.float32)))
    assert (held[0].numpy() != x.grad.numpy()).any()
    # A sum of two gradients goes to both inputs of an addition.
    a, b = (cg.tensor(draw((2, 4, 8, 8), s), requires_grad=True) for s in (1, 2))
    y = F.relu(a) + b
    (F.conv2d(y, w).sum() + F.avg_pool2d(y, 2).sum()).backward()
    np.testing.assert_array_equal(
        a.grad.numpy(), np.where(a.detach().numpy() > 0, b.grad.numpy(), 0)
    )


# ---- normalisation that waits for what follows it ----


def now(t):
    """The tensor, computed."""
    assert t.array is not None
    return t


def later(t):
    return t


AFTER_NORM = {
    "relu": lambda wait, y, s: F.relu(wait(y)),
    "relu-of-sum": lambda wait, y, s: F.relu(wait(wait(y) + s)),
    "relu-of-sum-right": lambda wait, y, s: F.relu(wait(s + wait(y))),
    "sum": lambda wait, y, s: wait(y) + s,
    "two-sums": lambda wait, y, s: F.relu(wait(wait(wait(y) + s) + s)),
    "twice": lambda wait, y, s: F.relu(wait(wait(y) + wait(y))),
    "looked-at-again": lambda wait, y, s: F.relu(wait(y)) * y,
    "number": lambda wait, y, s: F.relu(wait(y) + 1.5),
    "broadcast": lambda wait, y, s: F.relu(wait(y) + s[:, :1]),
    "not-relu": lambda wait, y, s: F.leaky_relu(wait(y)) + F.conv2d(wait(y), s[:, :, :1, :1]),
}
NORMS = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    "group": lambda x, w, b: F.group_norm(x, 2, w, b),
    "plain": lambda x, w, b: F.batch_norm(x, None, None, training=True) * w.sum() * b.sum(),
}


@pytest.mark.kernel
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("after", AFTER_NORM)
def test_a_deferred_norm_gives_the_bits_of_one_computed_at_once(norm, after):
    def result(wait):
        shapes = [(4, 4, 5, 6), (4,), (4,), (4, 4, 5, 6)]
        x, w, b, s = (cg.tensor(draw(v, i), requires_grad=True) for i, v in enumerate(shapes))
        y = AFTER_NORM[after](wait, NORMS[norm](x, w, b), s)
        y.backward(cg.tensor(draw(y.shape, 9)))
        grads = [t.grad for t in (x, w, b, s)]
        arrays = [y.detach()] + [g for g in grads if g is not None]
        return [np.array(a.numpy(), order="C").tobytes() for a in arrays]

    assert result(later) == result(now)


def deferred():
    x = cg.tensor(draw((3, 4, 5)), requires_grad=True)
    w = cg.tensor(draw((4,), 1), requires_grad=True)
    y = F.batch_norm(x, None, None, w, training=True)
    assert type(y) is not cg.Tensor
    return x, w, y


def test_a_deferred_norm_is_a_tensor_in_every_way():
    _x, _w, y = deferred()
    assert isinstance(y, cg.Tensor) and y.requires_grad and not y.is_leaf
    assert y.shape == (3, 4, 5) and y.ndim == 3 and y.dtype == np.float32
    assert type(y) is not cg.Tensor  # not computed for that
    array = y.detach().numpy()
    assert type(y) is cg.Tensor and (y.array is array or not ON_CPU)
    np.testing.assert_array_equal(array, values(now(deferred()[2])))
    assert repr(deferred()[2]) == repr(y)
    np.testing.assert_array_equal(deferred()[2].clone().detach().numpy(), array)
    np.testing.assert_array_equal(copy.deepcopy(deferred()[2].detach()).numpy(), array)
    np.testing.assert_array_equal(deferred()[2][1].detach().numpy(), array[1])
    assert len(list(deferred()[2])) == 3


def test_a_deferred_norm_is_of_the_weights_it_was_called_with():
    _x, w, y = deferred()
    expected = now(deferred()[2]).detach().numpy()
    with cg.no_grad():
        w.zero_()
    np.testing.assert_array_equal(y.detach().numpy(), expected)


def test_an_input_changed_before_a_deferred_norm_is_used():
    x, _w, y = deferred()
    with cg.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match=r"\[deferred\] .* \(3, 4, 5\) was changed in place"):
        F.relu(y)
    x, _w, y = deferred()
    s = cg.tensor(draw((3, 4, 5)))
    total = y + s
    s.zero_()
    with pytest.raises(RuntimeError, match=r"\[deferred\]"):
        total.sum()


def test_nothing_waits_without_gradients():
    x = cg.tensor(draw((3, 4, 5)))
    assert type(F.batch_norm(x, None, None, training=True)) is cg.Tensor
    with cg.no_grad():
        y = F.batch_norm(x.requires_grad_(), None, None, training=True)
    assert type(y) is cg.Tensor
