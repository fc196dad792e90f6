"""The networks of convgrad.models: published parameter counts and sizes, gradients."""

from __future__ import annotations

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import models, nn

pytestmark = pytest.mark.large("deep networks")

RNG = np.random.default_rng


def parameters(model, skip=()):
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(skip))


def noise(*shape):
    return cg.tensor(RNG(0).standard_normal(shape).astype(np.float32))


COUNTS = {
    "ml4a, one layer": (models.softmax_classifier, 7_850),
    "ml4a, one layer of 256x256": (lambda: models.softmax_classifier((256, 256)), 655_370),
    "LeNet-5": (models.LeNet5, 61_706),
    "U-Net, normalised": (lambda: models.UNet2d(classes=4), 117_444),
    "U-Net, plain": (lambda: models.UNet2d(classes=4, norm=False), 116_804),
    "SegNet": (models.SegNet, 29_449_355),
    "cardiac FCN": (models.CardiacFCN, 10_917_024),
    "slice classifier": (models.SliceCNN, 24_082),
    "box detector": (models.BoxCNN, 42_532),
    "TwoPathCNN": (lambda: models.TwoPathCNN(pieces=1, bias=False), 651_488),
    "TwoPathCNN, two pieces": (models.TwoPathCNN, 809_637),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name):
    make, count = COUNTS[name]
    assert parameters(make()) == count


@pytest.mark.parametrize(
    ("cascade", "count", "patch"),
    [
        (models.InputCascadeCNN, 802_368, 65),
        (models.LocalCascadeCNN, 654_368, 56),
        (models.MFCascadeCNN, 662_513, 53),
    ],
)
def test_cascades(cascade, count, patch):
    first = models.TwoPathCNN(pieces=1, bias=False)
    model = cascade(first, pieces=1, bias=False)
    assert parameters(model, skip="first") == count
    assert model(noise(1, 4, patch, patch)).shape == (1, 5, 1, 1)
    assert model(noise(1, 4, patch + 3, patch)).shape == (1, 5, 4, 1)


@pytest.mark.parametrize("name", ["TwoPathCNN", "LocalPathCNN", "GlobalPathCNN"])
def test_a_patch_is_classified_as_in_the_whole_slice(name):
    cg.manual_seed(0)
    model = getattr(models, name)()
    for p in model.parameters():  # large enough that a difference would show
        p.array[...] *= 10
    x = noise(1, 4, 40, 38)
    whole = model(x).detach().numpy()
    assert whole.shape == (1, 5, 8, 6)
    for i, j in ((0, 0), (3, 5), (7, 2)):
        patch = model(x[:, :, i : i + 33, j : j + 33]).detach().numpy()
        np.testing.assert_allclose(patch[0, :, 0, 0], whole[0, :, i, j], rtol=1e-4, atol=1e-6)


def test_cascade_patch_is_the_centre_of_the_whole():
    cg.manual_seed(0)
    model = models.InputCascadeCNN(models.TwoPathCNN())
    x = noise(1, 4, 68, 66)
    whole = model(x).detach().numpy()
    patch = model(x[:, :, 2:67, 1:66]).detach().numpy()
    np.testing.assert_allclose(patch[0, :, 0, 0], whole[0, :, 2, 1], rtol=1e-4, atol=1e-7)


def sizes_of(model, kinds, x):
    """Output widths of the modules of these kinds, as they are called."""
    found = []

    def record(module, args, output):
        found.append((output[0] if isinstance(output, tuple) else output).shape[2:])

    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(record)
    with cg.no_grad():
        model.eval()(x)
    return found


def test_cardiac_sizes():
    model = models.CardiacFCN()
    pooled = sizes_of(model, nn.MaxPool2d, noise(1, 1, 100, 100))
    assert pooled == [(54, 54), (26, 26), (12, 12)]
    raised = sizes_of(model, nn.ConvTranspose2d, noise(1, 1, 100, 100))
    assert raised == [(25, 25), (51, 51), (103, 103)]
    assert model(noise(1, 1, 61, 70)).shape == (1, 1, 61, 70)


def test_cardiac_normalisation_is_the_authors():
    """(x - mean) / (std + 1e-6) for each sample and channel."""
    x = noise(2, 3, 8, 9) * 5 + 3
    a = x.numpy()
    mean, std = a.mean((2, 3), keepdims=True), a.std((2, 3), keepdims=True)
    y = nn.InstanceNorm2d(3, eps=1e-12)(x)
    np.testing.assert_allclose(y.detach().numpy(), (a - mean) / (std + 1e-6), rtol=1e-4, atol=1e-5)


def test_segnet_rounds_sizes_up_and_restores_them():
    model = models.SegNet(1, 2, widths=(4, 4, 4, 4, 4))
    pooled = sizes_of(model, nn.MaxPool2d, noise(1, 1, 360, 480))
    assert pooled == [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
    for size in ((33, 47), (5, 1)):
        assert model(noise(1, 1, *size)).shape == (1, 2, *size)


SMALL = {
    "softmax": (lambda: models.softmax_classifier((1, 4, 4)), (2, 1, 4, 4), (2, 10)),
    "dense": (lambda: models.dense_classifier((1, 4, 4), (5, 6)), (2, 1, 4, 4), (2, 10)),
    "LeNet5": (models.LeNet5, (2, 1, 28, 28), (2, 10)),
    "VGG": (lambda: models.VGG(3, 7, 9, (4, 6)), (2, 3, 9, 9), (2, 7)),
    "ResNet20": (models.ResNet20, (2, 3, 16, 16), (2, 10)),
    "UNet2d": (lambda: models.UNet2d(2, 3, 4, 3), (2, 2, 8, 12), (2, 3, 8, 12)),
    "UNet3d": (lambda: models.UNet3d(1, 3, 4, 2), (1, 1, 4, 6, 8), (1, 3, 4, 6, 8)),
    "TwoPathCNN": (models.TwoPathCNN, (1, 4, 33, 33), (1, 5, 1, 1)),
    "CardiacFCN": (models.CardiacFCN, (1, 1, 40, 44), (1, 1, 40, 44)),
    "SegNet": (lambda: models.SegNet(1, 2, (4, 4, 6, 6, 6)), (2, 1, 32, 37), (2, 2, 32, 37)),
    "SliceCNN": (models.SliceCNN, (2, 4, 16, 24), (2, 2)),
    "BoxCNN": (models.BoxCNN, (2, 4, 16, 24), (2, 4)),
}


@pytest.mark.parametrize("name", SMALL)
def test_shape_and_a_gradient_for_every_weight(name):
    make, x_shape, y_shape = SMALL[name]
    cg.manual_seed(0)
    model = make()
    y = model(noise(*x_shape))
    assert y.shape == y_shape
    (y * noise(*y_shape)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and np.isfinite(p.grad.numpy()).all(), name
        # A bias that normalisation subtracts again has a gradient of rounding alone.
        assert p.grad.numpy().any() or name.endswith("bias"), name


def test_sizes_that_do_not_fit_are_said():
    with pytest.raises(
        ValueError, match=r"\[UNet\] Every size must be a multiple of 4.*\(1, 1, 10, 8\)"
    ):
        models.UNet2d()(noise(1, 1, 10, 8))
    with pytest.raises(ValueError, match=r"\[VGG\] size must be at least 8. Got 7"):
        models.VGG(size=7)


# ---- the functions they use ----


@pytest.mark.parametrize("size", [(3, 4), (2, 5), (5, 6), (1, 1)])
def test_center_crop(size):
    x = noise(2, 3, 5, 6)
    x.requires_grad_()
    y = F.center_crop(x, size)
    low = [(m - n) // 2 for n, m in zip(size, (5, 6))]
    window = (..., slice(low[0], low[0] + size[0]), slice(low[1], low[1] + size[1]))
    np.testing.assert_array_equal(y.detach().numpy(), x.detach().numpy()[window])
    y.sum().backward()
    assert x.grad.numpy().sum() == y.detach().numpy().size and x.grad.numpy()[window].all()


def test_center_crop_says_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"size must be from 1 to the input's \(5, 6\).*Got \(6, 6\)"
    ):
        F.center_crop(noise(2, 3, 5, 6), (6, 6))


def test_soft_argmax_of_a_sharp_peak_is_its_pixel():
    heat = np.zeros((1, 2, 4, 8), np.float32)
    heat[0, 0, 1, 6] = heat[0, 1, 3, 0] = 100
    got = F.soft_argmax(cg.tensor(heat)).numpy()
    np.testing.assert_allclose(got, [[[1.5 / 4, 6.5 / 8], [3.5 / 4, 0.5 / 8]]], atol=1e-6)


def test_soft_argmax_of_nothing_is_the_middle():
    got = F.soft_argmax(cg.tensor(np.zeros((2, 1, 3, 4, 5), np.float32))).numpy()
    np.testing.assert_allclose(got, np.full((2, 1, 3), 0.5), atol=1e-6)
