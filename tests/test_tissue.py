"""The tissue task: what is seen and what is not, draws, loss, baseline, measures, whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad.cli.main import main
from convgrad.data import nifti
from convgrad.tasks import brain, folder, segmentation, tissue
from convgrad.tasks.segmentation import IGNORE, MODELS, Settings
from tests.test_nifti import AFFINE, write_brats, write_simple

pytestmark = pytest.mark.cpu("of the host's side: data, and runs on the CPU")

pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")
pytest.importorskip("nibabel", reason="needs: pip install '.[medical]'")


# ---- what is seen ----


def test_slices_hold_the_whole_brain():
    for name, count in (("train", 39), ("validation", 12), ("test", 24)):
        images, labels = tissue.part(name, 2)
        assert images.shape == labels.shape == (count, 80, 192) and labels.dtype == np.int64
        whole = brain.load().tissue[..., brain.blocks()[name]]
        np.testing.assert_array_equal(
            np.bincount(labels.ravel())[1:], np.bincount(whole.ravel())[1:]
        )


def test_a_volume_shows_no_slice_of_the_other_parts():
    whole, blocks = brain.load(2), brain.blocks(2)
    image, classes = (values[tissue.WINDOW[3]] for values in (whole.image, whole.tissue))
    for name, own in blocks.items():
        images, labels = tissue.part(name, 3)
        assert images.shape == labels.shape == (1, 40, 96, 80)
        np.testing.assert_array_equal(images[0][..., own], image[..., own])
        np.testing.assert_array_equal(labels[0][..., own], classes[..., own])
        np.testing.assert_array_equal(  # nothing is cut off
            np.bincount(classes[..., own].ravel())[1:],
            np.bincount(whole.tissue[..., own].ravel())[1:],
        )
        assert (np.delete(labels[0], own, 2) == IGNORE).all()
        hidden = np.concatenate([blocks[other] for other in blocks if other != name])
        for z in range(80):
            assert not (images[0][..., z, None] == image[..., hidden]).all((0, 1)).any()


def test_hidden_slices_are_mirror_images_of_what_is_visible():
    shown = tissue._mirrored(12, np.array([3, 4, 5, 8, 10, 11]))
    np.testing.assert_array_equal(shown, [0, 1, 2, 2, 1, 6, 6, 7, 7, 9, 9, 9])


# ---- draws ----


@pytest.mark.parametrize("spatial", [2, 3])
def test_draws_follow_from_seed_epoch_and_index(spatial):
    def drawn(seed, epoch, index):
        dataset = cls(source, 8, seed)
        dataset.set_epoch(epoch)
        return [t.numpy() for t in dataset.batch([index])]

    cls = tissue.SimulatedSlices if spatial == 2 else tissue.SimulatedPatches
    source = tissue.part("train", spatial)
    image, label = drawn(0, 1, 2)
    shape = (80, 192) if spatial == 2 else tissue.PATCH
    assert image.shape == (1, 1, *shape) and image.dtype == np.float32
    assert label.shape == (1, *shape) and label.dtype == np.int64
    np.testing.assert_array_equal(image, drawn(0, 1, 2)[0])
    for other in (drawn(1, 1, 2), drawn(0, 2, 2), drawn(0, 1, 3)):
        assert (other[0] != image).any()
    one, its_label = cls(source, 8)[3]
    batch, labels = cls(source, 8).batch([3])
    np.testing.assert_array_equal(one.numpy(), batch.numpy()[0])
    np.testing.assert_array_equal(its_label.numpy(), labels.numpy()[0])


def test_patches_are_cut_where_their_labels_are(monkeypatch):
    monkeypatch.setattr(brain, "NOISE", 0.0)
    monkeypatch.setattr(brain, "BIAS", 0.0)
    x, t = tissue.SimulatedPatches(tissue.part("train", 3), 12, seed=1).batch(range(12))
    image, label = x.numpy()[:, 0], t.numpy()
    seen = label != IGNORE
    assert seen.any((1, 2, 3)).all()
    assert image[label == 0].mean() < 0.1 < 0.3 < image[label == 1].mean()
    assert image[label == 1].mean() + 0.15 < image[label == 2].mean() < image[label == 3].mean()


def test_a_window_of_a_scan_is_under_the_whole_scan_s_field(monkeypatch):
    monkeypatch.setattr(brain, "NOISE", 0.0)
    whole = np.ones((40, 60, 50), np.float32)
    scan = brain.corrupt(whole, np.random.default_rng(3))
    start = (8, 20, 18)
    part = brain.corrupt(
        np.ones((32, 32, 32), np.float32), np.random.default_rng(3), whole.shape, start
    )
    np.testing.assert_allclose(part, scan[8:40, 20:52, 18:50], atol=0.01)
    assert np.ptp(scan) > 0.1


def test_test_noise_is_fixed_and_not_the_training_s():
    for spatial, count in ((2, 24), (3, tissue.SCANS)):
        first, again = tissue.scans("test", spatial), tissue.scans("test", spatial)
        assert len(first.images) == len(first.labels) == count
        np.testing.assert_array_equal(first.images, again.images)
        assert (first.images[0] != first.images[1]).any()


# ---- loss ----


def test_ignored_voxels_change_neither_loss_nor_gradient():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, 6, 5, 3)).astype(np.float32)
    target = rng.integers(0, 4, (2, 6, 5, 3))
    target[..., 1] = IGNORE

    def loss(values):
        x = cg.tensor(values, requires_grad=True)
        y = segmentation.loss(x, cg.tensor(target))
        y.backward()
        return y.item(), x.grad.numpy()

    value, gradient = loss(logits)
    other = logits.copy()
    other[..., 1] = 7 * rng.standard_normal(other[..., 1].shape)
    value_too, gradient_too = loss(other)
    assert value == value_too
    np.testing.assert_array_equal(gradient, gradient_too)
    assert not gradient[..., 1].any() and np.abs(gradient[..., 0]).max() > 0
    # Without the ignored voxels, the Dice of the classes but the background is the same.
    kept = cg.tensor(logits[..., [0, 2]]), cg.tensor(target[..., [0, 2]])
    whole = segmentation.loss(*kept).item()
    assert whole == pytest.approx((F.cross_entropy(*kept) + F.dice_loss(*kept)).item(), rel=1e-6)
    assert value < whole  # the background's Dice alone is better


# ---- measures ----


def test_baseline_separates_intensities():
    edges = [0.3, 0.6]
    images = np.random.default_rng(0).random((4, 30, 30))
    labels = 1 + np.digitize(images, edges)
    labels[0] = 0
    found = tissue._best_thresholds(images, labels)
    assert found == pytest.approx(edges, abs=0.01)


def test_measures_of_a_shifted_square():
    truth = np.zeros((2, 20, 20), np.int64)
    truth[:, 4:10, 4:10] = 1
    truth[:, 12:16, 12:16] = 2
    predicted = np.roll(truth, 1, 1)
    row = tissue.measure(predicted, truth, 2.0)
    assert row["dice CSF"] == pytest.approx(5 / 6)
    assert row["dice grey matter"] == pytest.approx(3 / 4)
    assert 0 < row["distance CSF"] < 2.0
    assert np.isnan(row["dice white matter"]) and np.isnan(row["distance white matter"])
    perfect = tissue.measure(truth, truth, 2.0)
    assert perfect["dice CSF"] == 1 and perfect["distance CSF"] == 0
    # In 3-D only the labelled slices count.
    volume = np.full((1, 20, 20, 6), IGNORE)
    volume[0, :, :, 2:4] = np.moveaxis(truth, 0, 2)
    guess = np.random.default_rng(0).integers(0, 4, volume.shape)
    guess[0, :, :, 2:4] = np.moveaxis(predicted, 0, 2)
    assert tissue.measure(guess, volume, 2.0) == pytest.approx(row, nan_ok=True)


@pytest.mark.parametrize("name", MODELS)
def test_networks_take_what_they_are_given(name):
    model = segmentation.network(name, 2, 3)
    if segmentation.spatial_axes(name) == 3:
        images = np.zeros((1, 2, 20, 18, 17), np.float32)
        assert segmentation.predict(model, images, (16, 16, 16)).shape == (1, 20, 18, 17)
        with pytest.raises(ValueError, match=r"must fit into the volume. Got 32 for 20"):
            segmentation.predict(model, images, (32, 32, 32))
    else:
        images = np.zeros((5, 2, 37, 50), np.float32)
        assert segmentation.predict(model, images).shape == (5, 37, 50)
    with pytest.raises(ValueError, match=r"\[network\] A model is one of .* Got 'vnet'"):
        segmentation.network("vnet", 1, 2)


# ---- runs ----

FILES = ["config.json", "learning_curves.png", "metrics.jsonl", "model.safetensors", "overlays.png"]


@pytest.mark.parametrize("model", ["unet", "unet3d"])
def test_trains_from_the_command_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tissue, "COPIES", 1)
    run = tmp_path / "run"
    small = ["--epochs", "2", "--draws", "16", "--batch-size", "2"]
    assert main(["train", "tissue", "--model", model, *small, "--out", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(p.name for p in run.iterdir()) == FILES
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == model and config["classes"] == list(brain.CLASSES)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= rows[1]["val_dice"] < 1 and rows[1]["loss"] < rows[0]["loss"]
    assert f"{rows[2]['test_dice CSF']:.4f}" in lines[-4]
    assert main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == lines[-5:]
    volume, out = tmp_path / "t1.nii.gz", tmp_path / "tissue.nii.gz"
    nifti.write_volume(volume, brain.load(2).image[:40, 20:60, 20:60], AFFINE)
    assert main(["predict", str(run), str(volume), "--out", str(out)]) == 0
    got = nifti.read_volume(out)
    assert got.voxels.shape == (40, 40, 40) and set(np.unique(got.voxels)) <= {0, 1, 2, 3}
    np.testing.assert_allclose(got.affine, AFFINE, atol=1e-5)
    assert main(["evaluate", str(run), "--data", str(tmp_path)]) == 1
    assert main(["predict", str(run), str(volume)]) == 1
    assert main(["predict", str(run), str(volume), str(volume), "--out", str(out)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "trained on a folder's volumes" in errors[0] and "give --out" in errors[1]
    assert "has 1 channels, a file each" in errors[2] and "Got 2 files" in errors[2]


@pytest.mark.parametrize("model", ["unet", "unet3d"])
def test_trains_on_a_folder(model, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    write_simple(data, ["p1", "p2", "p3", "p4", "p5"], (18, 20, 17))
    small = ["--epochs", "6", "--draws", "24", "--batch-size", "4", "--patch", "16", "--lr", "0.01"]
    command = ["train", "tissue", "--model", model, "--data", str(data), *small]
    assert main([*command, "--out", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(p.name for p in run.iterdir()) == FILES
    assert json.loads((run / "config.json").read_text())["classes"][1:] == ["class 1", "class 2"]
    assert float(lines[-1].split()[-1]) > 0.8
    assert main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == lines[-4:]
    image, out = data / "p1" / "image.nii.gz", tmp_path / "out.nii.gz"
    assert main(["predict", str(run), str(image), "--out", str(out)]) == 0
    truth = nifti.read_volume(data / "p1" / "label.nii.gz")
    got = nifti.read_volume(out)
    np.testing.assert_allclose(got.affine, truth.affine, atol=1e-5)
    assert (got.voxels == truth.voxels).mean() > 0.8


def test_brats_has_four_channels_and_four_classes(tmp_path):
    write_brats(tmp_path, shape=(17, 16, 18))
    problem = folder.Folder(tmp_path, 3, 16)
    assert problem.channels == 4 and len(problem.classes) == 4
    x, t = problem.training_set(6).batch(range(6))
    assert x.shape == (6, 4, 16, 16, 16) and set(np.unique(t.numpy())) == {0, 1, 2, 3}
    measured = problem.measure(segmentation.network("unet3d", 4, 4), "test")
    assert set(measured.row) == {f"{k} class {c}" for k in ("dice", "distance") for c in (1, 2, 3)}


def test_classes_that_are_nowhere(tmp_path):
    """A mask that is empty on both sides has Dice 1 and no surface."""
    write_simple(tmp_path, shape=(16, 16, 16), classes=2)
    problem = folder.Folder(tmp_path, 2, 16, classes=3)
    model = segmentation.network("unet", 1, 3)
    with cg.no_grad():
        model.head.bias.copy_(cg.tensor(np.array([0, 0, -100], np.float32)))
    row = problem.measure(model, "test").row
    assert row["dice class 2"] == 1 and np.isnan(row["distance class 2"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("none", [], "There is no folder"),
        ("empty", [], "Looked in 0 folders for SUBJECT/SUBJECT_t1.nii"),
        ("simple", ["--patch", "32"], "A patch must fit into every volume. Got size (32, 32, 32)"),
        ("simple", ["--classes", "2", "--patch", "16"], "Labels must be 0, 1. Got 2"),
        ("two", [], "At least 3 subjects are needed"),
        ("blank", ["--patch", "16"], "Labels must have two classes or more"),
        ("nan", ["--patch", "16"], "Voxels must be finite"),
    ],
)
def test_folders_that_do_not_fit(change, options, message, tmp_path, capsys):
    data = tmp_path / "data"
    if change == "empty":
        data.mkdir()
    elif change != "none":
        names = ["a", "b"] if change == "two" else ["a", "b", "c"]
        write_simple(data, names, (18, 20, 17), classes=1 if change == "blank" else 3)
    if change == "nan":
        for name in "abc":
            bad = np.full((18, 20, 17), np.nan, np.float32)
            nifti.write_volume(data / name / "image.nii.gz", bad, AFFINE)
    command = ["train", "tissue", "--model", "unet3d", "--data", str(data), *options]
    assert main([*command, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_options_of_folders_alone(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "tissue", "--patch", "16"])
    assert stop.value.code == 2 and "--patch is of volumes" in capsys.readouterr().err


def test_fit_gives_the_same_bits_for_any_threads():
    def weights(threads):
        cg.set_num_threads(threads)
        cg.manual_seed(0)
        model = segmentation.network("unet", 1, 4)
        dataset = tissue.SimulatedSlices(tissue.part("train", 2), 4)
        segmentation.fit(model, dataset, Settings(1, 2, 1e-3, 4))
        return b"".join(v.numpy(copy=True).tobytes() for v in model.state_dict().values())

    before = cg.get_num_threads()
    assert weights(1) == weights(2)
    cg.set_num_threads(before)
