"""DataLoader(device=...): batches copied ahead, in the order that events make. In the simulator a
copy from pinned memory lands when somebody waits for it, and no sooner."""

import gc
import threading
from collections import namedtuple

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad.data import DataLoader, TensorDataset
from convgrad.data.transfer import Transfer
from tests.device import BACKEND, ON_CPU, SIMULATED

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(ON_CPU, reason="needs CONVGRAD_TEST_DEVICE=cuda"),
]
simulated = pytest.mark.skipif(not SIMULATED, reason="copies land as late as they may")


def images(n=20):
    x = np.random.default_rng(0).standard_normal((n, 2, 3, 3)).astype(np.float32)
    return x, np.arange(n)


def loader_of(x, y, **how):
    dataset = TensorDataset(cg.tensor(x, device="cpu"), cg.tensor(y, device="cpu"))
    return DataLoader(dataset, batch_size=4, device="cuda", **how)


def sums(loader):
    """A step of several kernels per batch whose results are read in the end, so that nothing waits
    meanwhile."""
    found = []
    for x, y in loader:
        found.append((F.relu(x * 2.0) + x).sum() + y.sum().float())
        del x, y
        gc.collect()
    return [v.item() for v in found]


def expected(x, y):
    parts = [slice(i, i + 4) for i in range(0, len(x), 4)]
    return [np.maximum(2 * x[p], 0).sum() + x[p].sum() + y[p].sum() for p in parts]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_arrive_whole_and_in_order(workers):
    x, y = images()
    loader = loader_of(x, y, num_workers=workers)
    for _ in range(2):
        np.testing.assert_allclose(sums(loader), expected(x, y), rtol=1e-5)
    kept = list(loader)
    assert [b[1].tolist() for b in kept] == [list(range(i, i + 4)) for i in range(0, 20, 4)]
    for i, (batch, _) in enumerate(kept):
        assert batch.device == "cuda:0"
        assert cg.backend.lib_of(batch.array).is_channels_last(batch.array)
        np.testing.assert_array_equal(batch.numpy(), x[4 * i : 4 * i + 4])


def test_structures_and_types():
    Pair = namedtuple("Pair", "a b")
    items = [
        {"x": np.full((2, 3), i, np.float64), "n": i, "pair": Pair(i > 1, [0.5]), "name": f"i{i}"}
        for i in range(3)
    ]
    first, last = DataLoader(items, batch_size=2, device="cuda:0", num_workers=2)
    assert first["x"].dtype == cg.float64 and first["x"].device == "cuda:0"
    assert first["n"].tolist() == [0, 1] and first["name"] == ["i0", "i1"]
    assert first["pair"].b[0].tolist() == [0.5, 0.5] and last["pair"].a.tolist() == [True]
    empty = DataLoader([np.zeros((0, 3), np.float32)], device="cuda")
    assert next(iter(empty)).shape == (1, 0, 3)
    on_cpu = DataLoader([1.0, 2.0], device="cpu")
    assert next(iter(on_cpu)).device == "cpu"


def test_a_loader_may_go_before_its_last_copies_are_made():
    first, last = loader_of(*images(8))
    gc.collect()
    assert first[1].tolist() == [0, 1, 2, 3] and last[1].tolist() == [4, 5, 6, 7]


def test_an_exception_comes_at_its_batch():
    class Bad(list):
        def __getitem__(self, i):
            if i == 2:
                raise KeyError("item 2")
            return float(i)

    for workers in (0, 2):
        seen = []
        with pytest.raises(KeyError, match="item 2"):
            for batch in DataLoader(Bad(range(4)), device="cuda", num_workers=workers):
                seen += batch.tolist()
        assert seen == [0, 1]


def test_leaving_early_and_going_on():
    x, y = images()
    loader = loader_of(x, y, num_workers=2)
    for _, labels in loader:
        if labels.tolist()[0] == 4:
            state = loader.state_dict()
            break
    assert state["position"] == 2 and threading.active_count() < 20
    other = loader_of(x, y)
    other.load_state_dict(state)
    assert [labels.tolist()[0] for _, labels in other] == [8, 12, 16]


def test_training_from_a_loader_by_a_captured_step():
    x, y = images(24)
    results = []
    for capture in (lambda step: step, cg.cuda.capture(warmup=1)):
        weight = cg.tensor(np.ones((2, 1), np.float32), requires_grad=True)

        def step(x, y, weight=weight):
            weight.grad = None
            loss = ((x.mean((2, 3)) @ weight).squeeze(1) - y.float()).abs().mean()
            loss.backward()
            with cg.no_grad():
                weight.sub_(weight.grad * 0.1)
            return loss

        step = capture(step)
        results.append([step(*batch).item() for batch in loader_of(x, y, num_workers=2)])
    assert results[0] == results[1]


# ---- broken twins ----


def broken(monkeypatch, name, function):
    monkeypatch.setattr(Transfer, name, function)


@simulated
def test_copies_are_asynchronous():
    transfer = Transfer(BACKEND)
    staged = transfer.stage(cg.tensor([1.0, 2.0], device="cpu"))
    sent = transfer.send(staged)
    assert np.isnan(sent.batch.array._host).all() and not sent.arrived.done
    staged.values[...] = 7  # too early: the copy has not been made
    sent.arrived.synchronize()
    assert sent.batch.tolist() == [7, 7]


@simulated
def test_a_loader_whose_batches_are_used_before_they_arrive_is_caught(monkeypatch):
    broken(monkeypatch, "arrive", lambda self, sent: sent.batch)
    loader = loader_of(*images())
    with pytest.raises(RuntimeError, match="uninitialised"):
        sums(loader)
    gc.collect()
    with pytest.raises(RuntimeError, match="use after free"):  # by the copies
        cg.cuda.synchronize()


@simulated
def test_a_loader_that_returns_pinned_memory_early_is_caught(monkeypatch):
    class Done:
        def synchronize(self):
            pass

    whole = Transfer._give_back
    broken(monkeypatch, "_give_back", lambda self, buffers, copied: whole(self, buffers, Done()))
    x, y = images()
    with pytest.raises(AssertionError, match="Mismatch"):
        np.testing.assert_allclose(sums(loader_of(x, y)), expected(x, y), rtol=1e-5)


@simulated
def test_a_loader_that_returns_device_memory_early_is_caught(monkeypatch):
    """With a pool that hands a block out as soon as Python lets it go, as CuPy's does, and a
    stream that is behind."""
    x, y = images()
    cuda = BACKEND.xp.cuda
    pool, pinned = cuda.MemoryPool(), np.frombuffer(cuda.alloc_pinned_memory(4), np.int32)

    def late_sums():
        BACKEND.xp.empty(1, np.int32).set(pinned)
        return sums(loader_of(x, y))

    with cuda.using_allocator(pool.malloc):
        np.testing.assert_allclose(late_sums(), expected(x, y), rtol=1e-5)
        broken(monkeypatch, "_wait_for_memory", lambda self: None)
        with pytest.raises(RuntimeError, match="uninitialised"):  # copied too early, and gone
            late_sums()
