"""What a tensor is and does as a Python object, against torch.Tensor."""

import copy
import pickle

import numpy as np
import pytest

import convgrad as cg
from tests.device import DEVICE, ON_CPU, lib, tensor_on, values


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.quick
def test_what_it_is():
    x = cg.tensor(normal(2, 3, 4), requires_grad=True)
    assert x.shape == x.size() == (2, 3, 4) and x.size(1) == 3 and x.size(-1) == 4
    assert x.ndim == x.dim() == 3 and x.numel() == 24 and len(x) == 2 and x.element_size() == 4
    assert x.dtype == cg.float32 and x.dtype == np.float32 and x.is_floating_point()
    if ON_CPU:
        assert x.device == "cpu" and x.device.type == "cpu" and x.device.index is None
    else:
        assert x.device == "cuda:0" and x.device.type == "cuda" and x.device.index == 0
    assert x.requires_grad and x.is_leaf and x.grad is None and x.grad_fn is None
    y = x * 2.0
    assert y.requires_grad and not y.is_leaf and type(y.grad_fn).__name__ == "Mul"
    assert not x.detach().requires_grad and y.detach().is_leaf
    assert cg.tensor([1, 2]).dtype == cg.int64 and cg.tensor([True]).dtype == cg.bool
    assert x.T.shape == (4, 3, 2)


def test_values_out():
    x = cg.tensor([[1.5, -2.0]])
    assert x.tolist() == [[1.5, -2.0]] and cg.tensor(3).tolist() == 3
    assert cg.tensor([2.5]).item() == 2.5 and isinstance(cg.tensor(2).item(), int)
    assert float(cg.tensor([2.5])) == 2.5 and int(cg.tensor(2.9)) == 2
    assert bool(cg.tensor([1])) and not bool(cg.tensor(0.0))
    assert [10, 20, 30][cg.tensor(1)] == 20 and list(range(cg.tensor(2))) == [0, 1]
    assert f"{cg.tensor(1.23456):.2f}" == "1.23" and 1.5 in x and 7 not in x
    assert [row.tolist() for row in cg.tensor([[1], [2]])] == [[1], [2]]
    a, b = cg.tensor([1.0, 2.0], requires_grad=True)
    assert a.requires_grad and b.item() == 2


def test_hash_is_identity():
    x = cg.tensor([1.0])
    assert len({x, x, cg.tensor([1.0])}) == 2 and x in {x: 1}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x.item(), ValueError, r"\[item\] .*\(2, 3\)"),
        (lambda x: bool(x), ValueError, r"\[bool\] .*\(2, 3\).*any\(\) or all\(\)"),
        (lambda x: float(x), ValueError, r"\(2, 3\)"),
        (lambda x: [1][x.sum()], TypeError, r"\[index\] .*float32 of shape \(\)"),
        (lambda x: len(x.sum()), TypeError, r"\[len\]"),
        (lambda x: list(x.sum()), TypeError, r"\[iter\]"),
        (lambda x: x.to("gpu"), TypeError, r"\[to\] dtype .*Got 'gpu'|'cpu', 'cuda'"),
        (lambda x: x.to(np.complex64), TypeError, r"\[to\] dtype must be one of .*complex64"),
        (lambda x: x.cuda(99), RuntimeError, r"'cuda:99' is not available"),
        (lambda x: x.requires_grad_().numpy(), RuntimeError, r"\[numpy\] .*detach\(\)\.numpy\(\)"),
        (lambda x: np.asarray(x.requires_grad_()), RuntimeError, r"detach\(\)"),
        (lambda x: copy.deepcopy(x.requires_grad_() * 2.0), RuntimeError, r"leaf.*Mul"),
        (lambda x: x @ 2.0, TypeError, r"\[matmul\] .*Got float"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises((error, ValueError) if "gpu" in words else error, match=words):
        call(cg.ones(2, 3))


# ---- types, devices ----


@pytest.mark.quick
def test_conversions(torch):
    x = np.array([-1.7, 0.0, 2.3], np.float32)
    for name in ("float", "double", "long", "int", "bool"):
        ours, theirs = getattr(cg.tensor(x), name)(), getattr(torch.tensor(x), name)()
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(values(ours), theirs.numpy())
    t = cg.tensor(x)
    assert t.float() is t and t.to(DEVICE) is t and t.to(cg.float32) is t
    assert (t.cpu() is t) == ON_CPU and t.cpu().device == "cpu"
    assert t.to(DEVICE, cg.float64).dtype == np.float64 and t.to(dtype=cg.int64).dtype == np.int64
    assert t.to(cg.device(DEVICE)) is t and t.to(cg.ones(1, dtype=cg.float64)).dtype == np.float64
    assert (
        t.to(DEVICE, copy=True) is not t
        and t.contiguous() is t
        and t.type(cg.int32).dtype == "int32"
    )


def test_views_of_the_tape():
    x = cg.tensor([1.0, 2.0], requires_grad=True)
    d = x.detach()
    d.add_(1.0)
    assert x.tolist() == [2, 3] and x.version[0] == 1  # one memory, one version
    x.data = cg.tensor([7.0, 8.0])
    assert x.tolist() == [7, 8] and x.requires_grad
    x.data -= 1.0
    assert x.tolist() == [6, 7]
    y = (x * 2.0).detach_()
    assert y.is_leaf and not y.requires_grad


# ---- in place ----

IN_PLACE = {
    "zero_": lambda x: x.zero_(),
    "fill_": lambda x: x.fill_(2.5),
    "add_": lambda x: x.add_(1.5),
    "add_alpha": lambda x: x.add_(x.clone(), alpha=0.5),
    "sub_": lambda x: x.sub_(x[0].clone()),
    "sub_alpha": lambda x: x.sub_(2, alpha=3),
    "mul_": lambda x: x.mul_(x * 2),
    "div_": lambda x: x.div_(4),
    "clamp_": lambda x: x.clamp_(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp_(min=0),
    "copy_": lambda x: x.copy_(x[0].double().clone()),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(torch, name):
    x = normal(3, 4)
    ours, theirs = cg.tensor(x), torch.tensor(x)
    array = ours.array
    assert IN_PLACE[name](ours) is ours
    IN_PLACE[name](theirs)
    assert ours.array is array and ours.version[0] >= 1
    np.testing.assert_allclose(values(ours), theirs.numpy(), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_on_leaves_needs_no_grad(name):
    w = cg.tensor(normal(3, 4), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"not recorded.*\(3, 4\).*no_grad\(\)"):
        IN_PLACE[name](w)
    assert w.version[0] == 0
    with cg.no_grad():
        IN_PLACE[name](w)
    assert w.requires_grad and w.is_leaf and w.version[0] >= 1
    with pytest.raises(ValueError, match=r"read-only or expanded"):
        IN_PLACE[name](cg.tensor(normal(1, 4)).expand(3, 4))


def test_in_place_types():
    with pytest.raises(TypeError):
        cg.tensor([1, 2]).add_(0.5)
    assert cg.tensor([1, 2]).mul_(3).dtype == cg.int64
    assert cg.tensor([1.0]).add_(cg.tensor([1.0], dtype=cg.float64)).dtype == cg.float32


def test_augmented_assignment(torch):
    """In place where nothing is recorded; else the name gets a recorded result, as in PyTorch."""

    def residual(t, x):
        out = x * 2.0
        out += x
        out *= 3.0
        out -= x * x
        out /= 2.0
        total = t.zeros(3)
        total += out
        return total

    for library in (cg, torch):
        x = library.tensor([1.0, 2.0, 3.0], requires_grad=True)
        residual(library, x).sum().backward()
        np.testing.assert_allclose(np.asarray(x.grad), 4.5 - np.array([1.0, 2.0, 3.0]))
    x = cg.zeros(2)
    array = x.array
    x += 1.0
    x *= cg.tensor([2.0, 3.0])
    assert x.array is array and x.tolist() == [2, 3]
    w = cg.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="not recorded"):
        w += 1.0
    with cg.no_grad():
        w -= cg.ones(2)
    assert w.tolist() == [-1, -1] and w.requires_grad


# ---- copies ----


@pytest.mark.quick
def test_deepcopy_and_pickle():
    x = tensor_on(lib.channels_last(normal(2, 3, 4, 5)), True)
    (x * x).sum().backward()
    for y in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert y.requires_grad and y.is_leaf and y.dtype == x.dtype
        np.testing.assert_array_equal(values(y), values(x))
        assert not np.shares_memory(y.array, x.array)
    y = copy.deepcopy(x)
    assert lib.is_channels_last(y.array)
    np.testing.assert_array_equal(values(y.grad), values(x.grad))
    assert not np.shares_memory(y.grad.array, x.grad.array)
    pair = copy.deepcopy([x, x])
    assert pair[0] is pair[1]
    labels = cg.tensor([1, 2])
    assert pickle.loads(pickle.dumps(labels)).tolist() == [1, 2]


def test_clone_is_differentiable_and_apart():
    x = cg.tensor([1.0, 2.0], requires_grad=True)
    y = x.clone()
    (y * y).sum().backward()
    assert x.grad.tolist() == [2, 4] and not np.shares_memory(x.array, y.array)


# ---- repr ----

PRINTED = [
    [1.0, 2.0, -3.0],
    [1.5, 2.25, 1 / 3],
    [1e-5, 1.0, 1000.0],
    [[1.0, 2.5], [3.0, 4.0]],
    [1e9, 1.0],
    [1.0, 20000.0, 0.0],
    [float("nan"), 1.5],
    [],
    3.5,
    [1, 20, 300],
    [[True, False]],
]


def shown(t: cg.Tensor) -> str:
    """As on the CPU: on other devices PyTorch adds the device too."""
    text = repr(t)
    assert ("device='cuda:0'" in text) == (not ON_CPU)
    return text.replace(", device='cuda:0'", "")


@pytest.mark.quick
@pytest.mark.parametrize("data", PRINTED, ids=str)
def test_repr_is_pytorchs(torch, data):
    assert shown(cg.tensor(data)) == repr(torch.tensor(data))


def test_repr_notes(torch):
    for make in (
        lambda t: t.zeros(0, 3),
        lambda t: t.tensor([1.0, 2.0], requires_grad=True),
        lambda t: t.arange(24.0).reshape(2, 3, 4),
        lambda t: t.zeros(2, 2, 2),
    ):
        assert shown(make(cg)) == repr(make(torch)).replace("torch.", "")
    assert shown(cg.arange(2000)) == "tensor([   0,    1,    2, ..., 1997, 1998, 1999])"
    assert shown(cg.ones(1, dtype=cg.float64)) == "tensor([1.], dtype=float64)"
    assert shown(cg.ones(1, requires_grad=True) * 2.0) == "tensor([2.], grad_fn=<Mul>)"
