"""Augmentation: each change by itself, labels that move along, draws by (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import pytest

from convgrad import data
from convgrad.data import Augmentation, AugmentedDataset

pytestmark = pytest.mark.cpu("of the host's side: augmentation of NumPy arrays")

pytest.importorskip("scipy", reason="needs: pip install '.[medical]'")


def disc(shape=(32, 40), centre=(14, 22), radius=6):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    away = np.sqrt(((grid - np.array(centre).reshape(-1, *[1] * len(shape))) ** 2).sum(0))
    return np.stack([away, -away]).astype(np.float32), (away < radius).astype(np.uint8)


def drawn(image, label, seed=0, **amounts):
    return Augmentation(**amounts)(image, label, np.random.default_rng(seed))


def centre_of(label):
    return np.argwhere(label).mean(0)


def test_nothing_changes_without_an_amount():
    image, label = disc()
    got, its_label = drawn(image, label)
    np.testing.assert_array_equal(got, image)
    np.testing.assert_array_equal(its_label, label)


@pytest.mark.parametrize("shape", [(32, 40), (20, 24, 22)])
@pytest.mark.parametrize("amounts", [{"degrees": 30}, {"shift": 4}, {"elastic": 2, "spacing": 10}])
def test_labels_move_with_the_image(shape, amounts):
    image, label = disc(shape, [n // 2 - 2 for n in shape], 5)
    got, its_label = drawn(image, label, seed=1, **amounts)
    assert got.shape == image.shape and got.dtype == np.float32 and its_label.dtype == np.uint8
    assert (its_label != label).any()
    # The image says how far from the disc's centre each pixel was; rounding moves it by half one.
    assert got[0][its_label == 1].max() < 6 and got[0][its_label == 0].min() > 4
    np.testing.assert_allclose(got[0], -got[1], atol=1e-5)


def test_rotation_keeps_the_distance_from_the_middle_of_the_image():
    image, label = disc((33, 33), (16, 24), 4)
    _, turned = drawn(image, label, seed=3, degrees=90)
    away = centre_of(turned) - 16
    assert np.hypot(*away) == pytest.approx(8, abs=0.3) and abs(away[0]) > 1


def test_scale_changes_the_area():
    image, label = disc((64, 64), (31, 31), 12)
    areas = [drawn(image, label, seed, scale=0.2)[1].sum() / label.sum() for seed in range(20)]
    assert 0.65 < min(areas) < 0.85 and 1.15 < max(areas) < 1.5  # exp(-+0.4) at most


def test_shift_is_at_most_what_was_asked_for():
    image, label = disc()
    moves = [
        centre_of(drawn(image, label, seed, shift=3)[1]) - centre_of(label) for seed in range(20)
    ]
    assert 2 < np.abs(moves).max() <= 3.3


def test_flips_are_of_the_axes_named_in_half_of_the_draws():
    image, label = disc()
    flipped = 0
    for seed in range(40):
        got, its_label = drawn(image, label, seed, flip=(1,))
        if (its_label != label).any():
            flipped += 1
            np.testing.assert_array_equal(got, image[:, :, ::-1])
            np.testing.assert_array_equal(its_label, label[:, ::-1])
    assert 10 < flipped < 30


def test_intensity_changes_the_image_alone():
    image, label = disc()
    got, its_label = drawn(image, label, gain=0.3, offset=0.5)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(its_label, label)
    gain, offset = np.polyfit(image.ravel(), got.ravel(), 1)
    assert 0.74 < gain < 1.35 and gain != 1 and 0 < abs(offset) <= 0.5
    np.testing.assert_allclose(got, gain * image + offset, atol=1e-4)


def test_an_image_without_a_label():
    image, _ = disc()
    got, nothing = drawn(image, None, degrees=10)
    assert nothing is None and (got != image).any()


class Source(data.Dataset):
    def __init__(self, target):
        self.target, self.epoch = target, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return disc()[0], self.target


def test_draws_follow_from_seed_epoch_and_index():
    label = disc()[1]

    def images(seed, epoch, order=(0, 1, 2), workers=0):
        augmented = AugmentedDataset(Source(label), Augmentation(degrees=20, shift=2), seed)
        loader = data.DataLoader(augmented, 2, sampler=order, num_workers=workers)
        loader.set_epoch(epoch)
        batches = list(loader)
        assert augmented.source.epoch == epoch
        return np.concatenate([x.numpy() for x, _ in batches])

    first = images(0, 5)
    np.testing.assert_array_equal(first, images(0, 5, workers=2))
    np.testing.assert_array_equal(first, images(0, 5, order=(2, 1, 0))[::-1])
    for other in (images(1, 5), images(0, 6), first[::-1]):
        assert (first != other).any()


def test_a_class_stays_as_it_is():
    augmented = AugmentedDataset(Source(3), Augmentation(shift=2))
    image, target = augmented[0]
    assert image.shape == (2, 32, 40) and target.shape == () and target.item() == 3


def test_amounts_and_shapes_that_are_wrong():
    with pytest.raises(ValueError, match=r"\[Augmentation\] degrees must be at least 0. Got -1"):
        Augmentation(degrees=-1)
    with pytest.raises(ValueError, match=r"spacing must be at least 1. Got 0"):
        Augmentation(spacing=0)
    image, label = disc()
    with pytest.raises(ValueError, match=r"Got \(2, 32, 40\) and \(31, 40\)"):
        drawn(image, label[1:], degrees=1)
