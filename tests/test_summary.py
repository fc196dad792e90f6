"""cg.summary: one line per layer, totals, and nothing changed."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import nn


@pytest.mark.quick
def test_lines_and_totals():
    shared = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), shared, shared, nn.Identity())
    net[0].bias.requires_grad = False
    s = cg.summary(net, (2, 3, 8, 8))
    assert [(r.name, r.type, r.output_shape, r.parameters) for r in s.layers] == [
        ("0", "Conv2d", (2, 4, 6, 6), 112),
        ("1", "Conv2d", (2, 4, 6, 6), 20),
        ("1", "Conv2d", (2, 4, 6, 6), 0),
        ("3", "Identity", (2, 4, 6, 6), 0),
    ]
    assert s.parameters == 132 and s.trainable == 128 and s.parameter_bytes == 528
    assert s.activation_bytes == 4 * 2 * 4 * 36 * 4
    lines = str(s).split("\n")
    assert lines[0] == "Sequential, input (2, 3, 8, 8)"
    assert lines[4].split() == ["0", "Conv2d", "(2,", "4,", "6,", "6)", "112"]
    assert "parameters   132 (128 trainable), 528 bytes" in lines
    assert "activations  4.5 KiB" in lines and repr(s) == str(s)


def test_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(3, 2), nn.Identity())
    net[1].eval()
    cg.summary(net, (5, 3))
    assert net.training and not net[1].training
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="linear"):
        cg.summary(net, (5, 4))
    assert net.training
    calls.clear()
    net(cg.tensor(np.ones((1, 3), np.float32)))
    assert calls == [1], "its own hook is gone, the user's is not"


def test_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 1), nn.Linear(4, 1)

        def forward(self, x, y):
            return self.a(x), self.b(y)

    s = cg.summary(Two(), [(5, 3), (6, 4)])
    assert [r.output_shape for r in s.layers] == [(5, 1), (6, 1)]
    double = cg.summary(nn.Linear(3, 2).double(), (1, 3))
    assert double.layers[0].name == "Linear" and double.layers[0].output_bytes == 16
    with pytest.raises(TypeError, match="a shape or a list of shapes. Got 5"):
        cg.summary(nn.Linear(3, 2), 5)
