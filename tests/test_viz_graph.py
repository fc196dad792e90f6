"""Computational graphs with every value and gradient, and the curves of the activations: the
numbers, and the text; of the pictures only that they are there."""

import threading

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import autograd, nn, viz
from convgrad.autograd import Op
from convgrad.viz import canvas, curves, drawing

pytestmark = pytest.mark.cpu("draws on the host")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.fixture(scope="module")
def lecture():
    """(graph, W0, W1, w, x, t) of the slides' loss."""
    rng = np.random.default_rng(0)
    shapes = {"W0": (4, 3), "W1": (5, 4), "w": (5,)}
    leaves = {k: cg.tensor(rng.standard_normal(s), requires_grad=True) for k, s in shapes.items()}
    x, t = cg.tensor(rng.standard_normal(3)), cg.tensor(np.array(1.0))
    with viz.record() as tape:
        y = F.sigmoid(leaves["w"] @ F.sigmoid(leaves["W1"] @ F.sigmoid(leaves["W0"] @ x)))
        loss = F.binary_cross_entropy(y, t)
    graph = tape.graph(loss, {**leaves, "x": x, "y": y, "t": t})
    return graph, *(v.detach().numpy() for v in leaves.values()), x.numpy(), 1.0


# ---- the slides' letters ----


@pytest.mark.quick
def test_the_letters_of_the_slides(lecture):
    graph = lecture[0]
    assert {n.name: n.formula for n in graph.nodes if n.formula} == {
        "A": "W0 @ x",
        "B": "sigmoid(A)",
        "C": "W1 @ B",
        "D": "sigmoid(C)",
        "E": "w @ D",
        "y": "sigmoid(E)",
        "loss": "binary_cross_entropy(y, t)",
    }
    assert [graph.nodes[i].name for i in graph["C"].inputs] == ["W1", "B"]
    assert graph.nodes[-1] is graph["loss"] and graph["x"].gradient is None
    with pytest.raises(KeyError, match=r"The names are W0, x, A, .*, loss\."):
        graph["F"]


def test_values_and_gradients_are_those_worked_out_by_hand(lecture):
    graph, W0, W1, w, x, t = lecture
    A = W0 @ x
    B = sigmoid(A)
    C = W1 @ B
    D = sigmoid(C)
    E = w @ D
    y = sigmoid(E)
    dE = y - t
    dD = dE * w
    dC = dD * D * (1 - D)
    dB = W1.T @ dC
    dA = dB * B * (1 - B)
    value = {"A": A, "B": B, "C": C, "D": D, "E": E, "y": y, "W1": W1, "x": x, "loss": -np.log(y)}
    gradient = {"A": dA, "B": dB, "C": dC, "D": dD, "E": dE, "y": -1 / y, "loss": 1.0}
    gradient |= {"W0": np.outer(dA, x), "W1": np.outer(dC, B), "w": dE * D}
    for name, want in value.items():
        np.testing.assert_allclose(graph[name].value, want, rtol=1e-12)
    for name, want in gradient.items():
        assert graph[name].gradient.shape == graph[name].value.shape
        np.testing.assert_allclose(graph[name].gradient, want, rtol=1e-12)


# ---- recording ----


def small():
    a = cg.tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)
    b = F.relu(a)
    return a, b, (b * a + 2 * b).sum() + b.mean()


@pytest.mark.quick
def test_the_tape_stays_as_it_was():
    with viz.record() as tape:
        a, b, loss = small()
    graph = tape.graph(loss, {"a": a, "b": b})
    assert a.grad is None
    (want,) = autograd.grad(loss, b, retain_graph=True)
    np.testing.assert_array_equal(graph["b"].gradient, want.numpy())
    loss.backward()
    np.testing.assert_array_equal(graph["a"].gradient, a.grad.numpy())
    plain, _, other = small()
    other.backward()
    np.testing.assert_array_equal(plain.grad.numpy(), a.grad.numpy())


@pytest.mark.quick
def test_recording_ends_and_is_of_its_thread_alone():
    assert "apply" not in vars(Op)
    with viz.record() as outer:
        small()
        before = len(outer.calls)
        with pytest.raises(ZeroDivisionError), viz.record() as inner:
            small()
            raise ZeroDivisionError
        assert len(inner.calls) == before > 0 and len(outer.calls) == 2 * before
        other = threading.Thread(target=small)
        other.start()
        other.join()
        assert len(outer.calls) == 2 * before
    assert "apply" not in vars(Op)
    small()
    assert len(outer.calls) == 2 * before


def test_a_networks_layers_and_parameters():
    """Fused layers too: what is recorded is what a run without recording computes."""
    cg.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = cg.tensor(np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32))
    t = cg.tensor(np.array([0, 2]))
    with viz.record() as tape:
        loss = F.cross_entropy(model(x), t)
    graph = tape.graph(loss, {**dict(model.named_parameters()), "x": x, "t": t})
    assert [n.formula for n in graph.nodes if n.formula] == [
        "relu(conv(x, 0.weight, 0.bias))",
        "conv2d(A, 2.weight, 2.bias)",
        "batch_norm(B, 3.weight, 3.bias, c0, c1)",
        "relu(C)",
        "max_pool2d(D)",
        "flatten(E)",
        "linear(F, 7.weight, 7.bias)",
        "cross_entropy(G, t)",
    ]
    np.testing.assert_array_equal(graph["D"].value, np.maximum(graph["C"].value, 0))
    again = F.cross_entropy(model(x), t)
    assert again.item() == graph["loss"].value
    again.backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(graph[name].gradient, parameter.grad.numpy(), name)
    assert graph["A"].gradient.flags.c_contiguous and graph["A"].gradient.shape == (2, 3, 6, 6)


class Doubled(autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + x

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient


def test_names_of_every_kind():
    a = cg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    A = cg.tensor(np.ones((2, 3)))
    with viz.record() as tape:
        unused = F.tanh(a)
        C = F.max_pool1d(Doubled.apply(a) ** 2 + A, 3, return_indices=True)[0]
        loss = 1 - C.std() - F.margin_ranking_loss(C, A[:, :1], A[:, :1])
    graph = tape.graph(loss, {"A": A})
    assert [(n.name, n.formula) for n in graph.nodes] == [
        ("p0", ""),
        ("B", "Doubled(p0)"),  # the name A is taken
        ("C", "B ** 2"),
        ("A", ""),
        ("D", "C + A"),
        ("E", "max_pool1d(D)[0]"),
        ("F", "std(E)"),
        ("G", "1 - F"),
        ("H", "index(A)"),
        ("I", "index(A)"),
        ("J", "margin_ranking_loss(E, H, I)"),
        ("loss", "G - J"),
    ]
    with pytest.raises(ValueError, match=r"\[graph\] names must be .* Got 'u': Tensor float64"):
        tape.graph(loss, {"u": unused})


def test_letters_go_on_after_z():
    x = cg.tensor(np.ones(2), requires_grad=True)
    with viz.record() as tape:
        y = x
        for _ in range(28):
            y = y + 1
        loss = y.sum()
    names = [n.name for n in tape.graph(loss).nodes]
    assert names[1] == "A" and names[26:] == ["Z", "AA", "AB", "loss"]


@pytest.mark.quick
def test_what_cannot_be_shown_is_said():
    with viz.record() as tape:
        _, b, loss = small()
        constant = cg.tensor([1.0]) + 1
    _, _, elsewhere = small()
    with pytest.raises(ValueError, match=r"\[graph\] loss must be a tensor of one .* Got Tensor f"):
        tape.graph(b)
    with pytest.raises(ValueError, match=r"Got 3\.0"):
        tape.graph(3.0)
    with pytest.raises(RuntimeError, match=r"requires_grad=True. Got one that requires no"):
        tape.graph(constant)
    with pytest.raises(RuntimeError, match="inside `with viz.record"):
        tape.graph(elsewhere)
    loss.backward()
    with pytest.raises(RuntimeError, match=r"already walked .* before loss.backward\(\)"):
        tape.graph(loss)


# ---- text and layout ----


@pytest.mark.quick
def test_mermaid_text():
    w = cg.tensor(np.array([2.0, -1.0]), requires_grad=True)
    x = cg.tensor(np.array([0.5, 3.0]))
    with viz.record() as tape:
        loss = w @ x
    assert tape.graph(loss, {'w "<1>"': w, "x": x}).mermaid() == (
        "flowchart TD\n"
        '    n0(["<b>w #quot;#lt;1#gt;#quot;  [2]</b><br/>value 2 -1<br/>gradient 0.5 3"])\n'
        '    n1(["<b>x  [2]</b><br/>value 0.5 3"])\n'
        '    n2["<b>loss = w #quot;#lt;1#gt;#quot; @ x</b><br/>value -2<br/>gradient 1"]\n'
        "    n0 --> n2\n"
        "    n1 --> n2\n"
    )


@pytest.mark.quick
def test_a_line_per_node():
    w = cg.tensor(np.array([2.0, -1.0]), requires_grad=True)
    with viz.record() as tape:
        loss = w @ cg.tensor(np.array([0.5, 3.0]))
    assert str(tape.graph(loss, {"w": w})).splitlines() == [
        "               value  gradient of the loss",
        "w  [2]         2 -1   0.5 3",
        "c0  [2]        0.5 3",
        "loss = w @ c0  -2     1",
    ]


@pytest.mark.quick
def test_many_numbers_are_told_by_their_range():
    assert drawing.summary(np.array([1.0, -0.12345, 3e-9])) == "1 -0.123 3e-09"
    assert drawing.summary(np.arange(12).reshape(3, 4)) == "0 to 11"
    assert drawing.summary(np.array([True, False])) == "1 0"
    assert drawing.summary(np.zeros((0, 3))) == "none"


def test_layers_go_down_and_long_edges_have_a_place_in_each(tmp_path):
    a = cg.tensor(np.ones(3), requires_grad=True)
    with viz.record() as tape:
        b = F.tanh(F.tanh(F.tanh(a)))
        loss = (b + a).sum()
    graph = tape.graph(loss, {"a": a})  # a A B C D loss
    table = drawing.layers(graph)
    assert table == [[(0, -1)], [(1, -1), (0, 4)], [(2, -1), (0, 4)], [(3, -1), (0, 4)],
                     [(4, -1)], [(5, -1)]]  # fmt: skip
    pytest.importorskip("matplotlib", reason="needs: pip install '.[demo]'")
    graph.draw(tmp_path / "graph.png", "title")
    data = (tmp_path / "graph.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < canvas.BYTES


def test_what_was_given_stands_above_its_first_use(lecture):
    table = drawing.layers(lecture[0])
    names = [[lecture[0].nodes[i].name for i, _ in row] for row in table]
    assert names == [["W0", "x"], ["A"], ["B", "W1"], ["C"], ["D", "w"], ["E"], ["y", "t"],
                     ["loss"]]  # fmt: skip


def test_a_large_graph_is_text_only(tmp_path):
    x = cg.tensor(np.ones(2), requires_grad=True)
    with viz.record() as tape:
        y = x
        for _ in range(60):
            y = y * 1
        loss = y.sum()
    graph = tape.graph(loss)
    assert graph.mermaid().count("-->") == 61
    with pytest.raises(ValueError, match=r"\[draw\] .*at most 60 nodes. Got 62"):
        graph.draw(tmp_path / "x.png")


# ---- activations ----


DERIVATIVES = {
    "sigmoid": lambda x: sigmoid(x) * (1 - sigmoid(x)),
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "ReLU": lambda x: np.where(x > 0, 1.0, 0.0),
    "leaky ReLU": lambda x: np.where(x > 0, 1.0, 0.01),
    "PReLU, a = 0.25": lambda x: np.where(x > 0, 1.0, 0.25),
    "ELU": lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0))),
    "softplus": sigmoid,
}


@pytest.mark.quick
@pytest.mark.parametrize("name", DERIVATIVES)
def test_curves_are_the_derivatives(name):
    x = np.linspace(-6, 6, 40)
    y, slope = curves.curve(curves.ACTIVATIONS[name], x)
    np.testing.assert_allclose(slope, DERIVATIVES[name](x), rtol=1e-9, atol=1e-12)
    assert y[20] - y[19] == pytest.approx(slope[19:21].mean() * (x[20] - x[19]), rel=0.3)


@pytest.mark.quick
def test_saturation_is_what_stays_flat():
    x = np.linspace(-6, 6, 481)
    flat = {
        name: x[curves.saturated(curves.curve(function, x)[1])]
        for name, function in curves.ACTIVATIONS.items()
    }
    for name in ("leaky ReLU", "PReLU, a = 0.25", "SiLU"):  # SiLU's gradient changes its sign
        assert flat[name].size == 0
    assert flat["ReLU"].max() == 0 and (flat["ReLU"].size, flat["ReLU"].min()) == (241, -6)
    for name, edge in (("sigmoid", 4.6), ("tanh", 3.0)):
        np.testing.assert_allclose(np.abs(flat[name]).min(), edge, atol=0.05)
        assert flat[name].min() == -6 and flat[name].max() == 6


def test_activations_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="needs: pip install '.[demo]'")
    viz.activations(tmp_path / "a.png", {"swish": F.silu, "cube": lambda x: x**3}, "title")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < canvas.BYTES
    with pytest.raises(ValueError, match=r"\[activations\] functions must not be empty"):
        viz.activations(tmp_path / "b.png", {})
