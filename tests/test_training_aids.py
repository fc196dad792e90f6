"""Weights kept in bounds, decay by group, momentum that rises, global max pooling."""

from __future__ import annotations

import math

import numpy as np
import pytest

import convgrad as cg
from convgrad import nn, optim, train
from convgrad.nn.utils import clip_max_norm_
from tests.device import values


def model():
    cg.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 3)
    )


# ---- bounds ----


@pytest.mark.parametrize(("shape", "dim"), [((4, 3, 3, 3), 0), ((3, 5), 0), ((3, 4, 2, 2), 1)])
def test_each_filter_s_norm_is_bounded(shape, dim):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rest = tuple(axis for axis in range(w.ndim) if axis != dim)
    norms = np.sqrt((w.astype(np.float64) ** 2).sum(rest, keepdims=True))
    bound = float(np.median(norms))
    p = nn.Parameter(w.copy())
    version = p.version[0]
    clip_max_norm_(p, bound, dim=dim)
    np.testing.assert_allclose(values(p), w * np.minimum(1, bound / norms), rtol=1e-6)
    assert p.version[0] != version
    before = values(p).copy()
    clip_max_norm_([p], 2 * bound, dim=dim)
    np.testing.assert_array_equal(values(p), before)


def test_each_weight_is_bounded():
    p = nn.Parameter(np.array([[0.5, -2.0], [1.5, -0.25]], np.float32))
    clip_max_norm_([p], 1.0, math.inf)
    np.testing.assert_array_equal(values(p), [[0.5, -1], [1, -0.25]])


def test_bounds_that_are_wrong():
    p = nn.Parameter(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"\[clip_max_norm_\] norm_type must be .* Got 1"):
        clip_max_norm_(p, 1.0, 1)
    with pytest.raises(ValueError, match=r"\[clip_max_norm_\] max_norm must be > 0. Got 0"):
        clip_max_norm_(p, 0)


@pytest.mark.large("trains networks")
def test_training_keeps_the_weights_in_bounds():
    network = model()
    batch = (
        np.random.default_rng(1).standard_normal((8, 2, 4, 4)).astype(np.float32),
        np.arange(8) % 3,
    )
    with cg.no_grad():
        network[4].bias.copy_(cg.ones(3))
    optimizer = optim.SGD(network.parameters(), lr=1.0)
    fit = [network, [batch], nn.CrossEntropyLoss(), optimizer, 3]
    train.fit(*fit, callbacks=[train.MaxNorm(0.3)])
    for p in (network[0].weight, network[4].weight):
        norms = np.sqrt((values(p).reshape(len(values(p)), -1) ** 2).sum(1))
        assert norms.max() <= 0.3 * (1 + 1e-6)
    assert np.abs(values(network[4].bias)).max() > 0.3  # biases are free
    train.fit(*fit, callbacks=[train.MaxNorm(0.01, math.inf, [network[4].weight])])
    assert np.abs(values(network[4].weight)).max() <= np.float32(0.01)
    assert np.abs(values(network[0].weight)).max() > 0.01


# ---- groups ----


def test_decay_exempts_biases_norms_and_prelu():
    network = model()
    decayed, free = optim.decay_groups(network, 0.1)
    assert [p is q for p, q in zip(decayed["params"], (network[0].weight, network[4].weight))]
    assert len(decayed["params"]) == 2 and len(free["params"]) == 5
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    optimizer = optim.SGD([decayed, free], lr=0.5)
    before = {name: values(p).copy() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = cg.zeros(p.shape)
    optimizer.step()
    for name, p in network.named_parameters():
        factor = 1 - 0.5 * 0.1 if name in ("0.weight", "4.weight") else 1
        np.testing.assert_allclose(values(p), factor * before[name], rtol=1e-6)


def test_groups_without_anything_exempt():
    (group,) = optim.decay_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert len(group["params"]) == 1
    with pytest.raises(ValueError, match=r"\[decay_groups\] weight_decay must be >= 0. Got -1"):
        optim.decay_groups(nn.Linear(2, 2), -1)


# ---- momentum ----


@pytest.mark.large("trains networks")
def test_momentum_rises_and_stays():
    network = nn.Linear(2, 2)
    batch = (np.ones((2, 2), np.float32), np.array([0, 1]))
    seen = []

    class Watch(train.Callback):
        def batch(self, run):
            seen.append(run.optimizer.param_groups[0]["momentum"])

    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.1)
    ramp = train.MomentumRamp(0.5, 0.9, epochs=3)
    train.fit(network, [batch], nn.CrossEntropyLoss(), optimizer, 5, callbacks=[ramp, Watch()])
    assert seen == pytest.approx([0.5, 0.7, 0.9, 0.9, 0.9])
    with pytest.raises(ValueError, match=r"\[MomentumRamp\] The optimizer .* Got Adam"):
        adam = optim.Adam(network.parameters())
        train.fit(network, [batch], nn.CrossEntropyLoss(), adam, 1, callbacks=[ramp])
    with pytest.raises(ValueError, match=r"last must be in \[0, 1\). Got 1"):
        train.MomentumRamp(last=1.0)


# ---- global max pooling ----


@pytest.mark.kernel
def test_global_max_pooling_gives_the_gradient_to_the_strongest_response():
    x = np.zeros((2, 3, 4, 5), np.float32)
    where = [(0, 0, 1, 2), (0, 1, 3, 4), (0, 2, 0, 0), (1, 0, 2, 1), (1, 1, 0, 4), (1, 2, 3, 0)]
    for value, place in enumerate(where, 1):
        x[place] = value
    t = cg.tensor(x, requires_grad=True)
    y = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())(t)
    np.testing.assert_array_equal(values(y), [[1, 2, 3], [4, 5, 6]])
    y.sum().backward()
    np.testing.assert_array_equal(values(t.grad), (x > 0).astype(np.float32))
