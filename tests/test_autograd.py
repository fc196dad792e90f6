"""The tape: order, sums, memory, versions, hooks, the user's own functions."""

import gc
import itertools
import threading
import weakref

import numpy as np
import pytest

import convgrad as cg
from convgrad.autograd import Function, Op
from convgrad.backend import lib_of
from tests.device import live_bytes

from .helpers import assert_gradients, assert_parity


def leaf(*values: float) -> cg.Tensor:
    return cg.tensor(list(values), requires_grad=True)


# ---- graphs ----


@pytest.mark.quick
def test_shared_tensor_and_diamond():
    x = leaf(2.0, 3.0)
    a = x * x  # x twice in one op
    b = a + x
    (a * b).sum().backward()  # x^4 + x^3
    np.testing.assert_array_equal(x.grad.numpy(), [4 * 8 + 3 * 4, 4 * 27 + 3 * 9])


def test_the_same_tensor_in_many_ops_adds_in_one_order():
    x = cg.randn(50, requires_grad=True)
    grads = []
    for _ in range(3):
        x.grad = None
        parts = [x * float(i) for i in range(10)]
        cg.stack(parts).sum().backward()
        grads.append(x.grad.numpy().tobytes())
    assert grads[0] == grads[1] == grads[2]


def test_gradients_accumulate_and_the_old_array_stays():
    x = leaf(1.0, 2.0)
    (x * 3.0).sum().backward()
    first = x.grad
    array = x.grad.numpy()
    (x * 4.0).sum().backward()
    assert x.grad is first
    np.testing.assert_array_equal(x.grad.numpy(), [7, 7])
    np.testing.assert_array_equal(array, [3, 3])


@pytest.mark.quick
def test_leaf_gradients_never_alias():
    a, b, c = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0)
    y = a + b + c.reshape(2, 1).reshape(2)  # one gradient array reaches all three
    dy = cg.tensor([1.0, 2.0])
    y.backward(dy)
    for t in (a, b, c):
        t.grad.mul_(10.0)
    for t in (a, b, c):
        np.testing.assert_array_equal(t.grad.numpy(), [10, 20])
    np.testing.assert_array_equal(dy.numpy(), [1, 2])


def test_leaf_gradient_is_not_a_saved_array():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x * w).sum()
    y.backward(retain_graph=True)
    x.grad.zero_()
    w.grad.zero_()
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])
    np.testing.assert_array_equal(w.grad.numpy(), [1, 2])


def test_backward_of_a_leaf():
    x = leaf(1.0)
    x.backward()
    assert x.grad.item() == 1


def test_several_outputs_and_unused_ones():
    x = cg.tensor(np.arange(6.0, dtype=np.float32).reshape(2, 3), requires_grad=True)
    values, indices = x.max(dim=1)
    assert not indices.requires_grad and indices.dtype == cg.int64
    values.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0, 1], [0, 0, 1]])
    x.grad = None
    first, _, third = x.split(1, dim=1)
    (first + third).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 0, 1], [1, 0, 1]])


def deep(x: cg.Tensor, n: int) -> cg.Tensor:
    for _ in range(n // 2):
        x = x.reshape(1, 1).reshape(1)
    return x


@pytest.mark.quick
def test_chain_of_10000():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + 1.0
    assert y.item() == 10_001
    y.backward()
    assert x.grad.item() == 1


def test_chain_of_100000_dropped_without_backward():
    y = deep(leaf(1.0), 100_000)
    node = weakref.ref(y.node)
    del y
    assert node() is None


def test_long_chain_walked_with_the_graph_kept():
    x = leaf(1.0)
    y = deep(x, 30_000)
    y.backward(retain_graph=True)
    assert x.grad.item() == 1
    del y


def test_wide_graph_dropped():
    x = leaf(1.0)
    y = x
    for _ in range(5_000):
        y = y + y * 0.5
    del y


# ---- memory ----


def test_memory_is_freed_without_gc():
    gc.collect()
    gc.disable()
    try:
        live = live_bytes()
        x = cg.zeros(64, 64, requires_grad=True)
        one = live_bytes() - live
        y = x
        for _ in range(10):
            y = (y * 0.5).exp()
        loss = y.sum()
        node = weakref.ref(loss.node)
        loss.backward()
        assert node().saved == () and node().edges is None
        del y, loss
        assert node() is None
        assert live_bytes() - live == 2 * one  # x and its gradient
        y = (x * 2.0).exp()
        del y  # never walked
        assert live_bytes() - live == 2 * one
    finally:
        gc.enable()


def test_saved_arrays_are_freed_as_backward_goes():
    """Each op of a chain frees its output before the op before it runs backward."""
    alive = []

    class Probe(Op):
        def forward(self, x):
            kernels = lib_of(x)
            self.saved = (kernels.empty_like(x),)
            self.saved[0][...] = x
            return kernels.add(x, x)

        def backward(self, dy):
            alive.append(live_bytes())
            return dy

    x = cg.zeros(100, 100, requires_grad=True)
    y = x
    for _ in range(6):
        y = Probe.apply((y,))
    y = y.sum()
    y.backward()
    assert all(later < earlier for earlier, later in itertools.pairwise(alive[1:])), alive


# ---- modes ----


@pytest.mark.quick
def test_no_grad_and_enable_grad_nest():
    x = leaf(1.0)
    with cg.no_grad():
        assert not (x * 2.0).requires_grad
        with cg.enable_grad():
            assert (x * 2.0).requires_grad
        assert not cg.is_grad_enabled()
    assert cg.is_grad_enabled()

    @cg.no_grad()
    def f():
        return x * 2.0

    assert not f().requires_grad and (x * 2.0).requires_grad
    with pytest.raises(KeyError), cg.no_grad():
        raise KeyError
    assert cg.is_grad_enabled()


def test_set_grad_enabled():
    with cg.set_grad_enabled(False):
        assert not cg.is_grad_enabled()
    assert cg.is_grad_enabled()
    cg.set_grad_enabled(False)
    assert not cg.is_grad_enabled()
    cg.set_grad_enabled(True)
    assert cg.is_grad_enabled()

    @cg.set_grad_enabled(False)
    def f():
        return cg.is_grad_enabled()

    assert f() is False and cg.is_grad_enabled()


def test_grad_mode_is_thread_local():
    seen = []
    with cg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(cg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_mode_is_restored_after_a_failing_backward():
    class Fails(Op):
        def forward(self, x):
            return x + 1

        def backward(self, dy):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Fails.apply((leaf(1.0),)).backward()
    assert cg.is_grad_enabled()


def test_independent_graphs_in_threads():
    def work(i: int) -> None:
        x = cg.full((8,), float(i), requires_grad=True)
        for _ in range(50):
            x.grad = None
            (x * x).sum().backward()
        results[i] = x.grad.numpy()

    results = {}
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], np.full(8, 2.0 * i, np.float32))


# ---- errors in words ----


@pytest.mark.quick
def test_backward_errors():
    x = leaf(1.0, 2.0)
    with pytest.raises(
        RuntimeError, match=r"\[backward\] .*only for a tensor of one element.*\(2,\)"
    ):
        (x * 2.0).backward()
    with pytest.raises(RuntimeError, match=r"does not require a gradient"):
        cg.tensor([1.0]).backward()
    with pytest.raises(ValueError, match=r"\(2,\) float32\. Got \(3,\) float32"):
        (x * 2.0).backward(cg.ones(3))
    y = (x * 2.0).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"already walked.*retain_graph=True"):
        y.backward()
    with pytest.raises(RuntimeError, match=r"create_graph=True is not supported.*double backward"):
        (x * 2.0).sum().backward(create_graph=True)


def test_a_part_of_the_graph_walked_before_says_so():
    x = leaf(1.0, 2.0)
    shared = x * 2.0
    shared.sum().backward()
    with pytest.raises(RuntimeError, match=r"graph of this Mul was already walked"):
        (shared + 1.0).sum().backward()


def test_retain_graph():
    x = leaf(1.0, 2.0)
    y = x.exp().sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp([1, 2]), rtol=1e-6)


def test_requires_grad_needs_floats_and_leaves():
    with pytest.raises(TypeError, match=r"float tensors can require gradients\. Got int64"):
        cg.tensor([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match="Got bool"):
        cg.tensor([True]).requires_grad_()
    y = leaf(1.0) * 2.0
    with pytest.raises(RuntimeError, match=r"result of Mul"):
        y.requires_grad = False


# ---- versions ----


@pytest.mark.quick
def test_in_place_change_between_forward_and_backward_raises():
    w = leaf(3.0)
    y = (leaf(2.0) * w).sum()
    with cg.no_grad():
        w.add_(1.0)
    with pytest.raises(RuntimeError, match=r"shape \(1,\) saved by Mul.*version 1.*saw 0"):
        y.backward()


@pytest.mark.parametrize("change", ["detach", "data", "reshape", "index", "transpose"])
def test_versions_are_shared_by_what_shares_memory(change):
    w = cg.tensor([[3.0, 4.0]], requires_grad=True)
    other = {
        "detach": lambda: w.detach(),
        "data": lambda: w.data,
        "reshape": lambda: w.reshape(2),
        "index": lambda: w[0],
        "transpose": lambda: w.T,
    }[change]
    with cg.no_grad():
        alias = other()
    y = (w * w).sum()
    with cg.no_grad():
        alias.zero_()
    assert w.detach().numpy().tolist() == [[0, 0]]
    with pytest.raises(RuntimeError, match=r"changed in place"):
        y.backward()


def test_a_saved_output_is_guarded_too():
    x = leaf(1.0)
    y = x.exp()
    y.detach().zero_()
    with pytest.raises(RuntimeError, match=r"saved by Unary"):
        y.backward()


def test_a_change_of_what_was_not_saved_is_fine():
    x, w = leaf(1.0), leaf(2.0)
    y = x + w  # needs neither
    with cg.no_grad():
        w.add_(1.0)
    y.backward()
    assert w.grad.item() == 1
    y = x * w
    y.backward()
    with cg.no_grad():
        w.add_(1.0)  # as an optimizer does


# ---- grad() ----


@pytest.mark.quick
def test_grad():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    h = x * w
    gx, gh = cg.autograd.grad((h * h).sum(), (x, h))
    np.testing.assert_array_equal(gx.numpy(), [18, 64])
    np.testing.assert_array_equal(gh.numpy(), [6, 16])
    assert x.grad is None and w.grad is None


def test_grad_results_never_alias():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    start = cg.ones(2)
    gx, gw = cg.autograd.grad(x + w, (x, w), start)
    gx.mul_(5.0)
    np.testing.assert_array_equal(gw.numpy(), [1, 1])
    np.testing.assert_array_equal(start.numpy(), [1, 1])


def test_grad_of_several_outputs():
    x = leaf(1.0, 2.0)
    (g,) = cg.autograd.grad([(x * 2.0).sum(), x.exp()], x, [None, cg.ones(2)])
    np.testing.assert_allclose(g.numpy(), 2 + np.exp([1, 2]), rtol=1e-6)
    (g,) = cg.autograd.grad([x, x], [x], [cg.ones(2), cg.ones(2)])
    np.testing.assert_array_equal(g.numpy(), [2, 2])


def test_grad_errors():
    x, other = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match=r"do not depend on input \[0\].*allow_unused"):
        cg.autograd.grad(x * 2.0, other)
    assert cg.autograd.grad(x * 2.0, other, allow_unused=True) == (None,)
    with pytest.raises(RuntimeError, match=r"Input 0, of shape \(1,\), does not require"):
        cg.autograd.grad(x * 2.0, cg.ones(1))
    with pytest.raises(ValueError, match=r"one entry per output, 1\. Got 2"):
        cg.autograd.grad(x * 2.0, x, [cg.ones(1), cg.ones(1)])
    with pytest.raises(RuntimeError, match="double backward"):
        cg.autograd.grad(x * 2.0, x, create_graph=True)


# ---- hooks ----


@pytest.mark.quick
def test_hooks_on_leaves_and_results():
    x = leaf(1.0, 2.0)
    seen = []
    h = x * 2.0
    a = h.register_hook(lambda g: seen.append(g.numpy().copy()))
    b = h.register_hook(lambda g: g * 10.0)
    c = x.register_hook(lambda g: g + 1.0)
    (h + h).sum().backward()
    np.testing.assert_array_equal(seen[0], [2, 2])  # complete: both uses
    np.testing.assert_array_equal(x.grad.numpy(), [41, 41])
    for handle in (a, b, c):
        handle.remove()
    x.grad = None
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 2])


def test_hook_errors():
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        cg.ones(2).register_hook(print)
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: cg.ones(3))
    with pytest.raises(ValueError, match=r"gradient's shape, \(2,\)"):
        x.sum().backward()


def test_post_accumulate_hook_sees_the_whole_gradient_once():
    x = leaf(1.0, 2.0)
    seen = []
    handle = x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.numpy().copy()))
    (x * x + x).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], [3, 5])
    handle.remove()
    with pytest.raises(RuntimeError, match="Only a leaf"):
        (x * 2.0).register_post_accumulate_grad_hook(print)


def test_retain_grad_makes_no_cycle():
    x = leaf(1.0, 2.0)
    h = x * 2.0
    h.retain_grad()
    (h * h).sum().backward()
    np.testing.assert_array_equal(h.grad.numpy(), [4, 8])
    gc.collect()
    gc.disable()
    try:
        h = x * 2.0
        h.retain_grad()
        gone = weakref.ref(h)
        del h
        assert gone() is None
    finally:
        gc.enable()


# ---- the user's own functions ----


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2.0 * x * dy


class ScaledExp(Function):
    """Two tensors and a number; saves its own output; two results."""

    @staticmethod
    def forward(ctx, x, w, scale):
        y = (x * scale).exp() * w
        ctx.scale = scale
        ctx.save_for_backward(x, w, y)
        return y, x + w

    @staticmethod
    def backward(ctx, dy, dz):
        _, w, y = ctx.saved_tensors
        dx = dy * y * ctx.scale + dz if ctx.needs_input_grad[0] else None
        dw = dy * y / w + dz if ctx.needs_input_grad[1] else None
        return dx, dw, None


@pytest.mark.quick
def test_function():
    x = leaf(1.0, -2.0)
    y = Square.apply(x)
    assert y.requires_grad and not Square.apply(cg.ones(2)).requires_grad
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, -4])
    assert_gradients(
        Square.apply, [np.random.default_rng(0).standard_normal((3, 4))], np.random.default_rng(1)
    )


def test_function_with_several_inputs_and_outputs():
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((3, 4)), rng.random((3, 4)) + 1]
    for pick in (0, 1):  # the other output's gradient comes as zeros
        assert_gradients(lambda x, w, i=pick: ScaledExp.apply(x, w, 0.5)[i], arrays, rng)
    x = cg.tensor(arrays[0])
    w = cg.tensor(arrays[1], requires_grad=True)
    ScaledExp.apply(x, w, 0.5)[0].sum().backward()
    assert x.grad is None and w.grad is not None


def test_function_that_saves_its_output_is_freed_without_gc():
    gc.collect()
    gc.disable()
    try:
        y, z = ScaledExp.apply(leaf(1.0), leaf(2.0), 0.5)
        node = weakref.ref(y.node)
        del y, z
        assert node() is None
    finally:
        gc.enable()


def test_function_checks():
    class Wrong(Function):
        @staticmethod
        def forward(ctx, x, mode):
            ctx.mode = mode
            return x * 1.0 if mode != "array" else x.numpy(force=True)

        @staticmethod
        def backward(ctx, dy):
            return (dy, None, None) if ctx.mode == "count" else (cg.ones(7), None)

    with pytest.raises(RuntimeError, match=r"\[Wrong\] backward must return one .* 2\. Got 3"):
        Wrong.apply(leaf(1.0), "count").backward()
    with pytest.raises(ValueError, match=r"\[Wrong\] .*shape \(1,\) for argument 0"):
        Wrong.apply(leaf(1.0), "shape").backward()
    with pytest.raises(TypeError, match=r"\[Wrong\] forward must return tensors\. Got ndarray"):
        Wrong.apply(leaf(1.0), "array")


def test_function_notices_changed_inputs():
    x = leaf(2.0)
    y = Square.apply(x)
    with cg.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_non_differentiable_output_and_unmaterialized_grads():
    class Sorted(Function):
        @staticmethod
        def forward(ctx, x):
            order = x.detach().argsort()
            ctx.set_materialize_grads(False)
            rank = order.float()
            ctx.mark_non_differentiable(rank)
            ctx.order = order
            return x.detach()[order], rank, x * 2.0

        @staticmethod
        def backward(ctx, dy, drank, dz):
            assert drank is None and dz is None
            out = cg.zeros(len(ctx.order))
            out[ctx.order] = dy
            return out

    x = leaf(3.0, 1.0, 2.0)
    values, rank, _ = Sorted.apply(x)
    assert not rank.requires_grad and values.requires_grad
    (values * cg.tensor([1.0, 2.0, 3.0])).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 1, 2])


def test_function_parity(torch):
    class TorchSquare(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return 2.0 * x * dy

    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    assert_parity(torch, Square.apply, TorchSquare.apply, [x])
