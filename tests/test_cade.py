"""The three stages of cade: losses and baselines on made-up slices, and a tiny run end to end."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import metrics, models
from convgrad.cli.main import main
from convgrad.tasks import cade, lesions
from convgrad.tasks.images import Settings

pytestmark = pytest.mark.cpu("runs commands, which choose their device themselves")

scipy = pytest.importorskip("scipy", reason="needs: pip install '.[medical]'")
nilearn = pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")

RUN_FILES = [
    "box_curves.png",
    "boxes.png",
    "config.json",
    "confusion_matrix.png",
    "grow_cut.png",
    "heat_maps.png",
    "metrics.jsonl",
    "model.safetensors",
    "slice_curves.png",
]


# ---- parts ----


def test_box_loss_is_one_minus_iou_and_a_distance():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.2, 0.6, (2, 40, 4)).astype(np.float32)
    iou = metrics.box_iou(a, b).mean()
    distance = F.smooth_l1_loss(cg.tensor(a * 10), cg.tensor(b * 10)).item()
    loss = cade.box_loss(cg.tensor(a), cg.tensor(b)).item()
    assert loss == pytest.approx(1 - iou + distance, rel=1e-4)
    same = cade.box_loss(cg.tensor(a), cg.tensor(a)).item()
    assert same == pytest.approx(0, abs=1e-4)


def test_box_loss_leads_boxes_of_no_size_too():
    for box in ([0.2, 0.2, -0.1, -0.3], [0.2, 0.2, 0, 0], [0.9, 0.9, 0.1, 0.1]):
        predicted = cg.tensor([box], dtype=cg.float32, requires_grad=True)
        cade.box_loss(predicted, cg.tensor([[0.5, 0.5, 0.2, 0.2]])).backward()
        gradient = predicted.grad.numpy()
        assert np.isfinite(gradient).all()
        wrong = np.array(box) != [0.5, 0.5, 0.2, 0.2]
        assert (np.sign(gradient[0]) == np.sign(np.array(box) - [0.5, 0.5, 0.2, 0.2]))[wrong].all()


def test_the_box_network_gives_the_sides_of_its_heat_maps():
    cg.manual_seed(0)
    model = models.BoxCNN().eval()
    x = cg.tensor(np.random.default_rng(0).standard_normal((2, 4, 16, 24)).astype(np.float32))
    box = model(x).detach().numpy()
    heat = model.heat(model.trunk(x)).detach().numpy().astype(np.float64)
    weights = np.exp(heat) / np.exp(heat).sum((2, 3), keepdims=True)
    y = (weights.sum(3) * (np.arange(4) + 0.5) / 4).sum(2)
    x = (weights.sum(2) * (np.arange(6) + 0.5) / 6).sum(2)
    top, bottom, left, right = y[:, 0], y[:, 1], x[:, 2], x[:, 3]
    expected = [(top + bottom) / 2, (left + right) / 2, bottom - top, right - left]
    np.testing.assert_allclose(box, np.stack(expected, 1), rtol=1e-4, atol=1e-6)


def bright_squares(count=8):
    """Slices in which the lesion is a square, 1 brighter in FLAIR than all the rest."""
    labels = np.zeros((count, 20, 30), np.uint8)
    for i in range(1, count, 2):
        labels[i, 4 : 11 + i % 3, 5 : 14 + i % 4] = 3
    images = np.zeros((count, 4, 20, 30), np.float32)
    images[:, 3] = labels > 0
    boxes = np.stack([lesions.box_of(part > 0) for part in labels])
    has = labels.any((1, 2)).astype(np.float32)
    return lesions.Slices(images, labels, boxes, has, np.zeros(count, np.int64))


def test_what_is_easy_is_found_by_threshold_and_by_grow_cut():
    slices = bright_squares()
    threshold = cade.Threshold.chosen(slices)
    found = threshold.segment(slices.images)
    np.testing.assert_array_equal(found.any((1, 2)), slices.opacities > 0)
    sick = cade.with_lesion(slices)
    assert len(sick.images) == 4 and sick.labels.any((1, 2)).all()
    truth = sick.labels > 0
    for masks in (
        found[1::2],
        threshold.segment_in(sick.images, sick.boxes),
        cade.grow(sick.images, sick.boxes),
    ):
        assert min(metrics.dice(m, t) for m, t in zip(masks, truth)) > 0.9


def test_training_slices_are_mirrored_with_their_boxes():
    slices = bright_squares(2)
    seen = set()

    class Spy(cg.nn.Module):
        def __init__(self):
            super().__init__()
            self.box = cg.nn.Parameter(np.full((1, 4), 0.5, np.float32))

        def forward(self, x):
            for image in x.numpy():
                seen.add(tuple(np.round(lesions.box_of(image[3] > 0.5), 3)))
            return self.box.expand(len(x), 4)

    splits = cade.Splits(slices, slices, lambda: slices)
    history = cade.fit_boxes(Spy(), splits, Settings(epochs=40, batch_size=4, lr=0.02))
    y, x, h, w = np.round(slices.boxes[1], 3)
    middles = np.array([(y, x), (1 - y, x), (y, 1 - x), (1 - y, 1 - x)])
    assert len({s[:2] for s in seen}) == 4
    for middle in middles:
        assert min(np.abs(middle - s[:2]).max() for s in seen) < 1e-3
    assert {s[2:] for s in seen} == {(h, w)}
    # Half of the time a mirrored box is on the other side: the best single answer is the middle.
    assert history[-1]["loss"] < history[0]["loss"]


# ---- the command ----


@pytest.fixture(scope="module")
def cade_run(tmp_path_factory):
    """(folder, sizes) of a run with few slices."""
    folder = tmp_path_factory.mktemp("run") / "cade"
    sizes = (48, 16, 20)
    patch = pytest.MonkeyPatch()
    patch.setattr(cade, "SIZES", sizes)
    epochs = ["--slice-epochs", "2", "--box-epochs", "3", "--batch-size", "8"]
    code = main(["train", "cade", *epochs, "--seed", "1", "--out", str(folder)])
    yield code, folder
    patch.undo()


def test_a_run_leaves_weights_figures_and_pictures(cade_run):
    code, folder = cade_run
    assert code == 0 and sorted(os.listdir(folder)) == RUN_FILES
    config = json.loads((folder / "config.json").read_text())
    expected = {"task": "cade", "training_slices": 48, "slice_epochs": 2, "seed": 1}
    assert {key: config[key] for key in expected} == expected
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("epoch") for row in rows] == [1, 2, 1, 2, 3, None]
    assert "val_accuracy" in rows[1] and "val_iou" in rows[2]
    assert 0 <= rows[-1]["test_iou"] <= 1 and 0 <= rows[-1]["test_dice"] <= 1
    for name in RUN_FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_the_figures_of_training(cade_run, capsys):
    _, folder = cade_run
    assert main(["evaluate", str(folder)]) == 0
    printed = capsys.readouterr().out
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("accuracy", "iou", "found", "dice", "dice_in_box", "pointing"):
        assert f"  {last[f'test_{name}']:.4f}" in printed, name


def test_predict_prints_class_and_box(cade_run, capsys, tmp_path):
    _, folder = cade_run
    test = lesions.slices(0, "test", range(6))
    paths = [tmp_path / f"{i}.npy" for i in range(6)]
    for path, image in zip(paths, test.images):
        np.save(path, image)
    assert main(["predict", str(folder), *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = models.CADe()
    model.load_state_dict(cg.io.load(folder / "model.safetensors"))
    logits, boxes = (y.detach().numpy() for y in model.eval()(cg.tensor(test.images)))
    for path, line, row, box in zip(paths, lines, logits, boxes):
        assert line.startswith(f"{path}  {cade.CLASSES[row.argmax()]}  ")
        assert ("  box at y" in line) == bool(row.argmax())
        if row.argmax():
            assert f"y {box[0] * 48:.1f}, x {box[1] * 112:.1f} of" in line


def test_wrong_usage_is_said(cade_run, capsys, tmp_path):
    _, folder = cade_run
    np.save(tmp_path / "small.npy", np.zeros((4, 8, 8), np.float32))
    (tmp_path / "text.npy").write_text("no array")
    for arguments, code, message in (
        (["train", "cade", "--training-slices", "1"], 2, "must be 2 or more, got 1"),
        (["train", "cade", "--slice-epochs", "0"], 2, "--slice-epochs: must be a whole number"),
        (["train", "cade", "--out", folder], 1, "already holds a run"),
        (["evaluate", folder, "--data", tmp_path], 1, "--data has no meaning"),
        (["predict", folder, tmp_path / "small.npy"], 1, "(4, 48, 112): T1, T1c, T2, FLAIR"),
        (["predict", folder, tmp_path / "text.npy"], 1, "is not a .npy file of numbers"),
    ):
        try:
            got = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            got = stop.code
        error = capsys.readouterr().err
        assert got == code and message in error and "Traceback" not in error, error


def test_help_says_what_is_real_and_what_is_simulated(capsys):
    with pytest.raises(SystemExit):
        main(["train", "cade", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "simulated lesions on a template" in text
    assert "CADe-style" in text and "layer table is not public" in text
