"""New tensors, and the random generator."""

import copy
import json
import pickle

import numpy as np
import pytest

import convgrad as cg
from tests.device import lib, values


def same(torch, make, exact=True):
    ours, theirs = make(cg), make(torch)
    assert ours.shape == tuple(theirs.shape)
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    assert ours.requires_grad == theirs.requires_grad
    if exact:
        np.testing.assert_allclose(ours.numpy(force=True), theirs.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.tensor(2),
        lambda t: t.tensor(2.5),
        lambda t: t.tensor([1, 2.5]),
        lambda t: t.tensor([[True], [False]]),
        lambda t: t.tensor([[1, 2], [3, 4]], dtype=t.float64),
        lambda t: t.tensor(np.arange(6.0).reshape(2, 3)),
        lambda t: t.tensor(np.float64(2.5)),
        lambda t: t.tensor(np.arange(3, dtype=np.uint8)),
        lambda t: t.tensor([]),
        lambda t: t.tensor([1.0], requires_grad=True),
        lambda t: t.tensor([t.tensor(1.0), t.tensor(2.0)]),
        lambda t: t.as_tensor([1, 2]),
        lambda t: t.as_tensor([1, 2], dtype=t.float32),
        lambda t: t.zeros(2, 3),
        lambda t: t.zeros((2, 3), dtype=t.int64),
        lambda t: t.zeros(()),
        lambda t: t.zeros(0, 3, requires_grad=True),
        lambda t: t.ones([4], dtype=t.bool),
        lambda t: t.full((2, 2), 7),
        lambda t: t.full((2,), 1.5),
        lambda t: t.full((), True),
        lambda t: t.full((2,), 3, dtype=t.float64),
        lambda t: t.zeros_like(t.ones(2, 3, dtype=t.int32)),
        lambda t: t.ones_like(t.zeros(2), dtype=t.float64, requires_grad=True),
        lambda t: t.full_like(t.zeros(2, 2), 4),
        lambda t: t.eye(3),
        lambda t: t.eye(2, 4, dtype=t.int64),
        lambda t: t.arange(5),
        lambda t: t.arange(2, 9, 3),
        lambda t: t.arange(5, 0, -2),
        lambda t: t.arange(0, 1, 0.25),
        lambda t: t.arange(3.0),
        lambda t: t.arange(3, dtype=t.float32),
        lambda t: t.arange(0),
        lambda t: t.linspace(0, 1, 5),
        lambda t: t.linspace(3, -3, 7, dtype=t.float64),
        lambda t: t.linspace(0, 1, 1),
    ],
)
def test_parity(torch, make):
    same(torch, make)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.empty(2, 3),
        lambda t: t.empty((2, 3, 4), dtype=t.int64),
        lambda t: t.empty_like(t.zeros(3, dtype=t.float64)),
        lambda t: t.rand(2, 3),
        lambda t: t.rand((4,), dtype=t.float64),
        lambda t: t.randn(2, 3, 4, requires_grad=True),
        lambda t: t.randn(()),
        lambda t: t.rand_like(t.ones(2, dtype=t.float64)),
        lambda t: t.randn_like(t.ones(2, 3)),
        lambda t: t.randint(5, (2, 3)),
        lambda t: t.randint(-3, 5, (4,), dtype=t.int32),
        lambda t: t.randperm(7),
    ],
)
def test_shapes_and_types(torch, make):
    same(torch, make, exact=False)


@pytest.mark.cpu("of memory shared with the host; tests/test_device.py has a GPU's")
@pytest.mark.quick
def test_tensor_copies_and_as_tensor_shares():
    a = np.ones((2, 3), np.float32)
    assert not np.shares_memory(cg.tensor(a).array, a)
    assert cg.as_tensor(a).array is a and cg.from_numpy(a).array is a
    t = cg.tensor(a)
    assert cg.as_tensor(t) is t and cg.tensor(t) is not t
    assert not np.shares_memory(cg.tensor(t).array, t.array)
    assert cg.as_tensor(a, dtype=cg.float64).dtype == np.float64


@pytest.mark.quick
def test_layout():
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    for t in (cg.tensor(x), cg.zeros(1, 2, 3, 4), cg.randn(1, 2, 3, 4), cg.ones_like(cg.tensor(x))):
        assert lib.is_channels_last(t.array)
    assert cg.tensor(x.astype(np.int64)).array.flags.c_contiguous  # targets stay row-major
    np.testing.assert_array_equal(values(cg.tensor(x)), x)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cg.zeros(-1), ValueError, r"\[zeros\] .*\(-1,\)"),
        (lambda: cg.zeros(2.5), TypeError, r"\[zeros\] Sizes must be ints.*2\.5"),
        (lambda: cg.zeros(2, dtype="float8"), TypeError, r"\[zeros\] dtype .*'float8'"),
        (lambda: cg.zeros(2, dtype="nonsense"), TypeError, r"\[zeros\] dtype .*'nonsense'"),
        (lambda: cg.tensor(np.ones(2, np.complex64)), TypeError, r"\[tensor\] dtype .*complex64"),
        (lambda: cg.tensor(["a"]), TypeError, r"\[tensor\] dtype .*U1"),
        (lambda: cg.tensor([None]), TypeError, r"\[tensor\] dtype .*object|dtype\('O'\)"),
        (lambda: cg.tensor([[1, 2], [3]]), ValueError, r"inhomogeneous"),
        (lambda: cg.tensor([1], device="tpu"), ValueError, r"\[device\] .*'tpu'"),
        (lambda: cg.zeros(1, device="cuda:99"), RuntimeError, r"'cuda:99' is not available"),
        (lambda: cg.tensor([1], requires_grad=True), TypeError, r"Got int64"),
        (lambda: cg.from_numpy([1.0]), TypeError, r"\[from_numpy\] .*list"),
        (lambda: cg.arange(0, 5, 0), ValueError, r"\[arange\] step"),
        (lambda: cg.arange(0, 5, -1), ValueError, r"\[arange\] .*0, 5, -1"),
        (lambda: cg.linspace(0, 1, -1), ValueError, r"\[linspace\] .*-1"),
        (lambda: cg.randint(3, 3, (2,)), ValueError, r"\[randint\] .*3 and 3"),
        (lambda: cg.rand(2, dtype=cg.int64), TypeError, r"\[rand\] .*int64"),
        (lambda: cg.Generator().next_state(-1), ValueError, r"\[next_state\] .*-1"),
        (lambda: cg.Generator().load_state_dict({"seed": 1}), ValueError, r"'counter'.*'offset'"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_allocation_failure_is_a_memory_error():
    with pytest.raises(MemoryError):
        cg.zeros(1 << 31, 1 << 20)
    assert cg.zeros(2).tolist() == [0, 0]


# ---- random ----


@pytest.mark.quick
def test_seed_repeats_everything():
    def draws():
        return [
            cg.rand(3).tolist(),
            cg.randn(2, 2).tolist(),
            cg.randint(100, (4,)).tolist(),
            cg.randperm(9).tolist(),
            cg.default_generator.next_state(10).tolist(),
        ]

    assert cg.manual_seed(5) is cg.default_generator and cg.initial_seed() == 5
    first = draws()
    cg.manual_seed(5)
    assert draws() == first
    cg.manual_seed(6)
    assert draws() != first
    cg.manual_seed(-1)  # any int
    assert cg.initial_seed() == 2**64 - 1


def test_generators_are_apart():
    cg.manual_seed(0)
    a = cg.rand(4, generator=cg.Generator(1))
    assert cg.rand(4, generator=cg.Generator(1)).tolist() == a.tolist()
    cg.manual_seed(0)
    assert cg.rand(4).tolist() != a.tolist()


def test_distributions():
    g = cg.Generator(3)
    u, n = cg.rand(20_000, generator=g), cg.randn(20_000, generator=g)
    assert u.min().item() >= 0 and u.max().item() < 1
    assert abs(u.mean().item() - 0.5) < 0.01 and abs(u.var().item() - 1 / 12) < 0.003
    assert abs(n.mean().item()) < 0.03 and abs(n.std().item() - 1) < 0.02
    k = cg.randint(-2, 3, (5_000,), generator=g)
    assert sorted(set(k.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(cg.randperm(50, generator=g).tolist()) == list(range(50))


@pytest.mark.quick
def test_generator_state():
    g = cg.Generator(7)
    g.numpy.standard_normal(3)
    g.numpy.integers(0, 9, 3, dtype=np.uint32)
    assert g.next_state(9).tolist() == [7, 0] and g.next_state(1).tolist() == [7, 3]
    assert g.next_state(0).tolist() == [7, 4] and g.next_state(8).tolist() == [7, 4]
    state = json.loads(json.dumps(g.state_dict()))
    copies = [copy.deepcopy(g), pickle.loads(pickle.dumps(g)), cg.Generator()]
    copies[2].load_state_dict(state)
    expected = g.numpy.random(8).tolist(), g.next_state(4).tolist()
    for other in copies:
        assert (other.numpy.random(8).tolist(), other.next_state(4).tolist()) == expected
        assert other.initial_seed() == 7
    assert expected[1] == [7, 6] and g.next_state(1).dtype == np.uint64
