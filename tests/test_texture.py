"""The texture task: its patches, its split, and a run from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convgrad.cli.main import main
from convgrad.tasks import texture

pytestmark = pytest.mark.cpu("of the host's side: textures in NumPy")

skimage = pytest.importorskip("skimage", reason="needs: pip install '.[medical]'")


def test_split_by_place():
    splits = texture.load()
    sizes = [len(part.labels) for part in (splits.train, splits.validation, splits.test())]
    assert sizes == [3645, 729, 1302]
    # Train and validation in the left 240 columns, rows apart; tests begin 32 columns further on.
    assert texture.TRAIN[0].stop + 32 <= texture.VALIDATION[0].start
    assert texture.TRAIN[1].stop + 32 <= texture.TEST[1].start
    for part in (splits.train, splits.test()):
        assert part.images.dtype == np.float32 and part.images.shape[1:] == (1, 32, 32)
        np.testing.assert_array_equal(np.unique(part.labels), [0, 1, 2])
        assert np.abs(part.images.mean((1, 2, 3))).max() < 1e-5
        np.testing.assert_allclose(part.images.std((1, 2, 3)), 1, rtol=1e-4)


def test_patches_are_where_they_should_be():
    from skimage import data

    brick = data.brick().astype(np.float32)
    patch = brick[8:40, 16:48]
    got = texture.load().train.images[1 * 27 + 2, 0]  # row 1, column 2 of a grid 8 apart
    np.testing.assert_allclose(got, (patch - patch.mean()) / patch.std(), rtol=1e-3, atol=1e-4)


def test_trains_from_the_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "texture", "--epochs", "4", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["training_images"] == 3645
    accuracy = float(capsys.readouterr().out.split()[-1])
    assert accuracy > 0.97
    assert main(["evaluate", str(run)]) == 0
    assert f"{accuracy:.4f}" in capsys.readouterr().out
