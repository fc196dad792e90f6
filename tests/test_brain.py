"""The brain template: tissues, blocks of slices that keep their distance, and simulated scans."""

from __future__ import annotations

import numpy as np
import pytest

from convgrad.tasks import brain

pytestmark = pytest.mark.large("trains networks")

nilearn = pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")


def test_tissues_of_half_the_template():
    whole = brain.load()
    assert whole.image.shape == whole.tissue.shape == (96, 233, 189)
    assert whole.image.dtype == np.float32 and whole.image.max() <= 1
    # Half of the whole brain's counts, less the planes in the middle, where much of the CSF is.
    counts = np.bincount(whole.tissue.ravel())
    np.testing.assert_allclose(counts[1:] / [156_313, 1_091_139, 635_537], 0.5, rtol=0.2)
    means = [whole.image[whole.tissue == c].mean() for c in range(4)]
    assert means == sorted(means)
    assert brain.load(2).image.shape == (49, 117, 95)


@pytest.mark.parametrize("millimetres", [1, 2])
def test_blocks_keep_their_distance(millimetres):
    found = brain.blocks(millimetres)
    for a, b, gap in (
        ("train", "test", brain.GAP),
        ("validation", "test", brain.GAP),
        ("train", "validation", brain.VALIDATION_GAP),
    ):
        apart = np.abs(found[a][:, None] - found[b]).min() * millimetres
        assert apart > gap - millimetres, (a, b)
    assert min(map(min, found.values())) >= brain.FIRST // millimetres
    assert max(map(max, found.values())) < brain.END // millimetres


def test_a_scan_is_the_image_under_field_and_noise():
    image = np.full((40, 50, 30), 0.5, np.float32)
    scan = brain.corrupt(image, np.random.default_rng(0))
    assert scan.dtype == np.float32 and (scan >= 0).all()
    noise = np.diff(scan, axis=0).std() / np.sqrt(2)
    assert noise == pytest.approx(brain.NOISE, rel=0.1)
    # Means over blocks of 5x5x5 show the field: smooth, within its bound, far from constant.
    means = scan.reshape(8, 5, 10, 5, 6, 5).mean((1, 3, 5)) / 0.5
    assert np.abs(means - 1).max() < brain.BIAS + 0.08 and np.ptp(means) > 0.1
    again = brain.corrupt(image, np.random.default_rng(0))
    np.testing.assert_array_equal(scan, again)


def test_noise_without_signal_is_rayleigh():
    scan = brain.corrupt(np.zeros((60, 60), np.float32), np.random.default_rng(1))
    assert scan.mean() == pytest.approx(brain.NOISE * np.sqrt(np.pi / 2), rel=0.05)
