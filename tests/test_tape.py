"""The tape in C++ (csrc/tape/): memory, threads, and attributes that somebody has spoilt."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

import convgrad as cg
from convgrad import _tape, nn
from convgrad.autograd import Op

pytestmark = pytest.mark.cpu("of the tape, whatever the device")


class Twice(Op):
    """y = 2 x, with the input saved though backward does not need it."""

    def forward(self, x):
        self.saved = (x,)
        return x + x

    def backward(self, dy):
        return dy + dy


def leaf(*shape: int) -> cg.Tensor:
    return cg.tensor(np.ones(shape, np.float32), requires_grad=True)


@pytest.mark.quick
def test_a_step_leaves_no_object_behind():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    x = cg.tensor(np.ones((2, 1, 4, 4), np.float32))
    many = cg.tensor(np.zeros((2, 8), np.float32), requires_grad=True)

    def step():
        net.zero_grad()
        many.grad = None
        (net(x) * many).sum().backward()

    def blocks():
        gc.collect()
        return sys.getallocatedblocks()

    for _ in range(20):
        step()
    before = blocks()
    for _ in range(1000):
        step()
    assert blocks() - before < 500  # one object per step would be 1,000


def test_a_cycle_through_an_op_is_collected():
    y = Twice.apply((leaf(2),))
    y.node.output = y
    y.register_hook(lambda gradient, y=y: None)
    node = weakref.ref(y.node)
    del y
    assert node() is not None
    gc.collect()
    assert node() is None


def test_each_thread_has_its_own_grad_mode():
    seen = []
    with cg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(cg.is_grad_enabled()))
        thread.start()
        thread.join()
        seen.append(cg.is_grad_enabled())
    assert seen == [True, False]


def test_backward_inside_a_hook():
    x, z = leaf(2), leaf(2)
    y = Twice.apply((x,))
    y.register_hook(lambda gradient: (z * z).sum().backward())
    assert cg.is_grad_enabled()
    # Nothing is recorded during a walk: the inner one has no graph.
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        y.sum().backward()
    assert cg.is_grad_enabled() and z.grad is None and x.grad is None


def test_backward_may_give_fewer_gradients_than_there_are_inputs():
    class First(Op):
        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return (dy,)

    a, b = leaf(2), leaf(2)
    y = First.apply((Twice.apply((a,)), Twice.apply((b,))))
    y.backward(cg.ones_like(y))
    assert a.grad.tolist() == [2, 2] and b.grad is None


def test_a_walk_starts_at_tensors():
    with pytest.raises(TypeError, match="starts at tensors"):
        _tape.walk([3], [None], False, None)


def test_apply_wants_a_sequence():
    with pytest.raises(TypeError, match="inputs are missing"):
        Twice.apply()
    with pytest.raises(TypeError, match="must be a sequence"):
        Twice.apply(3)


@pytest.mark.parametrize("name", ["array", "node", "version", "grad", "hooks", "post_hooks"])
def test_a_deleted_attribute_of_a_tensor_is_no_crash(name):
    x = leaf(2)
    delattr(x, name)
    if name in ("array", "version"):
        with pytest.raises((AttributeError, TypeError)):
            Twice.apply((x,))
        return
    y = Twice.apply((x,))
    if name in ("grad", "hooks", "post_hooks"):  # _accumulate misses it
        with pytest.raises(AttributeError, match=name):
            y.backward(cg.ones_like(y))
    else:
        y.backward(cg.ones_like(y))
        assert x.grad.tolist() == [2, 2]


def test_spoilt_attributes_are_errors():
    x = leaf(2)
    x.node = "not an op"
    with pytest.raises(TypeError, match="node must be an Op"):
        Twice.apply((x,))
    x = leaf(2)
    x.version = []
    with pytest.raises(TypeError, match="version must be a list of one int"):
        Twice.apply((x,))
    x = leaf(2)
    x.version = ["two"]
    with pytest.raises(TypeError):
        Twice.apply((x,))
    y = Twice.apply((leaf(2),))
    for name in ("edges", "needs"):
        with pytest.raises(AttributeError):
            setattr(y.node, name, ())
    y.index = 7
    with pytest.raises(IndexError):
        y.backward(cg.ones_like(y))
    y.index = 0
    del y.node.saved
    y.backward(cg.ones_like(y))
