"""The lecture, checked: every formula and number on its slides, and every script in examples/."""

import math
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import nn, optim, penalty

pytestmark = pytest.mark.large("trains networks")

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def example(name):
    """The names that a script defines, without running its main()."""
    return runpy.run_path(str(EXAMPLES[0].parent / f"{name}.py"), run_name="example")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(path, capsys):
    pytest.importorskip("sklearn", reason="needs: pip install '.[demo]'")
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 4


# ---- forward pass, chain rule ----


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_chain_rule_by_hand_is_the_tapes_gradient(t):
    names = example("backpropagation")
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (5,), (3,))]
    loss, gradients = names["by_hand"](*arrays, t)
    tape_loss, tape_gradients = names["by_tape"](*arrays, t)
    assert tape_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(tape_gradients[name], gradient, rtol=1e-10, atol=1e-14)


def test_chain_rule_by_hand_is_the_slope():
    """The hand-worked gradients themselves, against differences of the loss."""
    by_hand = example("backpropagation")["by_hand"]
    rng = np.random.default_rng(4)
    W0, W1, w, x = (rng.standard_normal(s) for s in ((4, 3), (5, 4), (5,), (3,)))
    _, gradients = by_hand(W0, W1, w, x, 1.0)
    weights = {"W0": W0, "W1": W1, "w": w}
    for name, value in weights.items():
        direction = rng.standard_normal(value.shape)
        up, down = (
            by_hand(**{**weights, name: value + sign * 1e-6 * direction}, x=x, t=1.0)[0]
            for sign in (1, -1)
        )
        slope = (up - down) / 2e-6
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=1e-6)


def test_chain_rule_recap():
    slide, tape = example("backpropagation")["chain_rule_recap"](1.5)
    assert tape == pytest.approx(slide, rel=1e-12)
    assert slide == pytest.approx(-8 / 1.5**3)


# ---- losses ----


def test_two_class_loss_is_the_slides():
    scores, t = np.array([2.0, -1.0, 0.3, -4.0]), np.array([1.0, 0.0, 0.0, 1.0])
    y = 1 / (1 + np.exp(-scores))
    loss, gradient = example("losses")["two_class"](scores, t)
    assert loss == pytest.approx((-t * np.log(y) - (1 - t) * np.log(1 - y)).sum(), rel=1e-12)
    np.testing.assert_allclose(gradient, y - t, rtol=1e-9)
    with_logits = F.binary_cross_entropy_with_logits(
        cg.tensor(scores), cg.tensor(t), reduction="sum"
    )
    assert with_logits.item() == pytest.approx(loss, rel=1e-12)


def test_k_class_loss_is_the_sum_of_minus_ln_y():
    scores, classes = np.random.default_rng(0).standard_normal((6, 4)), np.arange(6) % 4
    y = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    t = np.eye(4)[classes]
    loss, gradient = example("losses")["k_class"](scores, classes)
    assert loss == pytest.approx(-(t * np.log(y)).sum(), rel=1e-12)
    np.testing.assert_allclose(gradient, y - t, rtol=1e-9)
    np.testing.assert_allclose(F.softmax(cg.tensor(scores), 1).numpy(), y, rtol=1e-12)


def test_k_class_with_two_classes_is_the_two_class_loss():
    names = example("losses")
    scores, t = np.array([2.0, -1.0, 0.3]), np.array([1, 0, 0])
    two, _ = names["two_class"](scores, t.astype(np.float64))
    k, _ = names["k_class"](np.stack([np.zeros(3), scores], 1), t)
    assert k == pytest.approx(two, rel=1e-12)


def test_hinge_loss():
    scores, signs = np.array([2.0, -1.5, 0.3, -4.0]), np.array([1.0, -1.0, -1.0, 1.0])
    loss, gradient = example("losses")["hinge"](scores, signs)
    assert loss == pytest.approx(np.maximum(0, 1 - signs * scores).mean())
    np.testing.assert_allclose(gradient, np.where(signs * scores < 1, -signs, 0) / 4)


# ---- lambda R(W) ----


@pytest.mark.quick
@pytest.mark.parametrize("l1, l2", [(0.3, 0.0), (0.0, 0.3), (0.1, 0.2)])
def test_penalties_in_a_summed_loss_and_its_gradient(l1, l2):
    names = example("regularisation")
    x, classes = names["noisy_data"](n=8, inputs=5)
    W = np.random.default_rng(2).standard_normal((2, 5))
    plain, plain_gradient = names["penalised"](W, x, classes)
    logits = x @ W.T
    log_y = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert plain == pytest.approx(-log_y[np.arange(8), classes].sum(), rel=1e-12)
    loss, gradient = names["penalised"](W, x, classes, l1, l2)
    assert loss == pytest.approx(plain + l1 * np.abs(W).sum() + l2 * (W**2).sum(), rel=1e-12)
    np.testing.assert_allclose(
        gradient, plain_gradient + l1 * np.sign(W) + 2 * l2 * W, rtol=1e-9, atol=1e-12
    )


def test_l2_is_twice_its_weight_decay_and_l1_leaves_useless_weights_near_zero():
    names = example("regularisation")
    x, classes = names["noisy_data"]()
    decayed = names["train"](x, classes, weight_decay=0.04)
    np.testing.assert_allclose(names["train"](x, classes, l2=0.02), decayed, rtol=1e-9)
    small = {
        name: (np.abs(names["train"](x, classes, **{name: 0.02})) < 0.005).sum()
        for name in ("l1", "l2")
    }
    assert small["l1"] > 2 * small["l2"]


# ---- activations ----

DERIVATIVES = {
    "sigmoid": lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2,
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "relu": lambda x: np.where(x > 0, 1.0, 0),
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.01),
    "prelu": lambda x: np.where(x > 0, 1.0, 0.25),
    "elu": lambda x: np.where(x > 0, 1.0, np.exp(x)),
    "silu": lambda x: (1 + np.exp(-x) * (1 + x)) / (1 + np.exp(-x)) ** 2,
    "gelu": lambda x: [
        (1 + math.erf(v / math.sqrt(2))) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
        for v in x
    ],
    "softplus": lambda x: 1 / (1 + np.exp(-x)),
    "hardtanh": lambda x: np.where(np.abs(x) < 1, 1.0, 0),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_activation_has_its_gradient(name):
    names = example("activations")
    x = np.array([-6.0, -2.5, -0.7, -0.1, 0.1, 0.7, 2.5, 6.0])
    value, gradient = names["value_and_gradient"](names["ACTIVATIONS"][name], x)
    np.testing.assert_allclose(gradient, DERIVATIVES[name](x), rtol=1e-6, atol=1e-12)
    # The value is the integral of the slope (by fine trapezoids, from the first point).
    fine = np.linspace(x[0], x[-1], 120_001)
    slope = np.asarray(DERIVATIVES[name](fine))
    steps = (slope[1:] + slope[:-1]) / 2 * np.diff(fine)
    integral = value[0] + np.concatenate([[0], np.cumsum(steps)])
    np.testing.assert_allclose(value, np.interp(x, fine, integral), atol=1e-3)


def test_every_activation_of_the_example_has_a_derivative_here():
    assert set(example("activations")["ACTIVATIONS"]) == set(DERIVATIVES)


def test_prelu_with_a_slope_above_1_is_not_the_maximum():
    x = np.array([-2.0, 3.0])
    y = F.prelu(cg.tensor(x), cg.tensor(np.array([1.5]))).numpy()
    np.testing.assert_array_equal(y, np.maximum(0, x) + 1.5 * np.minimum(0, x))
    np.testing.assert_array_equal(y, [-3.0, 3.0])
    assert (y != np.maximum(1.5 * x, x)).any()


def test_prelus_slope_is_learned():
    x = np.array([[-2.0, 3.0], [-1.0, -5.0]])
    slope = cg.tensor(np.array([0.25]), requires_grad=True)
    F.prelu(cg.tensor(x), slope).sum().backward()
    assert slope.grad.item() == np.minimum(0, x).sum()


def test_gradient_through_depth():
    names = example("activations")
    left = {
        name: names["gradient_through_depth"](names["ACTIVATIONS"][name])
        for name in names["LECTURE"]
    }
    assert left["sigmoid"] < 1e-10
    assert left["sigmoid"] < 1e-6 * left["tanh"]
    for name in ("relu", "leaky_relu", "prelu"):
        assert 0.02 < left[name] < 50


def test_time_per_element_is_measured():
    names = example("activations")
    for name in names["LECTURE"]:
        forward, backward = names["nanoseconds_per_element"](
            names["ACTIVATIONS"][name], elements=10_000, repeats=3
        )
        assert forward > 0 and backward > 0


# ---- parameter counts ----


def test_parameter_counts():
    names = example("parameter_counts")
    count, linear_count = names["count"], names["linear_count"]
    assert count(nn.Linear(28 * 28, 10)) == linear_count(28 * 28, 10) == 7_850
    assert count(nn.Linear(256**2, 10)) == linear_count(256**2, 10) == 655_370
    # The layer would take 671 MB; that the formula is the layer's is shown above.
    assert linear_count(256**3, 10) == 167_772_170
    assert [count(make()) for make in names["LAYERS"].values()] == [22_500, 450, 3, 9, 45]


def test_layers_of_150_neurons_compute_what_they_should():
    """Fully connected with a banded matrix = locally connected; with one band = convolution."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 150)), rng.standard_normal((150, 3))
    padded = np.pad(x, ((0, 0), (1, 1)))
    windows = np.stack([padded[:, i : i + 150] for i in range(3)], 2)  # (2, 150, 3)
    local = nn.LocallyConnected1d(1, 1, 150, 3, padding=1, bias=False, dtype=np.float64)
    local.load_state_dict({"weight": w.reshape(local.weight.shape)})
    want = (windows * w).sum(2)
    np.testing.assert_allclose(
        local(cg.tensor(x[:, None])).detach().numpy()[:, 0], want, atol=1e-12
    )
    shared = F.conv1d(cg.tensor(x[:, None]), cg.tensor(w[:1, None]), padding=1).numpy()[:, 0]
    np.testing.assert_allclose(shared, windows @ w[0], atol=1e-12)
    band = np.zeros((150, 150))
    for row in range(150):
        for tap in range(3):
            if 0 <= row + tap - 1 < 150:
                band[row, row + tap - 1] = w[row, tap]
    dense = F.linear(cg.tensor(x), cg.tensor(band)).numpy()
    np.testing.assert_allclose(dense, want, atol=1e-12)


# ---- the neuron, batches, gradient descent ----


def test_neuron_slide_alone_and_as_a_batch():
    names = example("neuron")
    w = cg.tensor(names["W"])
    expected = ((0.06, 0.515), (11.06, 0.99998))
    for x, (score, sigma) in zip(names["SAMPLES"], expected):
        s, y = names["neuron"](cg.tensor(x), w)
        assert s.item() == pytest.approx(score, abs=1e-12)
        assert y.item() == pytest.approx(sigma, abs=5e-6 if sigma > 0.9 else 5e-4)
    s, y = names["neuron"](cg.tensor(names["SAMPLES"]), w)
    np.testing.assert_allclose(s.numpy().ravel(), [0.06, 11.06], atol=1e-12)
    np.testing.assert_allclose(y.numpy().ravel(), 1 / (1 + np.exp([-0.06, -11.06])), rtol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_one_by_one_batch_and_mini_batches_give_the_same_gradient(parts):
    loss_and_gradient = example("neuron")["loss_and_gradient"]
    rng = np.random.default_rng(1)
    x, t = rng.standard_normal((12, 2)), rng.integers(0, 2, 12).astype(np.float64)
    loss, gradient = loss_and_gradient(x, t)
    split_loss, split_gradient = loss_and_gradient(x, t, parts)
    assert split_loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(split_gradient, gradient, rtol=1e-10)


def test_batches_of_a_cnn_give_the_same_gradient_as_its_samples():
    """A batch only adds: samples, mini-batches and the batch agree, convolutions too."""
    rng = np.random.default_rng(2)
    x, t = rng.standard_normal((6, 1, 8, 8)), np.arange(6) % 3
    w = [rng.standard_normal(s) * 0.3 for s in ((4, 1, 3, 3), (4,), (3, 64), (3,))]

    def gradients(parts):
        leaves = [cg.tensor(a, requires_grad=True) for a in w]
        for images, classes in zip(np.array_split(x, parts), np.array_split(t, parts)):
            maps = F.max_pool2d(F.relu(F.conv2d(cg.tensor(images), *leaves[:2], padding=1)), 2)
            scores = F.linear(maps.flatten(1), *leaves[2:])
            F.cross_entropy(scores, cg.tensor(classes), reduction="sum").backward()
        return [leaf.grad.numpy() for leaf in leaves]

    batch = gradients(1)
    for parts in (2, 3, 6):
        for a, b in zip(batch, gradients(parts)):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_full_batch_gradient_descent_follows_the_formula():
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((20, 3)), rng.integers(0, 2, (20, 1)).astype(np.float64)
    W, b, eta, lam = rng.standard_normal((1, 3)), np.zeros(1), 0.02, 0.1
    ours = [cg.tensor(W, requires_grad=True), cg.tensor(b, requires_grad=True)]
    optimizer = optim.SGD(ours, lr=eta)
    for _ in range(10):
        y = 1 / (1 + np.exp(-(x @ W.T + b)))
        W, b = W - eta * ((y - t).T @ x + 2 * lam * W), b - eta * (y - t).sum(0)
        loss = F.binary_cross_entropy_with_logits(
            F.linear(cg.tensor(x), *ours), cg.tensor(t), reduction="sum"
        )
        optimizer.zero_grad()
        (loss + penalty.l2(ours[:1], lam)).backward()
        optimizer.step()
    np.testing.assert_allclose(ours[0].detach().numpy(), W, rtol=1e-10)
    np.testing.assert_allclose(ours[1].detach().numpy(), b, rtol=1e-10)


def test_gradient_descent_goes_down_and_mini_batches_go_down_faster():
    pytest.importorskip("sklearn", reason="needs: pip install '.[demo]'")
    names = example("gradient_descent")
    x, t = names["biopsies"]()
    full = names["full_batch"](x, t, steps=6, lr=0.1)
    assert all(after < before for before, after in pairwise(full))
    mini = names["mini_batches"](x, t, epochs=6, lr=0.1, batch_size=32)
    assert full[0] == pytest.approx(math.log(2), rel=1e-6) and mini[0] == pytest.approx(full[0])
    assert mini[-1] < full[-1]


# ---- convolution, feature maps, pooling ----


@pytest.mark.quick
def test_convolution_of_a_cnn_is_a_cross_correlation():
    names = example("convolution")
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (9, 11)).astype(np.float32)
    w = rng.integers(-4, 5, (3, 4)).astype(np.float32)
    got = names["conv2d"](x, w)
    np.testing.assert_array_equal(got, names["cross_correlation"](x, w))
    flipped = names["cross_correlation"](x, w[::-1, ::-1])
    assert (got != flipped).any()


def test_convolution_in_one_dimension_is_numpys_correlate():
    x, w = np.array([2.3, 1.7, 4.0, 2.8, 5.7, 4.4]), np.array([0.25, -0.5, 1.0])
    y = F.conv1d(cg.tensor(x[None, None]), cg.tensor(w[None, None])).numpy().ravel()
    np.testing.assert_allclose(y, np.correlate(x, w, "valid"), rtol=1e-12)
    np.testing.assert_allclose(y, np.convolve(x, w[::-1], "valid"), rtol=1e-12)


def test_k_feature_maps_are_k_single_convolutions():
    names = example("convolution")
    image = np.random.default_rng(1).random((10, 12), np.float32)
    maps = names["feature_maps"](image).numpy()
    assert maps.shape == (1, 5, 8, 10)
    for k, kernel in enumerate(names["KERNELS"].values()):
        want = np.maximum(0, names["cross_correlation"](image, np.array(kernel, np.float32)))
        np.testing.assert_allclose(maps[0, k], want, atol=1e-5)


def test_pooling_is_partly_invariant_to_shift_scale_and_rotation():
    table = example("pooling")["measure"]()
    assert set(table) == {"shift 1 pixel", "rotation 5 degrees", "scale 5 %"}
    for changes in table.values():
        assert all(after < before for before, after in pairwise(changes))
        assert changes[0] > 0.2  # without pooling the maps do change
        assert changes[2] < 0.8 * changes[0] and changes[4] < 0.6 * changes[0]


def test_pooling_reduces_memory_and_computation():
    maps = cg.tensor(np.zeros((1, 8, 32, 32), np.float32))
    assert F.max_pool2d(maps, 2).shape == (1, 8, 16, 16)
