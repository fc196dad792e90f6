"""Heat maps: the identities that define them."""

from __future__ import annotations

import numpy as np
import pytest

import convgrad as cg
from convgrad import explain, models, nn
from convgrad import functional as F

pytestmark = pytest.mark.cpu("of the host's side: what is built from ops tested elsewhere")


def features(*shape, seed=0):
    return cg.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("spatial", [(7,), (3, 5), (2, 3, 4)])
def test_the_mean_of_a_map_is_the_logit_behind_average_pooling(spatial):
    cg.manual_seed(0)
    x, classify = features(2, 6, *spatial), nn.Linear(6, 3)
    maps = explain.class_activation_maps(x, classify)
    assert maps.shape == (2, 3, *spatial)
    logits = classify(x.flatten(2).mean(2))
    np.testing.assert_allclose(
        maps.flatten(2).mean(2).detach().numpy(), logits.detach().numpy(), rtol=1e-4, atol=1e-6
    )


def test_a_map_is_the_classifier_asked_densely():
    """Each position of the map is the logit of the position alone, by either pooling."""
    cg.manual_seed(1)
    model = models.SliceCNN().eval()
    seen = model.trunk(features(1, 4, 16, 32))
    maps = explain.class_activation_maps(seen, model.classify).detach().numpy()
    for i, j in np.ndindex(2, 4):
        alone = F.adaptive_max_pool2d(seen[:, :, i : i + 1, j : j + 1], 1).flatten(1)
        expected = model.classify(alone).detach().numpy()
        np.testing.assert_allclose(maps[:, :, i, j], expected, rtol=1e-4, atol=1e-6)


def small_network():
    cg.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip


def test_grad_cam_behind_average_pooling_is_the_positive_part_of_the_map():
    model, x = small_network(), features(4, 1, 6, 8)
    classes = np.array([0, 1, 2, 1])
    found = explain.grad_cam(model, model[1], x, classes)
    maps = explain.class_activation_maps(model[1](model[0](x)), model[4])
    bias = model[4].bias.detach().numpy()[classes, None, None]
    expected = maps.detach().numpy()[np.arange(4), classes] - bias
    np.testing.assert_allclose(found, np.maximum(expected, 0) / 48, rtol=1e-3, atol=1e-7)


def test_grad_cam_leaves_the_model_as_it_was():
    model, x = small_network(), features(2, 1, 6, 8)
    model[0].eval()
    explain.grad_cam(model, model[1], x, 1)
    assert model.training and model[1].training and not model[0].training
    assert all(p.grad is None for p in model.parameters())
    before = explain.grad_cam(model, model[0], x, 1)
    for p in model.parameters():
        p.requires_grad_(False)
    with cg.no_grad():
        np.testing.assert_array_equal(explain.grad_cam(model, model[0], x, [1, 1]), before)


def test_enlarged_maps_keep_their_place():
    maps = np.zeros((1, 2, 4), np.float32)
    maps[0, 1, 2] = 1
    large = explain.enlarge(maps, (16, 32))
    assert large.shape == (1, 16, 32)
    assert np.argwhere(large[0] == large.max()).mean(0) == pytest.approx([13.5, 19.5])
    assert explain.enlarge(np.zeros((2, 3)), (9,)).shape == (2, 9)


def test_bad_input():
    model, x = small_network(), features(2, 1, 6, 8)
    for call, message in (
        (
            lambda: explain.class_activation_maps(features(2, 4, 3, 3), nn.Linear(5, 2)),
            "in_features of classify, 5, and an axis or more behind. Got (2, 4, 3, 3)",
        ),
        (lambda: explain.class_activation_maps(features(2, 5), nn.Linear(5, 2)), "Got (2, 5)"),
        (lambda: explain.grad_cam(model, model[3], x, 0), "Got [(2, 5)]"),
        (lambda: explain.grad_cam(model, nn.ReLU(), x, 0), "called once"),
        (lambda: explain.grad_cam(model, model[1], x, 3), "must be in 0..2. Got 3 to 3"),
        (lambda: explain.grad_cam(model, model[1], x, [0, 1, 2]), "Got int64 (3,) for (2, 3)"),
        (lambda: explain.grad_cam(model, model[1], x, 0.5), "must be a whole number"),
        (lambda: explain.enlarge(np.zeros((2, 3, 4)), (9,)), "1 axes behind N"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value)
