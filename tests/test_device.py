"""Tensors on a GPU, or on the simulated ones: where they are made, how they move, what they share,
and when errors of kernels are raised."""

import copy
import gc
import pickle

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import nn, optim
from tests.device import ON_CPU, SIMULATED

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(ON_CPU, reason="needs CONVGRAD_TEST_DEVICE=cuda"),
]
two_devices = pytest.mark.skipif(not ON_CPU and cg.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture
def on_cpu():
    before = cg.get_default_device()
    cg.set_default_device("cpu")
    yield
    cg.set_default_device(before)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def test_the_default_device(on_cpu):
    assert cg.get_default_device() == "cpu" and cg.zeros(2).device == "cpu"
    cg.set_default_device("cuda")
    assert cg.get_default_device() == "cuda:0"
    for made in (
        cg.tensor([1.0]),
        cg.zeros(2),
        cg.ones(2, 3, 4),
        cg.full((2,), 3),
        cg.empty(2),
        cg.arange(3),
        cg.eye(2),
        cg.linspace(0, 1, 3),
        cg.rand(2),
        cg.randn(2),
        cg.randint(3, size=(2,)),
        cg.randperm(3),
        cg.as_tensor(np.ones(2)),
        nn.Linear(2, 3).weight,
    ):
        assert made.device == "cuda:0"
    assert cg.from_numpy(np.ones(2)).device == "cpu" and cg.zeros(2, device="cpu").device == "cpu"
    cg.set_default_device(None)
    assert cg.get_default_device() == "cpu"


def test_a_device_for_each_function_that_makes_tensors(on_cpu):
    cpu = cg.tensor([1.0, 2.0])
    assert cpu.device == "cpu"
    gpu = cg.tensor(cpu, device="cuda")
    for made in (
        gpu,
        cg.zeros(2, 3, 4, device="cuda"),
        cg.randn(2, device="cuda"),
        cg.zeros_like(gpu),
        cg.randn_like(gpu),
        cg.tensor(gpu),
        cg.tensor(gpu.array),
        cg.as_tensor(gpu.array),
        cg.ones_like(cpu, device="cuda"),
    ):
        assert made.device == "cuda:0" and made.device.index == 0
    assert cg.as_tensor(gpu.array).array is gpu.array
    assert cg.zeros_like(cpu).device == "cpu" and cg.ones_like(gpu, device="cpu").device == "cpu"
    with pytest.raises(RuntimeError, match=r"'cuda:99' is not available: there are \d+ GPUs"):
        cg.zeros(1, device="cuda:99")
    with pytest.raises(ValueError, match="A device is 'cpu', 'cuda' or 'cuda:N'. Got 'gpu'"):
        cg.zeros(1, device="gpu")


def test_moving_keeps_values_layout_and_gradients():
    for shape in ((3,), (2, 3), (2, 3, 4, 5), (0, 3, 2)):
        host = normal(*shape)
        x = cg.tensor(host, device="cpu", requires_grad=True)
        y = x.cuda()
        assert y.device == "cuda:0" and y.requires_grad and not y.is_leaf
        assert y.array.strides == x.array.strides or 0 in shape
        back = y.to("cpu", cg.float64)
        assert back.device == "cpu" and cg.backend.lib_of(back.array).is_channels_last(back.array)
        np.testing.assert_array_equal(back.numpy(force=True), host)
        (y * 2.0).cpu().backward(cg.tensor(host, device="cpu"))
        assert x.grad.device == "cpu"
        np.testing.assert_array_equal(x.grad.numpy(), 2 * host)
    assert y.cuda() is y and y.to(y) is y and y.to("cuda:0") is y
    assert x.to(y).device == "cuda:0" and y.to(x).device == "cpu"


@two_devices
def test_kernels_run_where_their_arrays_are():
    x = cg.tensor(normal(2, 3, 5, 5), device="cuda:1", requires_grad=True)
    w = cg.tensor(normal(4, 3, 3, 3), device="cuda:1")
    y = F.relu(F.conv2d(x, w))
    assert y.device == "cuda:1" and cg.cuda.current_device() == 0
    y.backward(cg.ones_like(y))
    assert x.grad.device == "cuda:1"
    with cg.cuda.device(1):
        assert cg.cuda.current_device() == 1 and cg.zeros(1, device="cuda").device == "cuda:1"
        assert (x.grad * 1.0).sum().device == "cuda:1"
    assert cg.cuda.current_device() == 0
    moved = x.detach().to("cuda:0")
    np.testing.assert_array_equal(moved.numpy(), x.numpy(force=True))


@two_devices
def test_devices_are_not_mixed():
    a, b = cg.tensor([1.0, 2.0], device="cuda:0"), cg.tensor([1.0, 2.0], device="cuda:1")
    host = cg.tensor([1.0, 2.0], device="cpu")
    with pytest.raises(ValueError, match=r"\[add\] All .* one device. Got cuda:0 and cuda:1"):
        a + b
    with pytest.raises(ValueError, match=r"\[mul\] All .* one device. Got cpu and cuda:0"):
        a * host
    with pytest.raises(ValueError, match=r"\[linear\] All .* one device. Got cpu and cuda:0"):
        F.linear(a, host[None])
    with pytest.raises(ValueError, match="one device. Got cuda:0 and, for b, cuda:1"):
        cg.backend.lib_of(a.array).add(a.array, b.array)
    assert cg.cuda.current_device() == 0


def test_numpy_copies_and_numpy_protocols():
    x = cg.tensor(normal(2, 3, 4, 4))
    host = x.numpy()
    assert isinstance(host, np.ndarray) and host.flags.c_contiguous
    host[...] = 0
    assert float(abs(x).sum()) > 0
    np.testing.assert_array_equal(np.asarray(x), x.numpy())
    with pytest.raises(ValueError, match="needs a copy. Got copy=False"):
        np.asarray(x, copy=False)
    assert not hasattr(x, "__array_interface__")
    assert x.tolist()[0][0] == x[0, 0].tolist() and isinstance(x[0, 0, 0, 0].item(), float)


def test_memory_is_shared_with_other_libraries():
    x = cg.tensor(normal(2, 3))
    about = x.__cuda_array_interface__
    assert about["shape"] == (2, 3) and about["data"][0] == x.array.data.ptr
    assert x.__dlpack_device__() == (2, 0)
    y = cg.from_dlpack(x.array)
    y.add_(1.0)
    np.testing.assert_array_equal(x.numpy(), y.numpy())
    assert not hasattr(cg.zeros(1, device="cpu"), "__cuda_array_interface__")
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        _ = x.requires_grad_().__cuda_array_interface__


def test_copies_of_modules_keep_their_device():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    x = cg.tensor(normal(2, 1, 5, 5))
    y = net(x)
    y.sum().backward()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert {t.device for t in (*other.parameters(), *other.buffers())} == {"cuda:0"}
        net.eval(), other.eval()
        np.testing.assert_array_equal(other(x).numpy(force=True), net(x).numpy(force=True))
        net.train()


def test_modules_and_state_dicts_move(on_cpu):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    cpu_state = {k: v.numpy(force=True).copy() for k, v in net.state_dict().items()}
    parameters = list(net.parameters())
    assert net.cuda() is net and list(net.parameters()) == parameters
    assert {t.device for t in (*net.parameters(), *net.buffers())} == {"cuda:0"}
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(force=True), cpu_state[key])
    net(cg.tensor(normal(2, 1, 5, 5), device="cuda")).sum().backward()
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    other.load_state_dict(net.state_dict())
    assert {t.device for t in other.parameters()} == {"cpu"}
    net.cpu()
    assert {t.device for t in net.parameters()} == {t.grad.device for t in net.parameters()}
    assert net[0].weight.grad.device == "cpu"


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam], ids=["SGD", "Adam"])
def test_optimizers_keep_their_state_on_the_device(rule):
    def train(device):
        w = cg.tensor(normal(3, 2, 3, 3), device=device, requires_grad=True)
        how = {"momentum": 0.9} if rule is optim.SGD else {}
        first = rule([w], lr=0.1, **how)
        for step in range(4):
            w.grad = cg.tensor(normal(3, 2, 3, 3), device=device) * float(step + 1)
            if step == 2:  # resumed
                saved = first.state_dict()
                first = rule([w], lr=0.5, **how)
                first.load_state_dict(saved)
            first.step()
        return w.numpy(force=True), first

    on_gpu, optimizer = train("cuda")
    np.testing.assert_allclose(on_gpu, train_on_cpu(rule), rtol=1e-5, atol=1e-6)
    (kept,) = optimizer.state.values()
    assert all(type(v).__name__ == "ndarray" and v.device.id == 0 for v in kept.values())
    (saved,) = optimizer.state_dict()["state"].values()
    assert all(isinstance(v, (np.ndarray, float)) for v in saved.values())


def train_on_cpu(rule):
    w = normal(3, 2, 3, 3).astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step in range(4):
        g = normal(3, 2, 3, 3).astype(np.float64) * (step + 1)
        if rule is optim.SGD:
            m = 0.9 * m + g if step else g
            w = w - 0.1 * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            t = step + 1
            w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


# ---- errors ----


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: loss.numpy(),
        lambda loss: loss.cpu(),
        lambda loss: loss.tolist(),
        lambda loss: bool(loss),
        lambda loss: repr(loss),
        lambda loss: cg.cuda.synchronize(),
    ],
    ids=["item", "numpy", "cpu", "tolist", "bool", "repr", "synchronize"],
)
def test_bad_values_are_raised_by_the_next_call_that_waits(wait):
    logits = cg.tensor(normal(4, 3))
    loss = F.cross_entropy(logits, cg.tensor([0, 1, 7, 2]))
    with pytest.raises(ValueError, match=r"\[cross_entropy\] .* in \[0, 3\)\. Got 7 .*cuda:0"):
        wait(loss)
    wait(cg.ones(()))  # once


def test_bad_indices():
    x = cg.tensor(normal(5, 2))
    for index in (cg.tensor([0, 5]), (cg.tensor([0, 1]), cg.tensor([2, 0])), cg.tensor([[9]])):
        y = x[index]
        with pytest.raises(ValueError, match=r"Got (5|2|9) "):
            y.tolist()
    with pytest.raises(IndexError):
        x[7]


def test_out_of_memory_says_how_much():
    with pytest.raises(MemoryError, match="400,000,000,000,000 bytes"):
        cg.empty(10**14)
    assert cg.zeros(2).tolist() == [0, 0]


def test_memory_stats_and_waiting():
    gc.collect()
    before = cg.cuda.memory_stats()["live_bytes"]
    x = cg.zeros(1000)
    stats = cg.cuda.memory_stats("cuda:0")
    assert stats["live_bytes"] - before >= 4000
    assert 0 < stats["free_bytes"] <= stats["total_bytes"]
    del x
    assert cg.cuda.memory_stats()["live_bytes"] == before
    cg.cuda.empty_cache()
    cg.cuda.synchronize(0)
    assert cg.cuda.is_available() and cg.cuda.get_device_name()
    with pytest.raises(ValueError, match=r"\[cuda\] The device must be a GPU. Got 'cpu'"):
        cg.cuda.synchronize("cpu")


@pytest.mark.skipif(not SIMULATED, reason="looks into the simulator's memory")
def test_uploads_of_any_size_are_whole():
    lib = cg.backend.by_device("cuda").lib
    for n in (0, 1, 499, 500, 501, 2000, 2001):
        values = np.arange(n, dtype=np.float64)
        np.testing.assert_array_equal(lib.to_device(values, 0).get(), values)
