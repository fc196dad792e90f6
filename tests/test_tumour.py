"""Tumours by patches: crops equal to patches, two phases, regions, thresholds, the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import models, train
from convgrad.cli.main import main
from convgrad.models.havaei import MARGIN
from convgrad.tasks import lesions, thresholds, tumour, tumour_slices
from convgrad.tasks.tumour_slices import Slices

pytestmark = pytest.mark.cpu("trains networks")

WIDTH = 0.05  # 3 local maps, 8 wide ones
RNG = np.random.default_rng


def stub(count=4, size=(20, 24), margin=MARGIN, channels=4):
    """Noise, in which each slice's classes shine in a channel of their own."""
    rng = RNG(0)
    labels = np.zeros((count, *size), np.uint8)
    labels[:, 4:16, 6:18], labels[:, 6:14, 8:16], labels[:, 8:12, 10:14] = 3, 2, 1
    images = rng.standard_normal((count, channels, *size)).astype(np.float32)
    for c in (1, 2, 3):
        images[:, c] += 3 * (labels == c)
    around = ((0, 0), (0, 0), (margin, margin), (margin, margin))
    return Slices(np.pad(images, around, mode="reflect"), labels)


def net(model="twopath", seed=0):
    cg.manual_seed(seed)
    return tumour.network(model, WIDTH)


# ---- patches and whole slices ----


@pytest.mark.parametrize("model", tumour.MODELS)
def test_every_pixel_of_a_slice_is_what_its_patch_gives(model):
    """To rounding: for other sizes another algorithm may add in another order."""
    margin = tumour.margin_of(model)
    slices = stub(1, (5, 6), margin=margin)
    network = net(model)
    whole = train.predict(network, slices.images)[0]
    side = 2 * margin + 1
    patches = [slices.images[0, :, y : y + side, x : x + side] for y in range(5) for x in range(6)]
    each = train.predict(network, np.stack(patches))[:, :, 0, 0]
    np.testing.assert_allclose(each, whole.reshape(4, -1).T, rtol=1e-5, atol=1e-6)
    assert np.abs(whole).max() > 0.1
    np.testing.assert_array_equal(tumour.segment(network, slices.images)[0], whole.argmax(0))


@pytest.mark.parametrize("model", tumour.MODELS)
def test_compare_patches(model):
    margin = tumour.margin_of(model)
    measured = tumour.compare_patches(net(model), stub(1, margin=margin).images[0], margin, 8)
    assert measured["speedup"] > 1 and measured["difference"] < 1e-5
    ratio = measured["patches_seconds"] / measured["slice_seconds"]
    assert measured["speedup"] == pytest.approx(ratio)


def test_the_gradient_of_a_crop_is_that_of_its_patches():
    """Each patch weighted by its class, as if classes were drawn equally often."""
    slices = stub(1, (3, 4))
    target = np.array([[0, 0, 0, 0], [0, 1, 1, 3], [0, 0, 3, 3]])
    network = net()
    loss = tumour.balanced_cross_entropy(network(cg.tensor(slices.images)), cg.tensor(target[None]))
    loss.backward()
    crop = {name: p.grad.numpy(copy=True) for name, p in network.named_parameters()}
    network.zero_grad()
    side = 2 * MARGIN + 1
    patches = [slices.images[0, :, y : y + side, x : x + side] for y in range(3) for x in range(4)]
    logits = network(cg.tensor(np.stack(patches)))[:, :, 0, 0]
    losses = F.cross_entropy(logits, cg.tensor(target.ravel()), reduction="none")
    share = np.array([1 / 7, 1 / 2, 0, 1 / 3], np.float32)[target.ravel()] / 3  # three classes
    (losses * cg.tensor(share)).sum().backward()
    for name, p in network.named_parameters():
        expected = p.grad.numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(crop[name], expected, atol=2e-5 * scale, err_msg=name)


def test_a_cascades_second_network_sees_images_and_the_first_ones_probabilities():
    slices = stub(2, margin=2 * MARGIN)
    cascade = net("inputcascade")
    seen = tumour.seen(cascade, "InputCascadeCNN", slices)
    assert seen.images.shape == (2, 8, 52, 56) and seen.margin == MARGIN
    inner = slices.images[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    np.testing.assert_array_equal(seen.images[:, :4], inner)
    np.testing.assert_allclose(seen.images[:, 4:].sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        train.predict(cascade.second, seen.images), train.predict(cascade, slices.images)
    )
    first = tumour.seen(cascade, "TwoPathCNN", slices)
    np.testing.assert_array_equal(first.images, inner)
    assert list(tumour.parts(cascade)) == ["TwoPathCNN", "InputCascadeCNN"]
    assert list(tumour.parts(cascade.first)) == ["TwoPathCNN"]


# ---- crops ----


def test_crops_have_each_class_equally_often_in_the_middle():
    slices = stub(size=(30, 34))
    crops = tumour.crops(slices, 40, seed=1, balanced=True)
    images, targets = crops.batch(range(40))
    assert images.shape == (40, 4, 48, 48) and targets.shape == (40, 16, 16)
    middle = targets.numpy()[:, 8, 8]
    np.testing.assert_array_equal(np.bincount(middle), [10, 10, 10, 10])
    common = tumour.crops(slices, 400, seed=1, balanced=False).batch(range(400))[1].numpy()
    share = slices.labels[:, 8:23, 8:27]  # where middles can lie
    np.testing.assert_allclose(
        np.bincount(common[:, 8, 8], minlength=4) / 400,
        np.bincount(share.ravel(), minlength=4) / share.size,
        atol=0.08,
    )


def test_balanced_loss_is_the_mean_over_classes_of_their_means():
    rng = RNG(0)
    logits = rng.standard_normal((2, 4, 3, 3)).astype(np.float32)
    target = np.array([0, 0, 0, 0, 0, 2, 0, 0, 3] * 2).reshape(2, 3, 3)
    z = logits.astype(np.float64)
    chosen = np.take_along_axis(z, target[:, None], 1)[:, 0]
    each = np.log(np.exp(z).sum(1)) - chosen
    expected = np.mean([each[target == c].mean() for c in (0, 2, 3)])
    got = tumour.balanced_cross_entropy(cg.tensor(logits), cg.tensor(target)).item()
    assert got == pytest.approx(expected, rel=1e-6)


# ---- two phases ----

SHORT = tumour.Settings(epochs=(2, 2), steps=4, batch_size=4, warm_up=1)


def test_phase_1_changes_all_layers_and_phase_2_only_the_last():
    slices, network = stub(), net()
    before = {name: p.detach().numpy(copy=True) for name, p in network.named_parameters()}
    rows = tumour.fit(network, slices, slices, 1, SHORT)
    middle = {name: p.detach().numpy(copy=True) for name, p in network.named_parameters()}
    rows += tumour.fit(network, slices, slices, 2, SHORT)
    for name, p in network.named_parameters():
        assert (middle[name] != before[name]).any(), name
        assert (p.numpy() != middle[name]).any() == name.startswith("head."), name
        assert not p.requires_grad
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2]
    assert {"loss", "val_loss", "val_complete", "val_core"} <= rows[0].keys()
    assert rows[1]["val_loss"] < rows[0]["loss"]  # it learns


def test_phase_2_expects_classes_as_common_as_they_are():
    """Bayes: probabilities p for equal priors become p q / sum of p q for priors q."""
    labels = np.repeat(np.array([0, 1, 2, 3], np.uint8), [90, 5, 3, 2])
    p = np.array([0.1, 0.2, 0.3, 0.4])
    logits = np.log(p) + tumour.log_parts(labels)
    q = np.array([0.9, 0.05, 0.03, 0.02])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), p * q / (p @ q), rtol=1e-5)
    assert np.isfinite(tumour.log_parts(labels[:95])).all()


def test_a_run_follows_from_its_seed():
    def weights(seed):
        network = net()
        tumour.fit(network, stub(), stub(1), 1, SHORT, seed)
        return network.head.weight.numpy()

    first = weights(0)
    np.testing.assert_array_equal(first, weights(0))
    assert (first != weights(1)).any()


# ---- regions, thresholds, slices ----


def test_regions_of_hand_made_masks():
    target = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    predicted = np.array([[0, 1, 2, 3], [0, 2, 3, 0]])
    got = tumour.region_dice(predicted, target)
    assert got == pytest.approx({"complete": 2 * 5 / 11, "core": 2 * 3 / 7, "enhancing": 2 * 1 / 4})
    healthy = np.zeros((2, 2))
    assert tumour.region_dice(healthy, healthy) == {"complete": 1, "core": 1, "enhancing": 1}
    with pytest.raises(ValueError, match=r"\[dice\] .* one shape. Got \(2, 4\) and \(2, 2\)"):
        tumour.region_dice(predicted, healthy)


def test_thresholds_find_bright_patches():
    slices = stub(3)
    t1, t1c, t2, flair = slices.images.swapaxes(0, 1) * 0
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    flair[inner] = 4 * (slices.labels > 0)
    t2[inner] = 7 * (slices.labels == 1)
    t1c[inner] = 4 * (slices.labels == 2)
    clear = Slices(np.stack([t1, t1c, t2, flair], 1), slices.labels)
    found = thresholds.Thresholds().fit(clear)
    dice = tumour.region_dice(found.segment(clear), slices.labels)
    assert min(dice.values()) > 0.8
    assert found.sigma in found.SIGMAS and len(found.levels) == 3


def test_only_the_largest_patch_is_kept():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 0, :2] = masks[0, 3:, 3:] = masks[1, 2, 2] = True
    kept = thresholds._largest(masks)
    np.testing.assert_array_equal(kept.sum((1, 2)), [6, 1])
    assert not kept[0, 0].any()


def test_simulated_slices_are_standardised_and_mirrored():
    pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")
    source = tumour_slices.Simulated(0, 6, MARGIN)
    slices = source.training()
    inner = slices.images[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert inner.shape == (6, 4, *lesions.shape()) and slices.margin == MARGIN
    np.testing.assert_allclose(inner.mean((2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(inner.std((2, 3)), 1, atol=1e-4)
    np.testing.assert_array_equal(slices.images[..., MARGIN - 1], slices.images[..., MARGIN + 1])
    assert (source.training(1).images != slices.images).any()
    expected = lesions.slices(0, "train", range(6)).labels
    np.testing.assert_array_equal(slices.labels, expected)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"is one of twopath, inputcascade. Got 'unet'"):
        tumour.network("unet")
    with pytest.raises(ValueError, match=r"\[TwoPathCNN\] width must be > 0. Got -1"):
        models.TwoPathCNN(width=-1)
    with pytest.raises(ValueError, match=r"Got size \(48, 48\) for a volume of \(44, 46\)"):
        tumour.crops(stub(size=(12, 14)), 1, 0, balanced=True)
    with pytest.raises(ValueError, match=r"T1, T1c, T2, FLAIR.*Got 1 images"):
        tumour_slices.of_images(np.zeros((1, 20, 20, 2)), MARGIN)
    with pytest.raises(ValueError, match=r"larger than the 16 pixels .* Got \(16, 20\)"):
        tumour_slices.of_images(np.zeros((4, 16, 20, 2)), MARGIN)


# ---- the command line ----

TINY = [
    *("train", "tumour", "--width", WIDTH, "--epochs", 1, "--output-epochs", 1),
    *("--steps", 2, "--batch-size", 4),
]  # fmt: skip


def convgrad(capsys, *args):
    try:
        code = main([str(a) for a in args])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def write_subjects(folder, count=3):
    """Subjects of three slices, noise with a tumour in the middle one, in BraTS's layout."""
    nibabel = pytest.importorskip("nibabel", reason="needs: pip install '.[medical]'")
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    affine[:3, 3] = 90, 126, -72
    for number in range(count):
        rng, name = RNG(number), f"BraTS_{number}"
        (folder / name).mkdir(parents=True)
        seg = np.zeros((34, 36, 3), np.uint8)
        seg[10:24, 10:24, 1], seg[12:20, 12:20, 1], seg[14:18, 14:18, 1] = 2, 4, 1
        for i, kind in enumerate(("t1", "t1ce", "t2", "flair")):
            image = rng.uniform(50, 90, seg.shape) + 60 * (seg > 0) * (i % 2)
            file = folder / name / f"{name}_{kind}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), file)
        nibabel.save(nibabel.Nifti1Image(seg, affine), folder / name / f"{name}_seg.nii.gz")
    return affine


def test_a_folder_of_subjects_from_training_to_prediction(capsys, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="needs: pip install '.[medical]'")
    affine = write_subjects(tmp_path / "data")
    run = tmp_path / "run"
    code, out, err = convgrad(capsys, *TINY, "--data", tmp_path / "data", "--out", run)
    assert code == 0, err
    files = {path.name for path in run.iterdir()}
    assert files == {
        *("config.json", "metrics.jsonl", "model.safetensors", "overlays.png", "predictions"),
        *("learning_curves_TwoPathCNN.png", "filters_TwoPathCNN.png"),
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["epochs"] == [1, 1] and config["width"] == WIDTH and config["task"] == "tumour"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("phase") for row in rows[:2]] == [1, 2]
    assert [row.get("test") for row in rows[2:5]] == [
        *("thresholds", "TwoPathCNN phase 1", "TwoPathCNN phase 2")
    ]
    assert rows[5]["dense_speedup"] > 1
    (saved,) = (run / "predictions").iterdir()
    volume = nibabel.load(saved)
    np.testing.assert_array_equal(volume.affine, affine)
    assert volume.shape == (34, 36, 3) and set(np.unique(volume.dataobj)) <= {0, 1, 2, 4}
    # The same network says the same later, and of the same files.
    table = [line for line in out if line.startswith("TwoPathCNN phase 2")]
    code, again, _ = convgrad(capsys, "evaluate", run)
    assert code == 0 and again[-1].split()[-3:] == table[0].split()[-3:]
    name = saved.name.removesuffix(".nii.gz")
    images = [
        tmp_path / "data" / name / f"{name}_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair")
    ]
    file = tmp_path / "seg.nii.gz"
    code, out, err = convgrad(capsys, "predict", run, *images, "--out", file)
    assert code == 0 and out[-1] == str(file), err
    np.testing.assert_array_equal(nibabel.load(file).get_fdata(), volume.get_fdata())
    for args, message in (
        (["predict", run, *images], "give --out FILE.nii.gz"),
        (["predict", run, *images[:3], "--out", file], "Got 3 images"),
        ([*TINY, "--data", tmp_path / "none", "--out", tmp_path / "a"], "There is no folder"),
        (["evaluate", run, "--data", tmp_path], "SUBJECT_t1ce"),
    ):
        code, _, err = convgrad(capsys, *args)
        assert code == 1 and message in err and "Traceback" not in err, err


def test_subjects_without_a_tumour(capsys, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="needs: pip install '.[medical]'")
    affine = write_subjects(tmp_path / "data")
    for file in (tmp_path / "data").glob("*/*_seg.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((34, 36, 3), np.uint8), affine), file)
    code, _, err = convgrad(capsys, *TINY, "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert code == 1 and "must have a tumour. Got none" in err


def test_a_cascade_on_simulated_slices(capsys, tmp_path, monkeypatch):
    pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")
    monkeypatch.setattr(tumour_slices, "VALIDATION", 2)
    monkeypatch.setattr(tumour_slices, "TEST", 2)
    run = tmp_path / "run"
    args = [*TINY, "--model", "inputcascade", "--slices", 4, "--out", run]
    code, out, err = convgrad(capsys, *args)
    assert code == 0, err
    methods = [line.split("  ")[0] for line in out if line.startswith(("Two", "Input"))]
    assert [method for method in methods if "," not in method] == [
        f"{name} phase {phase}" for name in ("TwoPathCNN", "InputCascadeCNN") for phase in (1, 2)
    ]
    assert (run / "overlays.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    code, _, err = convgrad(capsys, "predict", run, "t1.nii.gz", "--out", tmp_path / "x.nii.gz")
    assert code == 1 and "trained on simulated slices" in err


@pytest.mark.quick
def test_help_says_what_is_simulated(capsys):
    code, out, _ = convgrad(capsys, "train", "tumour", "--help")
    text = " ".join(" ".join(out).split())
    assert code == 0
    for words in ("Real:", "Simulated:", "within-template", "nothing clinical", "BraTS"):
        assert words in text
