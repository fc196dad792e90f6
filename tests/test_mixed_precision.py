"""autocast: which operations compute in which type, and that gradients come back in float32."""

import threading

import ml_dtypes
import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import mixed_precision, nn
from tests.device import DEVICE, ON_CPU, values

on_gpu = pytest.mark.skipif(ON_CPU, reason="16-bit types are the GPU's")
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
each_dtype = pytest.mark.parametrize("name", DTYPES)


def draw(*shape, seed=0, requires_grad=False):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return cg.tensor(x, requires_grad=requires_grad)


def net():
    cg.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )


# ---- which type ----


@on_gpu
@each_dtype
def test_products_compute_in_the_regions_type(name):
    x, w = draw(2, 3, 6, 6), draw(4, 3, 3, 3)
    rows, weight = draw(5, 8), draw(6, 8)
    with cg.autocast(name):
        assert cg.is_autocast_enabled()
        outputs = (
            F.conv2d(x, w, draw(4)),
            F.conv_transpose2d(x, draw(3, 4, 2, 2), stride=2),
            F.linear(rows, weight, draw(6)),
            rows @ weight.T,
        )
    assert [y.dtype for y in outputs] == [DTYPES[name]] * 4
    assert not cg.is_autocast_enabled()
    assert F.conv2d(x, w).dtype == np.float32


@on_gpu
@each_dtype
def test_losses_and_their_like_compute_in_float32(name):
    x, y = draw(4, 5), draw(4, 5, seed=1)
    classes = cg.tensor(np.array([0, 1, 2, 4]))
    with cg.autocast(name):
        x16 = x @ cg.tensor(np.eye(5, dtype=np.float32))
        assert x16.dtype == DTYPES[name]
        outputs = (
            F.softmax(x16, 1), F.log_softmax(x16, 1), x16.exp(), x16.abs().log(), x16.sum(),
            x16**2, F.cross_entropy(x16, classes), F.mse_loss(x16, y), F.l1_loss(x16, x16),
            F.binary_cross_entropy_with_logits(x16, y), F.nll_loss(F.log_softmax(x16, 1), classes),
            F.multi_margin_loss(x16, classes), F.softplus(x16),
        )  # fmt: skip
        assert {t.dtype for t in outputs} == {np.dtype(np.float32)}
        same = (F.relu(x16), x16 + x16, F.max_pool1d(x16, 2), x16.reshape(-1), F.gelu(x16))
        assert {t.dtype for t in same} == {DTYPES[name]}
        assert (x16 + x).dtype == np.float32


@on_gpu
def test_normalisation_takes_16_bits_with_float32_weights():
    norm = nn.BatchNorm2d(4)
    with cg.autocast():
        y = norm(F.conv2d(draw(2, 3, 5, 5), draw(4, 3, 1, 1)))
        assert y.dtype == DTYPES["bfloat16"]
        z = nn.GroupNorm(2, 4)(y)
        assert z.dtype == DTYPES["bfloat16"]
    assert norm.running_mean.dtype == np.float32
    assert np.abs(values(y).astype(float).mean((0, 2, 3))).max() < 0.02


@on_gpu
def test_float64_is_left_alone():
    x, w = (cg.tensor(np.ones(s)) for s in ((1, 2, 4, 4), (3, 2, 1, 1)))
    with cg.autocast():
        assert F.conv2d(x, w).dtype == np.float64


@on_gpu
def test_regions_nest_and_belong_to_a_thread():
    x, w = draw(1, 2, 4, 4), draw(3, 2, 1, 1)
    seen = []

    def other():
        seen.append(F.conv2d(x, w).dtype)

    @cg.autocast("float16")
    def half():
        return F.conv2d(x, w).dtype

    with cg.autocast("bfloat16"):
        with cg.autocast(enabled=False):
            assert F.conv2d(x, w).dtype == np.float32
            assert not cg.is_autocast_enabled()
        assert half() == np.float16
        assert F.conv2d(x, w).dtype == DTYPES["bfloat16"]
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [np.float32]
    region = cg.autocast()
    with region, region:
        pass
    with pytest.raises(KeyError), cg.autocast():
        raise KeyError
    assert not cg.is_autocast_enabled()


# ---- casts on the tape ----


@pytest.fixture
def casts(monkeypatch):
    """The shapes that `operands` casts, as they are cast."""
    shapes = []
    to = cg.Tensor.to

    def counted(self, *args, **kwargs):
        shapes.append(self.shape)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(cg.Tensor, "to", counted)
    return shapes


@on_gpu
def test_a_weight_is_cast_once_in_a_region(casts):
    x, w = draw(1, 2, 4, 4), draw(2, 2, 3, 3, requires_grad=True)
    with cg.autocast():
        y = F.conv2d(F.conv2d(x, w, padding=1), w, padding=1)
        assert casts == [(1, 2, 4, 4), (2, 2, 3, 3)]
        y.sum().backward()
        casts.clear()
        F.conv2d(y, w)  # the cast's place on the tape has been walked: anew
        assert (2, 2, 3, 3) in casts
        casts.clear()
        with cg.autocast(enabled=False), cg.no_grad():
            w.mul_(2)
        z = F.conv2d(y, w)  # it has another value: anew
        assert casts == [(2, 2, 3, 3)]
    np.testing.assert_array_equal(values(z), values(F.conv2d(y, w.to(z.dtype))))
    assert w.grad.dtype == np.float32
    assert not mixed_precision._state.casts


@on_gpu
def test_a_cast_without_grad_is_not_used_with():
    x, w = draw(1, 2, 4, 4), draw(2, 2, 1, 1, requires_grad=True)
    with cg.autocast():
        with cg.no_grad():
            F.conv2d(x, w)
        F.conv2d(x, w).sum().backward()
        with cg.no_grad():
            assert not F.conv2d(x, w).requires_grad
    assert w.grad is not None


@on_gpu
@each_dtype
def test_gradients_are_the_rounded_networks(name):
    """Of whole numbers nothing is rounded: the same gradients as without, in float32."""
    rng = np.random.default_rng(2)

    def whole(*shape):
        return rng.integers(-1, 2, shape).astype(np.float32)

    arrays = whole(2, 3, 5, 5), whole(4, 3, 3, 3), whole(4)
    results = []
    for enabled in (True, False):
        x, w, b = (cg.tensor(a, requires_grad=True) for a in arrays)
        with cg.autocast(name, enabled):
            y = F.relu(F.conv2d(x, w, b, padding=1))
            loss = (y * y.detach().to(np.float32).sign()).sum()
        loss.backward()
        assert [t.grad.dtype for t in (x, w, b)] == [np.float32] * 3
        results.append([values(t) for t in (y, x.grad, w.grad, b.grad)])
    for with_casts, without in zip(*results):
        np.testing.assert_array_equal(with_casts.astype(np.float32), without)


@on_gpu
def test_fusion_changes_no_bit():
    """A ReLU fused to what is before it, masks handed to what is behind it, deferred normalisation:
    in the layers' own sequence, and one by one with hooks, which keep them apart."""
    results = []
    for apart in (False, True):
        model = net()
        if apart:
            for module in model:
                module.register_forward_hook(lambda module, args, output: None)
        x = draw(2, 3, 6, 6, requires_grad=True)
        with cg.autocast():
            loss = F.cross_entropy(model(x), cg.tensor(np.array([1, 3])))
        loss.backward()
        results.append([values(t) for t in (loss, x.grad, *(p.grad for p in model.parameters()))])
    for fused, plain in zip(*results):
        np.testing.assert_array_equal(fused, plain)


@on_gpu
@pytest.mark.parametrize("name, tolerance", [("bfloat16", 0.02), ("float16", 0.006)])
def test_a_network_trains_as_in_float32(name, tolerance):
    """Ten steps: the losses stay within the tolerance of float32's, of a first loss of 1.6; and
    they fall."""
    losses = []
    for enabled in (False, True):
        model = net()
        optimizer = cg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = cg.GradScaler(init_scale=1024.0, enabled=enabled and name == "float16")
        x, y = draw(6, 3, 6, 6), cg.tensor(np.arange(6) % 5)
        curve = []
        for _ in range(10):
            optimizer.zero_grad()
            with cg.autocast(name, enabled):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            assert all(p.grad.dtype == p.dtype == np.float32 for p in model.parameters())
            scaler.step(optimizer)
            scaler.update()
            curve.append(loss.item())
        losses.append(np.array(curve))
    assert losses[0][-1] < losses[0][0] / 2
    assert np.abs(losses[0] - losses[1]).max() < tolerance
    assert (losses[0] != losses[1]).any()


# ---- errors ----


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"\[autocast\] dtype must be .* Got 'float32'"):
        cg.autocast("float32")
    with pytest.raises(TypeError, match=r"\[autocast\] enabled must be a bool. Got 'yes'"):
        cg.autocast("bfloat16", "yes")


@pytest.mark.cpu("about tensors on the CPU")
def test_the_cpu_computes_in_float32_alone():
    x, w = draw(1, 2, 4, 4), draw(3, 2, 1, 1)
    with cg.autocast("bfloat16"):
        with pytest.raises(RuntimeError, match=r"\[conv2d\] autocast to bfloat16 .* on the CPU"):
            F.conv2d(x, w)
        with pytest.raises(RuntimeError, match=r"\[linear\] .* Got float32 on the CPU"):
            F.linear(draw(2, 3), draw(4, 3))
        assert F.softmax(x, 1).dtype == np.float32
    with cg.autocast("bfloat16", enabled=False):
        assert F.conv2d(x, w).dtype == np.float32
    assert str(x.device) == DEVICE
