"""Segmentation of your own volumes: a folder of subjects with images and labels in NIfTI files.

See :mod:`convgrad.data.nifti` for the layouts. Subjects are split whole: none is trained on and
tested on. Each channel is standardised over its voxels that are not 0; labels keep their grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convgrad import data, metrics
from convgrad.data import nifti
from convgrad.tasks import segmentation
from convgrad.tasks.segmentation import Measured

__all__ = ["Folder", "predict_volume"]

PICTURES = 6  # slices shown of the test subjects


class Folder:
    """A folder's subjects to train on, to validate by and to test on.

    Args:
        path: the folder.
        spatial: 2 for slices of the third axis, 3 for volumes.
        patch: the length of a patch's sides, in pixels or voxels.
        seed: of the split.
        classes: their number; what the labels of the training subjects need if left out.

    Attributes:
        classes: their names. channels: of the images.

    FileNotFoundError and ValueError as in :mod:`convgrad.data.nifti`.
    """

    def __init__(
        self, path: Path, spatial: int, patch: int, seed: int = 0, classes: int | None = None
    ) -> None:
        self.parts = nifti.split_subjects(nifti.find_subjects(path), seed)
        self.patch = (patch,) * spatial
        self.train = self._read("train", classes)
        if classes is None:
            classes = 1 + max(int(case.label.max()) for case in self.train)
        if classes < 2:
            raise ValueError(
                "[folder] Labels must have two classes or more. Got only 0 in the "
                f"{len(self.train)} training subjects of '{path}'."
            )
        self.classes = ("background", *(f"class {c}" for c in range(1, classes)))
        self.channels = len(self.train[0].images)

    def _read(self, name: str, classes: int | None) -> list[nifti.Case]:
        cases = [nifti.read_case(subject, classes) for subject in self.parts[name]]
        return [case._replace(images=nifti.standardise(case.images)) for case in cases]

    def training_set(self, draws: int, seed: int = 0) -> data.RandomPatches:
        """Patches of the training subjects, each class equally often at their centres.

        ValueError for a patch larger than a volume.
        """
        images, labels = [c.images for c in self.train], [c.label for c in self.train]
        if len(self.patch) == 2:
            images = [image[..., z] for image in images for z in range(image.shape[3])]
            labels = [label[..., z] for label in labels for z in range(label.shape[2])]
        return data.RandomPatches(images, labels, self.patch, draws, seed, balanced=True)

    def measure(self, model: Any, name: str) -> Measured:
        """Of the subjects to validate by or to test on: the mean over them of each class's Dice
        (1 for one that is neither there nor predicted) and surface distance in mm (without those
        where a mask is empty; NaN if there are no others)."""
        cases = self._read(name, len(self.classes))
        predicted = [predict_volume(model, case.images, self.patch) for case in cases]
        row = {}
        for c, label in list(enumerate(self.classes))[1:]:
            pairs = [(p == c, case.label == c, case.affine) for p, case in zip(predicted, cases)]
            row[f"dice {label}"] = float(np.mean([metrics.dice(p, r) for p, r, _ in pairs]))
            distances = [metrics.assd(p, r, _spacing(affine)) for p, r, affine in pairs]
            found = [d for d in distances if d == d]
            row[f"distance {label}"] = float(np.mean(found)) if found else float("nan")
        shown = [_most_labelled(case.label) for case in cases[:PICTURES]]
        return Measured(
            row,
            [case.images[0, :, :, z] for case, z in zip(cases, shown)],
            [p[..., z] for p, z in zip(predicted, shown)],
            [case.label[..., z] for case, z in zip(cases, shown)],
        )


def predict_volume(model: Any, images: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """The classes (X, Y, Z) of standardised images (C, X, Y, Z): slice by slice for a patch of two
    axes, by overlapping patches for one of three. ValueError if a patch does not fit."""
    if len(patch) == 3:
        return segmentation.predict(model, images[None], patch)[0]
    slices = np.moveaxis(images, 3, 0)
    return np.moveaxis(segmentation.predict(model, np.ascontiguousarray(slices)), 0, 2)


def _spacing(affine: np.ndarray) -> tuple[float, ...]:
    """Millimetres from voxel to voxel along each axis."""
    return tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))


def _most_labelled(label: np.ndarray) -> int:
    """The slice of the third axis with most labelled voxels."""
    return int((label > 0).sum((0, 1)).argmax())
