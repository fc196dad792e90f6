"""Initial values: PyTorch's formulas, checked by bounds and moments."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convgrad as cg
from convgrad import nn
from convgrad.nn import init
from tests.device import values


def fresh(shape):
    return nn.Parameter(np.full(shape, np.nan, np.float32))


@pytest.mark.quick
def test_simple_fills():
    t = fresh((200, 300))
    version = t.version[0]
    assert init.uniform_(t, -2, 1) is t and t.version[0] > version
    assert -2 <= values(t).min() < -1.9 and 0.9 < values(t).max() <= 1
    assert abs(values(t).mean() + 0.5) < 0.02
    init.normal_(t, 3, 2)
    assert abs(values(t).mean() - 3) < 0.05 and abs(values(t).std() - 2) < 0.05
    init.trunc_normal_(t, 0, 1, -1, 0.5)
    assert values(t).min() >= -1 and values(t).max() <= 0.5 and values(t).std() > 0.3
    assert (values(init.constant_(t, 7)) == 7).all() and (values(init.ones_(t)) == 1).all()
    assert not values(init.zeros_(t)).any()
    with pytest.raises(ValueError, match=r"must hold some of N\(0, 1\^2\). Got \[20, 30\]"):
        init.trunc_normal_(t, 0, 1, 20, 30)


SHAPES = [(64, 50), (32, 8, 9), (32, 8, 3, 3), (16, 4, 3, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_fans_are_pytorchs(torch, shape):
    fans = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert init._calculate_fan_in_and_fan_out(fresh(shape)) == fans


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming_and_xavier(shape, mode):
    fan_in, fan_out = init._calculate_fan_in_and_fan_out(fresh(shape))
    fan = fan_in if mode == "fan_in" else fan_out
    size = math.prod(shape)

    def check(t, std, bound=None):
        assert abs(values(t).std() / std - 1) < 4 / math.sqrt(size)
        assert abs(values(t).mean()) < 5 * std / math.sqrt(size)
        if bound is not None:
            assert 0.97 * bound < np.abs(values(t)).max() <= bound * (1 + 1e-6)

    std = math.sqrt(2 / (1 + 0.3**2) / fan)
    check(init.kaiming_uniform_(fresh(shape), 0.3, mode), std, std * math.sqrt(3))
    check(init.kaiming_normal_(fresh(shape), mode=mode, nonlinearity="relu"), math.sqrt(2 / fan))
    std = 1.5 * math.sqrt(2 / (fan_in + fan_out))
    check(init.xavier_uniform_(fresh(shape), 1.5), std, std * math.sqrt(3))
    check(init.xavier_normal_(fresh(shape), 1.5), std)


def test_gains_are_pytorchs(torch):
    for name in ("linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "selu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    for slope in (None, 0.2):
        ours = init.calculate_gain("leaky_relu", slope)
        assert ours == torch.nn.init.calculate_gain("leaky_relu", slope)
    with pytest.raises(ValueError, match="Got 'swish'"):
        init.calculate_gain("swish")
    with pytest.raises(ValueError, match="mode must be 'fan_in' or 'fan_out'. Got 'in'"):
        init.kaiming_normal_(fresh((2, 2)), mode="in")
    with pytest.raises(ValueError, match=r"at least 2 axes. Got shape \(3,\)"):
        init.xavier_normal_(fresh((3,)))


@given(rows=st.integers(1, 12), cols=st.integers(1, 12), gain=st.sampled_from([1.0, 2.0]))
def test_orthogonal(rows, cols, gain):
    w = values(init.orthogonal_(fresh((rows, cols, 1)), gain)).reshape(rows, cols).astype(float)
    gram = w @ w.T if rows <= cols else w.T @ w
    np.testing.assert_allclose(gram, gain**2 * np.eye(min(rows, cols)), atol=1e-5)


@pytest.mark.quick
def test_layers_start_as_pytorchs():
    cases = [
        (nn.Linear(400, 300), 400),
        (nn.Conv1d(64, 128, 5), 64 * 5),
        (nn.Conv2d(32, 64, 3, groups=2), 16 * 9),
        (nn.Conv3d(8, 64, 3), 8 * 27),
        (nn.ConvTranspose2d(32, 64, 3), 64 * 9),  # PyTorch takes the second axis here too
    ]
    for layer, fan_in in cases:
        bound = 1 / math.sqrt(fan_in)
        for p in (layer.weight, layer.bias):
            assert 0.9 * bound < np.abs(values(p)).max() <= bound * (1 + 1e-6)
        assert abs(values(layer.weight).std() * math.sqrt(3) / bound - 1) < 0.02


def test_draws_follow_the_seed():
    def draw(seed):
        cg.manual_seed(seed)
        return [values(p).copy() for p in nn.Conv2d(3, 4, 3).parameters()]

    for a, b in zip(draw(5), draw(5)):
        np.testing.assert_array_equal(a, b)
    assert (draw(5)[0] != draw(6)[0]).any()
    assert init.kaiming_uniform_(fresh((0, 3))).shape == (0, 3)
    assert init.orthogonal_(fresh((0, 3))).shape == (0, 3)
