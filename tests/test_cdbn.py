"""Convolutional deep belief networks: probabilities and energies by enumeration, gradients by
finite differences, learning on small images; the task that learns filters from photographs."""

import itertools
import json

import numpy as np
import pytest

import convgrad as cg
from convgrad.models import ConvDBN, ConvRBM, probabilistic_max_pool
from tests.device import tensor_on, values

pytestmark = pytest.mark.large("samples many times, trains")


def layer(visible="real", sigma=0.8, channels=2, filters=2, kernel=2, pool=2, seed=0):
    """A layer in float64 with weights that matter."""
    rng = np.random.default_rng(seed)
    out = ConvRBM(channels, filters, kernel, pool, visible, sigma).to(np.float64)
    with cg.no_grad():
        for parameter in out.parameters():
            parameter.copy_(cg.tensor(rng.standard_normal(parameter.shape) * 0.7))
    return out


def visible_units(kind, shape, seed=1):
    v = np.random.default_rng(seed).standard_normal(shape)
    return v if kind == "real" else (v > 0).astype(np.float64)


def block_states(pool=2):
    """Every state of one block: all off, or one on."""
    for on in (None, *range(pool**2)):
        state = np.zeros(pool**2)
        if on is not None:
            state[on] = 1
        yield state.reshape(pool, pool)


def all_hidden(filters=2, width=2):
    """Every allowed state (1, filters, 2, 2 width) of a row of ``width`` blocks per filter."""
    for states in itertools.product(block_states(), repeat=filters * width):
        rows = np.array(states).reshape(filters, width, 2, 2)
        yield rows.transpose(0, 2, 1, 3).reshape(1, filters, 2, 2 * width)


# ---- probabilistic max pooling ----


@pytest.mark.quick
def test_a_block_and_its_off_unit_sum_to_one():
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 9)) * 3
    x[0, 0, :3, :3], x[0, 1, :3, :3] = 1000, -1000  # nothing overflows
    on, pooled = (values(t) for t in probabilistic_max_pool(tensor_on(x), 3))
    assert on.shape == x.shape and pooled.shape == (2, 3, 2, 3) and on.min() >= 0
    blocks = on.reshape(2, 3, 2, 3, 3, 3).sum((3, 5))
    np.testing.assert_allclose(blocks, pooled, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pooled[0, 0, 0, 0], 1)
    assert pooled[0, 1, 0, 0] == 0
    inputs = np.exp(x[1, 2, 3:, 6:])
    np.testing.assert_allclose(on[1, 2, 3:, 6:], inputs / (1 + inputs.sum()), rtol=1e-12)
    np.testing.assert_allclose(1 - pooled[1, 2, 1, 2], 1 / (1 + inputs.sum()), rtol=1e-9)


def test_samples_are_as_frequent_as_their_probabilities():
    rbm = ConvRBM(1, 2, 1, 2)
    with cg.no_grad():
        rbm.weight.copy_(cg.tensor(np.array([1.0, -2.0], np.float32).reshape(2, 1, 1, 1)))
    v = np.zeros((8000, 1, 2, 2), np.float32)
    v[:] = [[1.0, 0.0], [-1.0, 0.5]]
    h = values(rbm.sample(cg.tensor(v), cg.Generator().manual_seed(0)))
    assert set(np.unique(h)) == {0, 1} and h.sum((2, 3)).max() == 1
    want = values(rbm.hidden(cg.tensor(v[:1]))[0])[0]
    np.testing.assert_allclose(h.mean(0), want, atol=4 * np.sqrt(0.25 / len(v)))


# ---- energies ----


@pytest.mark.parametrize("visible", ["real", "binary"])
def test_hidden_probabilities_and_free_energy_by_enumeration(visible):
    rbm = layer(visible)
    v = tensor_on(visible_units(visible, (1, 2, 3, 5)))  # two blocks of 2x2 per filter
    states = np.concatenate(list(all_hidden()))
    energies = np.array([rbm.energy(v, tensor_on(h[None])).item() for h in states])
    np.testing.assert_allclose(
        rbm.free_energy(v).item(), -np.log(np.exp(-energies).sum()), rtol=1e-12
    )
    weights = np.exp(-energies) / np.exp(-energies).sum()
    on, pooled = (values(t)[0] for t in rbm.hidden(v))
    np.testing.assert_allclose(on, np.tensordot(weights, states, 1), rtol=1e-10)
    any_on = states.reshape(-1, 2, 1, 2, 2, 2).max((3, 5))
    np.testing.assert_allclose(pooled, np.tensordot(weights, any_on, 1), rtol=1e-10)
    np.testing.assert_array_equal(values(rbm(v))[0], pooled)


def test_visible_means_given_hidden_units():
    """Binary: by enumeration; real: where the energy is lowest."""
    h = np.zeros((1, 2, 2, 2))
    h[0, 0, 1, 0] = h[0, 1, 0, 1] = 1
    rbm = layer("binary", channels=1)
    states = np.array(list(itertools.product((0.0, 1.0), repeat=9))).reshape(-1, 1, 3, 3)
    energies = values(rbm.energy(tensor_on(states), tensor_on(np.repeat(h, len(states), 0))))
    weights = np.exp(-energies) / np.exp(-energies).sum()
    mean = values(rbm.reconstruct(tensor_on(h)))[0]
    np.testing.assert_allclose(mean, np.tensordot(weights, states, 1), rtol=1e-10)
    rbm = layer("real")
    v = rbm.reconstruct(tensor_on(h)).detach().requires_grad_()
    rbm.energy(v, tensor_on(h)).sum().backward()
    np.testing.assert_allclose(values(v.grad), 0, atol=1e-12)


@pytest.mark.parametrize("visible", ["real", "binary"])
def test_free_energys_gradient_is_its_slope_and_what_the_units_expect(visible):
    rbm, v = layer(visible), visible_units(visible, (2, 2, 5, 3))
    rbm.free_energy(tensor_on(v)).sum().backward()
    for parameter in rbm.parameters():
        slope = np.zeros(parameter.shape)
        for at in np.ndindex(*parameter.shape):
            ends = []
            for step in (1e-5, -1e-5):
                with cg.no_grad():
                    parameter[at] = parameter[at] + step
                    ends.append(rbm.free_energy(tensor_on(v)).sum().item())
                    parameter[at] = parameter[at] - step
            slope[at] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(values(parameter.grad), slope, rtol=1e-6, atol=1e-8)
    on = values(rbm.hidden(tensor_on(v))[0])
    for k, a, b in itertools.product(range(2), range(2), range(2)):
        seen = v[:, :, a : a + 4, b : b + 2]
        want = -(on[:, k, None] * seen).sum((0, 2, 3)) / rbm.sigma.item() ** 2
        np.testing.assert_allclose(values(rbm.weight.grad)[k, :, a, b], want, rtol=1e-9)


# ---- learning ----


def test_contrastive_divergences_gradient_is_the_authors():
    """(what is seen - what is made up), each detection unit's expectation times what it sees."""
    rbm = layer()
    v = visible_units("real", (3, 2, 5, 5))
    loss, active = rbm.contrast(tensor_on(v), cg.Generator().manual_seed(5))
    loss.backward()
    fantasy = rbm.reconstruct(rbm.sample(tensor_on(v), cg.Generator().manual_seed(5)))
    on, made_up = (values(rbm.hidden(t)[0]) for t in (tensor_on(v), fantasy.detach()))
    np.testing.assert_allclose(values(active), on.mean((0, 2, 3)), rtol=1e-12)
    want = (made_up - on).mean((0, 2, 3))
    np.testing.assert_allclose(values(rbm.hidden_bias.grad), want, rtol=1e-9)
    f = values(fantasy)
    for a, b in itertools.product(range(2), range(2)):
        seen, other = v[:, :, a : a + 4, b : b + 4], f[:, :, a : a + 4, b : b + 4]
        want = np.einsum("nkyx,ncyx->kc", made_up, other) - np.einsum("nkyx,ncyx->kc", on, seen)
        np.testing.assert_allclose(
            values(rbm.weight.grad)[:, :, a, b], want / (3 * 16), rtol=1e-9, atol=1e-12
        )


def test_a_layer_learns_bars():
    """Binary images of short bars: filters become bars, the reconstruction gets better."""
    from convgrad import optim

    cg.manual_seed(0)
    rng = np.random.default_rng(0)

    def bars(n=16, size=11):
        v = np.zeros((n, 1, size, size), np.float32)
        for image in v[:, 0]:
            for _ in range(3):
                y, x = rng.integers(0, size - 4, 2)
                image[(y, slice(x, x + 4)) if rng.random() < 0.5 else (slice(y, y + 4), x)] = 1
        return cg.tensor(v)

    rbm = ConvRBM(1, 4, 4, 2, "binary")
    optimizer = optim.SGD(rbm.parameters(), lr=0.3, momentum=0.5)

    def error(v):
        with cg.no_grad():
            return ((v - rbm.reconstruct(rbm.hidden(v)[0])) ** 2).mean().item()

    seen = bars(64)
    before = error(seen)
    for _ in range(400):
        loss, active = rbm.contrast(bars())
        optimizer.zero_grad()
        loss.backward()
        with cg.no_grad():
            rbm.hidden_bias.grad += (active - 0.03) * 2
        optimizer.step()
    assert error(seen) < 0.35 * before
    assert 0.01 < active.mean().item() < 0.06


@pytest.mark.quick
def test_layers_stack_and_trim():
    cg.manual_seed(0)
    model = ConvDBN(ConvRBM(1, 4, 3, 2), ConvRBM(4, 5, 3, 3, "binary"))
    v = cg.tensor(np.random.default_rng(0).standard_normal((2, 1, 23, 24)).astype(np.float32))
    first = model[0].trim(v)
    assert first.shape == (2, 1, 22, 24) and model[0](first).shape == (2, 4, 10, 11)
    assert model(v).shape == (2, 5, 2, 3)
    assert model.templates(0).shape == (4, 1, 3, 3)
    assert model.templates(1).shape == (5, 1, 8, 8)  # 3 pooling units of 2 pixels, then 3 - 1 more
    with cg.no_grad():
        model[1].weight.fill_(-1)
        assert model.templates(1).abs().max().item() == 0
        model[1].weight[0, 2, 0, 0] = 4.0
    picture, filter_ = model.templates(1)[0, 0].numpy(), model[0].weight[2, 0].detach().numpy()
    want = sum(np.pad(filter_, ((y, 5 - y), (x, 5 - x))) for y in (0, 1) for x in (0, 1))
    np.testing.assert_allclose(picture, want, atol=1e-7)


def test_state_dict_holds_sigma():
    rbm = ConvRBM(1, 4, 3, sigma=0.2)
    other = ConvRBM(1, 4, 3)
    other.load_state_dict(rbm.state_dict())
    assert other.sigma.item() == pytest.approx(0.2)
    assert set(rbm.state_dict()) == {"weight", "hidden_bias", "visible_bias", "sigma"}


@pytest.mark.quick
def test_what_does_not_fit_is_said():
    x = cg.tensor(np.zeros((1, 1, 6, 7), np.float32))
    with pytest.raises(ValueError, match=r"multiples of 2. Got Tensor float32 \(1, 1, 6, 7\)"):
        probabilistic_max_pool(x, 2)
    with pytest.raises(ValueError, match=r"\[ConvRBM\] .* blocks of 2 x 2. Got 4 x 5, from Tensor"):
        ConvRBM(1, 2, 3)(x)
    with pytest.raises(ValueError, match=r"Got -1 x 0"):
        ConvRBM(1, 2, 8)(x)
    with pytest.raises(ValueError, match=r"visible must be 'real' or 'binary'. Got 'gaussian'"):
        ConvRBM(1, 2, 3, visible="gaussian")
    with pytest.raises(ValueError, match=r"sigma must be a number above 0. Got 0"):
        ConvRBM(1, 2, 3, sigma=0)
    with pytest.raises(ValueError, match=r"\[templates\] layer must be in 0..0. Got 1"):
        ConvDBN(ConvRBM(1, 2, 3)).templates(1)


# ---- the task ----


def gabor(angle, size=10):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.cos(1.2 * along) * np.exp(-(x**2 + y**2) / 12)


@pytest.mark.quick
def test_coherence_is_of_one_orientation():
    from convgrad.tasks import filters

    oriented = np.stack([gabor(angle) for angle in (0, 0.5, 1.3, 2.2)])
    y, x = np.mgrid[:10, :10] - 4.5
    spot = np.exp(-(x**2 + y**2) / 4)
    noise = np.random.default_rng(0).standard_normal((1000, 1, 10, 10))
    assert filters.coherence(oriented[:, None]).min() > 0.75
    assert filters.coherence(np.stack([spot, np.ones((10, 10))])[:, None]).max() < 1e-6
    assert filters.coherence(noise).max() < filters.ORIENTED


def test_photographs_are_whitened_and_held_out():
    pytest.importorskip("skimage", reason="needs: pip install '.[medical]'")
    from skimage import data

    from convgrad.tasks import filters

    train, held_out = filters.load()
    assert len(train) == len(held_out) == 11
    camera = filters.whiten(data.camera().astype(float))
    np.testing.assert_allclose(train[2], camera[:, :384], atol=1e-5)
    np.testing.assert_allclose(held_out[2], camera[:, 384:], atol=1e-5)
    assert min(min(part.shape) for part in train + held_out) >= filters.SIZE
    assert camera.std() == pytest.approx(filters.DEVIATION, rel=1e-5)

    def power(image):
        """In two rings of frequencies."""
        f = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1]))
        spectrum = np.abs(np.fft.fft2(image)) ** 2
        return [spectrum[(f > low) & (f < low + 0.05)].mean() for low in (0.03, 0.25)]

    raw, white = power(data.camera()), power(camera)
    assert raw[0] / raw[1] > 20 * white[0] / white[1]
    crops = filters.draw(held_out, 5, np.random.default_rng(0))
    assert crops.shape == (5, 1, 69, 69) and np.abs(crops.mean((1, 2, 3))).max() < 1e-6
    other = filters.scrambled(crops, np.random.default_rng(1))
    np.testing.assert_allclose(np.abs(np.fft.fft2(other)), np.abs(np.fft.fft2(crops)), atol=1e-3)
    assert np.abs(other - crops).mean() > 0.1


def test_filters_from_the_command_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage", reason="needs: pip install '.[medical]'")
    from convgrad.cli.main import main
    from convgrad.cli.train import filters as command_line
    from convgrad.tasks import filters

    monkeypatch.setattr(filters, "UPDATES", 3)
    monkeypatch.setattr(command_line, "TEST_CROPS", 16)
    run = tmp_path / "run"
    command = ["train", "filters", "--epochs", "2", "--layers", "2", "--out", str(run)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("layer 1: oriented 0.") and lines[-4].startswith("layer 2: error ")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("layer") for row in rows] == [1, 2, None]
    names = ("filters", "filters_layer2", "feature_maps", "learning_curves_layer1")
    for name in (*names, "learning_curves_layer2"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "config.json").read_text())["parameters"] == 2425 + 138304
    assert main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == lines[-4:]
