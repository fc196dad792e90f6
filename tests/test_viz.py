"""Pictures: that they are small PNG files, that what they show lies where it should, and what is
refused."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import viz
from convgrad.viz import canvas, images

pytestmark = pytest.mark.cpu("draws on the host")

pytest.importorskip("matplotlib", reason="needs: pip install '.[demo]'")


def read(path):
    """Pixels (H, W, 3) of a picture, which must be a PNG file within the limit."""
    from PIL import Image

    assert path.stat().st_size <= canvas.BYTES
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share(pixels, colour):
    """The part of the pixels that have this colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels - rgb).max(2) <= 4).mean()


def history(epochs=3):
    return [
        {"epoch": e + 1, "loss": 1 / (e + 1), "accuracy": 0.5, "val_loss": 1.0, "seconds": 1.0}
        for e in range(epochs)
    ]


# ---- runs ----


def test_pictures_of_runs(tmp_path):
    viz.learning_curves(history(), tmp_path / "curves.png", "title")
    viz.confusion_matrix(np.eye(3, dtype=int) * 9, tmp_path / "matrix.png", ["a", "b", "c"])
    viz.ratios({"a": 2.0, "b": 0.5}, tmp_path / "ratios.png")
    for name in ("curves.png", "matrix.png", "ratios.png"):
        assert min(read(tmp_path / name).shape[:2]) > 200
    some = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val_dice": 0.5}]
    viz.learning_curves(some, tmp_path / "some.png")  # a plot each of the loss and of the Dice
    assert read(tmp_path / "some.png").shape[1] == read(tmp_path / "curves.png").shape[1]
    with pytest.raises(ValueError, match=r"\[learning_curves\] .*Got none"):
        viz.learning_curves([], tmp_path / "x.png")


def test_large_pictures_lose_sharpness_and_rare_colours_stay(tmp_path):
    figure = canvas.new_figure(6, 6)
    axes = figure.subplots()
    axes.imshow(np.random.default_rng(0).random((400, 400)), cmap="viridis")
    axes.axvspan(0, 20, color=canvas.VERMILION)
    canvas.write(figure, tmp_path / "large.png")
    pixels = read(tmp_path / "large.png")
    assert len(pixels) < 6 * canvas.DPI[0]
    assert 0.01 < share(pixels, canvas.VERMILION) < 0.1


@pytest.mark.quick
def test_titles_are_broken_evenly():
    assert canvas._wrapped("", 20) == []
    assert canvas._wrapped("one line", 20) == ["one line"]
    assert canvas._wrapped("two lines of about equal length", 29) == [
        "two lines of about",
        "equal length",
    ]


# ---- images ----


@pytest.mark.quick
def test_mosaic_puts_tiles_in_rows():
    tiles = np.arange(3)[:, None, None] + np.zeros((3, 2, 4))
    picture = images._mosaic(tiles, 2)
    assert picture.shape == (5, 9)
    assert (picture[:2, :4] == 0).all() and (picture[:2, 5:] == 1).all()
    assert (picture[3:, :4] == 2).all() and np.isnan(picture[3:, 5:]).all()
    assert np.isnan(picture[2]).all() and np.isnan(picture[:, 4]).all()
    assert [images._columns(n) for n in (1, 3, 16, 24, 32, 37)] == [1, 3, 4, 6, 8, 7]


@pytest.mark.quick
def test_boxes_are_centre_and_size_as_fractions():
    corner, extent = images._in_pixels(np.array([0.5, 0.25, 0.2, 0.5]), (10, 20))
    assert corner == (-0.5, 3.5) and extent == (10, 2)  # pixel i spans i - 0.5 .. i + 0.5
    a, b, none = np.array([0.5, 0.5, 0.2, 0.2]), np.array([0.5, 0.6, 0.2, 0.2]), np.full(4, np.nan)
    assert images._iou(a, b) == "IoU 0.33" and images._iou(none, none) == ""
    assert images._iou(none, a) == "missed" and images._iou(a, none) == "false alarm"


def test_filters_by_their_own_largest_weight(tmp_path):
    w = np.zeros((2, 1, 2, 2), np.float32)
    w[0, 0, 0, 0], w[1, 0, 0, 1], w[1, 0, 1, 1] = 5, -0.001, 0.001
    viz.filters(cg.tensor(w), tmp_path / "a.png", "two")
    pixels = read(tmp_path / "a.png")
    zeros = share(pixels, "#808080")
    assert zeros > 0.3 and share(pixels, "#000000") == pytest.approx(zeros / 5, rel=0.1)
    viz.filters(np.ones((3, 4, 5, 5)), tmp_path / "b.png")
    viz.filters(np.ones((3, 1, 3, 3, 3)), tmp_path / "c.png")
    for bad in (np.ones((3, 3)), np.ones((0, 1, 3, 3))):
        with pytest.raises(ValueError, match=r"\[filters\] weights must be .* Got \((3|0), "):
            viz.filters(bad, tmp_path / "x.png")
    w[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"\[filters\] weights must be finite. Got 1 of 8"):
        viz.filters(w, tmp_path / "x.png")


def test_feature_maps_on_one_scale(tmp_path):
    maps = np.zeros((2, 3, 6, 6), np.float32)
    maps[1, 2] = 1
    viz.feature_maps(cg.tensor(maps), tmp_path / "a.png", "maps", images=np.ones((2, 1, 8, 8)))
    pixels = read(tmp_path / "a.png")
    dark, bright = share(pixels, "#440154"), share(pixels, "#FDE725")  # viridis' ends
    assert 3 < dark / bright < 7  # 5 maps of 6 are dark
    viz.feature_maps(maps[0], tmp_path / "b.png")
    read(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"\[feature_maps\] activation must be .* Got \(3, 6\)"):
        viz.feature_maps(np.ones((3, 6)), tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"images must be of shape \(2, H, W\).* Got \(3, 8, 8\)"):
        viz.feature_maps(maps, tmp_path / "x.png", images=np.ones((3, 8, 8)))


def test_overlays_colour_classes_but_not_the_background(tmp_path):
    image = np.zeros((2, 1, 16, 16), np.float32)
    mask = np.zeros((2, 16, 16), np.uint8)
    mask[:, :, 8:] = 2
    names = ["background", "first", "second"]
    viz.overlays(image, cg.tensor(mask), tmp_path / "a.png", names, "title", truths=mask * 0)
    pixels = read(tmp_path / "a.png")
    mixed = "#" + "".join(f"{round(int(canvas.COLOURS[1][i : i + 2], 16) * images.SHADE):02x}"
                          for i in (1, 3, 5))  # fmt: skip
    # Half of the last of three columns; the picture is more than its images.
    assert 0.1 < share(pixels, mixed) < 0.17
    assert 0.5 < share(pixels, "#000000") < 0.84
    viz.overlays(image, {"one": mask, "other": mask}, tmp_path / "b.png", names)
    assert 1.5 * share(pixels, mixed) < share(read(tmp_path / "b.png"), mixed)


def test_overlays_refuse_what_is_no_segmentation(tmp_path):
    image, mask, path = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), int), tmp_path / "x.png"
    for message, call in {
        r"images must be of shape \(N, H, W\)": (image[0], mask, path, ["a", "b"]),
        r"'prediction' must be whole numbers .* Got int64 \(8, 8\)": (image, mask[0], path, "ab"),
        r"Got float64 \(2, 8, 8\)": (image, image, path, "ab"),
        r"'prediction' must be classes in 0..1. Got 2 to 2": (image, mask + 2, path, "ab"),
        r"classes must be 2 to 8 names. Got 1": (image, mask, path, "a"),
        r"images must be finite. Got 128 of 128": (image * np.nan, mask, path, "ab"),
    }.items():
        with pytest.raises(ValueError, match=r"\[overlays\] .*" + message):
            viz.overlays(*call)
    assert not path.exists()


def test_boxes_are_drawn_where_there_are_any(tmp_path):
    image = np.zeros((3, 20, 20))
    some, none = np.array([[0.5, 0.5, 0.4, 0.4]] * 3), np.full((3, 4), np.nan)
    viz.boxes(image, cg.tensor(some), none, tmp_path / "a.png", "title")
    viz.boxes(image, none, None, tmp_path / "b.png")
    first, second = read(tmp_path / "a.png"), read(tmp_path / "b.png")
    legend = share(second, canvas.VERMILION)
    assert share(first, canvas.VERMILION) > 1.5 * legend > 0
    assert share(first, canvas.GREEN) > 0 == share(second, canvas.GREEN)
    with pytest.raises(ValueError, match=r"\[boxes\] true must be of shape \(3, 4\). Got \(2, 4\)"):
        viz.boxes(image, some, some[:2], tmp_path / "x.png")


def test_heat_maps_are_stretched_over_their_images(tmp_path):
    image, heat = np.zeros((1, 32, 16)), np.zeros((1, 4, 2))
    heat[0, :2] = 1
    viz.heat_maps(image, heat, np.array([[0.75, 0.5]]), tmp_path / "a.png")
    pixels = read(tmp_path / "a.png")
    dark = (pixels < 200).all(2)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    inside = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = len(inside)
    assert height == pytest.approx(2 * inside.shape[1], rel=0.05)
    red = inside[..., 0].mean(1)  # high where inferno is bright
    assert red[: int(0.35 * height)].min() > 100 > red[int(0.65 * height) :].max()
    cross = np.flatnonzero((inside > 200).all(2).any(1))
    assert cross.mean() == pytest.approx(0.75 * height, abs=2)
    with pytest.raises(ValueError, match=r"\[heat_maps\] maps must be .*\(1, H, W\).* Got \(2, 4"):
        viz.heat_maps(image, np.zeros((2, 4, 2)), None, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"points must be of shape \(1, 2\). Got \(1, 4\)"):
        viz.heat_maps(image, heat, np.zeros((1, 4)), tmp_path / "x.png")
