"""Simulated lesions: what is drawn, where, and that it is drawn again the same."""

from __future__ import annotations

import numpy as np
import pytest

from convgrad.tasks import brain, lesions

pytestmark = pytest.mark.cpu("of the host's side: slices in NumPy")

ndimage = pytest.importorskip("scipy.ndimage", reason="needs: pip install '.[medical]'")
nilearn = pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")


@pytest.fixture(scope="module", params=[2, 1])
def drawn(request):
    return lesions.slices(0, "train", range(24), millimetres=request.param)


def test_every_second_slice_has_a_lesion(drawn):
    h, w = drawn.labels.shape[1:]
    assert (h, w) in (lesions.shape(1), lesions.shape(2)) and lesions.shape() == (48, 112)
    assert drawn.images.shape == (24, 4, h, w) and drawn.images.dtype == np.float32
    has = drawn.labels.any((1, 2))
    np.testing.assert_array_equal(has, np.arange(24) % 2 == 1)
    np.testing.assert_array_equal(drawn.opacities > 0, has)
    low, high = lesions.OPACITY
    assert low <= drawn.opacities[has].min() and drawn.opacities[has].max() <= high
    assert np.ptp(drawn.opacities[has]) > 0.1


def test_core_lies_in_the_rim_and_the_rim_in_edema(drawn):
    outside = drawn.labels.shape[1:]
    for labels in drawn.labels[1::2]:
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        core, tumour, whole = labels == 1, (labels == 1) | (labels == 2), labels > 0
        assert core.sum() < tumour.sum() < whole.sum() < 0.2 * np.prod(outside)
        # Where the brain ends, a region may end too: what is next to a core is rim or no lesion.
        beside_core = ndimage.binary_dilation(core) & ~core
        assert (labels[beside_core] != 3).all()


def test_boxes_touch_the_lesion_on_all_sides(drawn):
    h, w = drawn.labels.shape[1:]
    for labels, box in zip(drawn.labels, drawn.boxes):
        if not labels.any():
            assert not box.any()
            continue
        y, x, height, width = box * [h, w, h, w]
        rows = slice(round(y - height / 2), round(y + height / 2))
        columns = slice(round(x - width / 2), round(x + width / 2))
        inside = labels[rows, columns] > 0
        assert inside.sum() == (labels > 0).sum()
        assert inside[0].any() and inside[-1].any()
        assert inside[:, 0].any() and inside[:, -1].any()


def test_opacity_blends_the_intensities(monkeypatch):
    monkeypatch.setattr(brain, "corrupt", lambda image, rng: image)
    sick = lesions.draw(5, "train", 3)
    core = sick.labels == 1
    position = int(sick.positions) - brain.FIRST
    healthy = lesions._anatomy(2)[0][position]
    expected = (1 - sick.opacities) * healthy + sick.opacities * lesions.INTENSITIES[
        :, 3, None, None
    ]
    np.testing.assert_allclose(sick.images[:, core], expected[:, core], rtol=1e-5)
    np.testing.assert_array_equal(sick.images[:, sick.labels == 0], healthy[:, sick.labels == 0])


def test_a_slice_follows_from_seed_split_and_index():
    some = lesions.slices(3, "train", range(4, 8))
    for part, again in zip(some, lesions.draw(3, "train", 6)):
        np.testing.assert_array_equal(part[2], again)
    other = [lesions.draw(4, "train", 6), lesions.draw(3, "validation", 6)]
    assert all((o.images != some.images[2]).any() for o in other)
    # The test slices are the same for every seed.
    np.testing.assert_array_equal(
        lesions.draw(0, "test", 9).images, lesions.draw(1, "test", 9).images
    )
    assert lesions.draw(0, "train", 6, lesion=True).labels.any()
    assert not lesions.draw(0, "train", 7, lesion=False).labels.any()


def test_splits_never_share_a_slice_of_the_template():
    seen = {
        split: {int(lesions.draw(0, split, i).positions) for i in range(0, 120, 2)}
        for split in lesions.SPLITS
    }
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not seen[a] & seen[b]
    assert all(found <= set(brain.blocks()[split]) for split, found in seen.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "all", 0), "[draw] split must be one of train, validation, test. Got 'all'."),
        ((0, "train", -1), "[draw] index must be 0 or more. Got -1."),
        ((0, "train", 0, None, 3), "[draw] millimetres must be 1 or 2. Got 3."),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError) as error:
        lesions.draw(*arguments)
    assert str(error.value) == message
