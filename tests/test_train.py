"""The public training loop and its callbacks."""

import json

import numpy as np
import pytest

import convgrad as cg
from convgrad import data, io, metrics, nn, optim, train
from convgrad.tasks.images import AugmentedImages, Images

pytestmark = pytest.mark.large("trains networks")


def blobs(n=50, seed=0):
    """Two classes of points around (1, 1) and (-1, -1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    points = rng.standard_normal((n, 2)) * 0.7 + np.where(labels, 1, -1)[:, None]
    return points.astype(np.float32), labels


def loader(n=50, batch_size=16, shuffle=True):
    return data.DataLoader(data.TensorDataset(*blobs(n)), batch_size, shuffle=shuffle, seed=0)


def model(seed=0):
    cg.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


def fit(epochs=3, network=None, batches=None, optimizer=None, **options):
    network = network or model()
    return train.fit(
        network,
        loader() if batches is None else batches,
        nn.CrossEntropyLoss(),
        optimizer or optim.SGD(network.parameters(), lr=0.2),
        epochs,
        **options,
    )


def test_fit_learns_and_returns_a_row_per_epoch():
    network = model()
    history = fit(10, network, validation=loader(40, 40), metrics={"accuracy": metrics.accuracy})
    assert [row["epoch"] for row in history] == list(range(1, 11))
    keys = {"epoch", "loss", "accuracy", "seconds", "val_loss", "val_accuracy"}
    assert all(set(row) == keys for row in history)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["val_accuracy"] > 0.9


def test_means_are_over_samples_not_batches():
    x, t = np.zeros((5, 1), np.float32), np.arange(5)

    def first_target(output, target):
        return float(np.asarray(target.numpy()).mean())

    batches = [(x[:4], t[:4]), (x[4:], t[4:])]
    network = nn.Linear(1, 5)
    row = fit(1, network, batches, metrics={"mean": first_target})[0]
    assert row["mean"] == pytest.approx(2.0)
    assert train.evaluate(network, batches, metrics={"mean": first_target}) == {
        "mean": pytest.approx(2.0)
    }


def test_the_same_seed_gives_the_same_bits():
    def weights(threads):
        cg.set_num_threads(threads)
        network = model(3)
        fit(2, network)
        return [np.ascontiguousarray(v.numpy()).tobytes() for v in network.state_dict().values()]

    assert weights(1) == weights(1) == weights(2)


def test_evaluate_is_in_evaluation_mode_records_nothing_and_puts_the_mode_back():
    network = model().train()
    network[2].eval()  # a module that differs from its parent keeps doing so
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((self.training, network[2].training, cg.is_grad_enabled()))
            return network(x)

    spy = Spy()
    spy.network = network
    result = train.evaluate(spy, loader(), nn.CrossEntropyLoss())
    assert set(result) == {"loss"} and set(seen) == {(False, False, False)}
    assert spy.training and network.training and network[0].training and not network[2].training
    assert cg.is_grad_enabled()


def test_the_mode_is_put_back_after_an_error():
    network = model().train()
    with pytest.raises(ValueError):
        train.predict(network, np.zeros((3, 5), np.float32))
    assert network.training and cg.is_grad_enabled()


def test_predict_is_the_model_in_c_order():
    cg.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    x = np.random.default_rng(0).standard_normal((7, 1, 6, 5)).astype(np.float32)
    y = train.predict(network, x, batch_size=3)
    assert y.shape == (7, 3, 4, 3) and y.flags.c_contiguous
    np.testing.assert_array_equal(y, network(cg.tensor(x)).detach().numpy())
    assert train.predict(network, x[:0]).shape == (0, 3, 4, 3)


def test_an_infinite_loss_ends_training_and_says_where():
    x, t = blobs()
    x[40] = np.nan
    with pytest.raises(FloatingPointError, match=r"\[fit\] .*Got nan in epoch 1, batch 3"):
        fit(batches=data.DataLoader(data.TensorDataset(x, t), 16))


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match=r"\[fit\] train_loader .*Got none"):
        fit(batches=[])


# ---- callbacks ----


class Recorder(train.Callback):
    def __init__(self):
        self.events = []

    def begin(self, run):
        self.events.append("begin")

    def batch(self, run):
        self.events.append((run.epoch, run.batch, run.batches))

    def epoch(self, run):
        self.events.append(len(run.history))

    def end(self, run):
        self.events.append("end")


def test_callbacks_are_called_in_order():
    recorder = Recorder()
    fit(2, batches=loader(20, 10), callbacks=[recorder])
    assert recorder.events == ["begin", (1, 1, 2), (1, 2, 2), 1, (2, 1, 2), (2, 2, 2), 2, "end"]


def test_end_is_called_when_interrupted():
    class Interrupt(train.Callback):
        def batch(self, run):
            raise KeyboardInterrupt

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[recorder, Interrupt()])
    assert recorder.events[-1] == "end"


def test_json_lines_are_the_history(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = fit(3, callbacks=[train.JsonLines(path)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == history


def test_progress_bar_writes_a_line_per_epoch(capsys):
    pytest.importorskip("tqdm", reason="needs: pip install '.[demo]'")
    fit(2, callbacks=[train.ProgressBar()], validation=loader())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss 0.") and "val_loss 0." in lines[0]


def test_progress_bar_is_live_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm", reason="needs: pip install '.[demo]'")
    import io as text
    import sys

    class Terminal(text.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(1, callbacks=[train.ProgressBar(write=lambda line: None)])
    assert "epoch 1/1" in terminal.getvalue() and "batch" in terminal.getvalue()


def test_checkpoint_keeps_the_best(tmp_path):
    pytest.importorskip("safetensors", reason="needs: pip install '.[demo]'")
    values = iter([3.0, 1.0, 2.0, 1.0])
    states = []

    class Keep(train.Callback):
        def epoch(self, run):
            run.history[-1]["val_loss"] = next(values)
            states.append({k: v.numpy(copy=True) for k, v in run.model.state_dict().items()})

    path = tmp_path / "best.safetensors"
    fit(4, callbacks=[Keep(), train.Checkpoint(path)])
    for name, value in io.load(path).items():
        np.testing.assert_array_equal(value, states[1][name])


def test_early_stopping_waits_for_patience():
    values = iter([0.5, 0.7, 0.6, 0.7, 0.7, 0.9])

    class Fake(train.Callback):
        def epoch(self, run):
            run.history[-1]["val_accuracy"] = next(values)

    stopping = train.EarlyStopping(2, "val_accuracy", "max")
    assert len(fit(6, callbacks=[Fake(), stopping])) == 4
    assert stopping.best == 0.7


def test_scheduler_steps_per_batch_epoch_or_value():
    def learning_rates(every, monitor=None, make=None):
        network = model()
        optimizer = optim.SGD(network.parameters(), lr=1e-3)
        scheduler = make(optimizer)
        seen = []

        class Record(train.Callback):
            def batch(self, run):
                seen.append(optimizer.param_groups[0]["lr"])

        fit(
            2,
            network,
            loader(20, 10),
            optimizer,
            callbacks=[Record(), train.SchedulerStep(scheduler, every, monitor)],
        )
        return [rate * 1e3 for rate in seen]

    def step(optimizer):
        return optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def plateau(optimizer):
        return optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, mode="max")

    assert learning_rates("batch", make=step) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert learning_rates("epoch", make=step) == pytest.approx([1, 1, 0.5, 0.5])
    assert learning_rates("epoch", "epoch", plateau) == pytest.approx([1, 1, 1, 1])


def test_penalty_is_minimised_and_l2_is_half_a_weight_decay():
    def weights(**options):
        network = nn.Linear(2, 2)
        network.load_state_dict(
            {"weight": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
        )
        decay = options.pop("decay", 0.0)
        groups = [
            {"params": [network.weight], "weight_decay": decay},
            {"params": [network.bias]},
        ]
        history = fit(3, network, optimizer=optim.SGD(groups, lr=0.1), **options)
        return network.state_dict(), history

    plain, history = weights()
    l2, l2_history = weights(callbacks=[train.Penalty(l2=0.05)])
    decayed, _ = weights(decay=0.1)
    l1, _ = weights(callbacks=[train.Penalty(l1=0.05)])
    for name in ("weight", "bias"):
        np.testing.assert_allclose(l2[name].numpy(), decayed[name].numpy(), rtol=1e-5)
    for penalised in (l1, l2):
        assert np.abs(penalised["weight"].numpy()).sum() < np.abs(plain["weight"].numpy()).sum()
    # The reported loss is the data's alone; before the first update both are the same.
    assert l2_history[0]["loss"] == pytest.approx(history[0]["loss"], rel=0.05)


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"\[EarlyStopping\] mode .*Got 'up'"):
        train.EarlyStopping(1, mode="up")
    with pytest.raises(ValueError, match=r"\[Checkpoint\] monitor must be one of epoch, loss.*'x'"):
        fit(1, callbacks=[train.Checkpoint("unused", "x")])
    with pytest.raises(ValueError, match=r"\[SchedulerStep\] every .*Got 'step'"):
        train.SchedulerStep(None, "step")
    with pytest.raises(ValueError, match=r"\[SchedulerStep\] .*Got every='batch'"):
        train.SchedulerStep(None, "batch", "loss")
    with pytest.raises(ValueError, match=r"\[Penalty\] .*Got -1 and 0"):
        train.Penalty(-1)


# ---- augmented images ----


def test_augmentation_follows_from_seed_epoch_and_image_alone():
    source = Images(np.random.default_rng(0).random((10, 1, 8, 8), np.float32), np.arange(10))
    amounts = {"shift": 1.0, "degrees": 10.0, "scale": 0.1}

    def epochs(batch_size, seed, prefetch=0):
        dataset = AugmentedImages(source, seed, **amounts)
        batches = data.DataLoader(dataset, batch_size, shuffle=True, seed=seed, prefetch=prefetch)
        result = []
        for _ in range(2):
            pairs = [(np.asarray(x.numpy()), np.asarray(y.numpy())) for x, y in batches]
            x, y = (np.concatenate(arrays) for arrays in zip(*pairs))
            result.append((x[np.argsort(y)], y))
        return result

    (first, order), (second, other_order) = epochs(3, seed=5)
    assert first.shape == (10, 1, 8, 8) and sorted(order) == list(range(10))
    assert (first != second).any() and (order != other_order).any()
    for again in (epochs(4, seed=5), epochs(3, seed=5, prefetch=3)):
        np.testing.assert_array_equal(first, again[0][0])
        np.testing.assert_array_equal(second, again[1][0])
    assert (epochs(3, seed=6)[0][0] != first).any()
    image, label = AugmentedImages(source, 5, **amounts)[7]
    np.testing.assert_array_equal(image.numpy(), first[7])
    assert label.numpy() == 7
