"""Memory shared with NumPy and, by DLPack, with PyTorch; arrays of every kind as input."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import functional as F
from tests.device import live_bytes, tensor_on, values

on_the_host = pytest.mark.cpu("of memory shared with the host; tests/test_device.py has a GPU's")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(np.float32)


@on_the_host
@pytest.mark.quick
def test_numpy_shares_memory_and_copies_in_c_order():
    x = cg.tensor(normal(2, 3, 4, 5))
    shared = x.numpy()
    assert np.shares_memory(shared, x.array) and not shared.flags.c_contiguous
    copied = x.numpy(copy=True)
    assert copied.flags.c_contiguous and not np.shares_memory(copied, x.array)
    np.testing.assert_array_equal(shared, copied)
    shared[0, 0, 0, 0] = 42
    assert x[0, 0, 0, 0].item() == 42
    w = cg.ones(2, requires_grad=True)
    assert w.numpy(force=True).tolist() == w.detach().numpy().tolist() == [1, 1]


@on_the_host
@pytest.mark.quick
def test_array_protocols():
    x = cg.tensor(normal(2, 3, 4, 5))
    assert np.shares_memory(np.asarray(x), x.array)
    assert not np.shares_memory(np.array(x), x.array)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.asarray(x), values(x))
    assert x.__array__(copy=True) is not x.array
    with pytest.raises(ValueError, match="needs a copy"):
        x.__array__(np.float64, copy=False)
    assert x.__array_interface__["shape"] == (2, 3, 4, 5)
    np.testing.assert_array_equal(np.exp(x), np.exp(values(x)))
    np.testing.assert_array_equal(np.stack([x, x]), np.stack([values(x), values(x)]))
    assert np.asarray(cg.tensor([1, 2])).dtype == np.int64


@on_the_host
@pytest.mark.quick
def test_dlpack_with_pytorch(torch):
    x = cg.tensor(normal(2, 3, 4, 5))
    theirs = torch.from_dlpack(x)
    assert tuple(theirs.shape) == x.shape and theirs.is_contiguous(
        memory_format=torch.channels_last
    )
    theirs[0, 0, 0, 0] = 7
    assert x[0, 0, 0, 0].item() == 7
    source = torch.arange(6.0).reshape(2, 3)
    ours = cg.from_dlpack(source)
    source[0, 0] = 9
    assert ours[0, 0].item() == 9 and ours.dtype == cg.float32
    assert cg.from_dlpack(torch.arange(3)).dtype == cg.int64
    with pytest.raises(TypeError, match=r"\[from_dlpack\] dtype .*float16"):
        cg.from_dlpack(torch.ones(2, dtype=torch.float16))
    with pytest.raises(RuntimeError, match="requires a gradient"):
        torch.from_dlpack(cg.ones(1, requires_grad=True))
    assert x.__dlpack_device__() == (1, 0)


@on_the_host
def test_from_dlpack_of_numpy_and_tensors():
    a = normal(3, 4)
    assert np.shares_memory(cg.from_dlpack(a).array, a)
    t = cg.tensor(a)
    assert np.shares_memory(cg.from_dlpack(t).array, t.array)


@on_the_host
def test_read_only_arrays():
    a = normal(3, 4)
    a.flags.writeable = False
    x = cg.from_numpy(a)
    np.testing.assert_array_equal(values(x * 2.0), a * 2)
    np.testing.assert_allclose(values(F.linear(x, x)), a @ a.T, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\[add_\] .*\(3, 4\).*read-only"):
        x.add_(1.0)
    y = cg.tensor(a)
    y.add_(1.0)  # a copy is one's own


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8", ">i4"])
def test_big_endian_is_converted(dtype):
    a = np.arange(6).reshape(2, 3).astype(dtype)
    for x in (cg.tensor(a), cg.as_tensor(a)):
        assert x.dtype.isnative and x.dtype.kind == a.dtype.kind
        np.testing.assert_array_equal(values(x), a)
    assert cg.tensor(np.ones((1, 2, 3, 4), dtype)).dtype.isnative
    with pytest.raises(ValueError, match="native byte order"):
        cg.from_numpy(a)


@on_the_host
def test_unaligned_is_converted():
    buffer = np.zeros(4 * 24 + 1, np.uint8)
    a = buffer[1:].view(np.float32).reshape(1, 2, 3, 4)
    a[...] = normal(1, 2, 3, 4)
    assert not a.flags.aligned
    for x in (cg.tensor(a), cg.as_tensor(a), cg.tensor(a[0, 0])):
        assert x.array.flags.aligned
    np.testing.assert_array_equal(values(cg.tensor(a)), a)
    with pytest.raises(ValueError, match="aligned"):
        cg.from_numpy(a)


VIEWS = {
    "negative": lambda x: x[::-1, :, ::-1],
    "strided": lambda x: x[:, ::2, 1:],
    "permuted": lambda x: x.transpose(2, 0, 1),
    "broadcast": lambda x: np.broadcast_to(x[:1], (5, *x.shape[1:])),
    "empty": lambda x: x[:0],
    "fortran": np.asfortranarray,
    "0-d": lambda x: x[0, 0, 0, ...],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_every_kind(name):
    view = VIEWS[name](normal(4, 6, 5))
    for x in (cg.tensor(view), cg.as_tensor(view), tensor_on(view)):
        np.testing.assert_array_equal(values(x), view)
        np.testing.assert_array_equal(values(x + x), view + view)
        np.testing.assert_array_equal(x.numpy(copy=True), view)
        t = x.detach().requires_grad_()
        (t * t).sum().backward()
        np.testing.assert_array_equal(values(t.grad), view * 2)
        np.testing.assert_allclose(x.sum().item(), view.sum(), rtol=1e-5, atol=1e-5)


def test_zero_size(torch):
    for f in (
        lambda t: t.sum(),
        lambda t: t.sum(0),
        lambda t: t.sum(1),
        lambda t: t.reshape(3, 0),
        lambda t: t * 2.0 + t,
        lambda t: t.exp().T,
        lambda t: t.cumsum(0),
        lambda t: t[:, 1],
        lambda t: t.repeat(2, 2),
    ):
        x = cg.zeros(0, 3, requires_grad=True)
        theirs = f(torch.zeros(0, 3))
        y = f(x)
        assert y.shape == tuple(theirs.shape)
        np.testing.assert_array_equal(y.numpy(force=True), theirs.numpy())
        y.sum().backward()
        assert x.grad.shape == (0, 3)
    assert np.isnan(cg.zeros(0, 3).mean().item())


def test_views_pin_nothing_after_a_copy():
    x = cg.zeros(100, 100)
    live = live_bytes()
    total = x.sum()
    del x
    assert live_bytes() < live and total.item() == 0
