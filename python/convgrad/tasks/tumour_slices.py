"""Slices with tumours, simulated (see ``lesions``) or read from NIfTI files: a network sees no
difference."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from convgrad.data import nifti
from convgrad.tasks import lesions

__all__ = ["CLASSES", "Folder", "Simulated", "Slices", "Subject", "brats_labels", "of_images"]

CLASSES = lesions.REGIONS
VALIDATION, TEST = 16, 120  # simulated slices to validate by, to test on
BRATS = np.array([0, 1, 3, 2], np.uint8)  # BraTS's classes are healthy, core, edema, enhancing
BRATS_VALUES = np.array([0, 1, 4, 2], np.uint8)  # the numbers of our classes in its files


class Slices(NamedTuple):
    """Slices as networks see them.

    Attributes:
        images: (N, C, H + 2 m, W + 2 m) float32, each channel with mean 0 and variance 1, and
            continued beyond its edges by m pixels, mirrored.
        labels: (N, H, W) uint8, as in CLASSES.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def margin(self) -> int:
        """m."""
        return (self.images.shape[2] - self.labels.shape[1]) // 2


class Subject(NamedTuple):
    """Slices that are measured together, and the affine (4, 4) of the volume they are of."""

    name: str
    slices: Slices
    affine: np.ndarray


class Simulated:
    """Simulated slices, half of them with a lesion.

    Args:
        seed: of 'train' and 'validation'; 'test' has its own.
        count: how many slices the first network is trained on.
        margin: m of :class:`Slices`.
    """

    def __init__(self, seed: int, count: int, margin: int) -> None:
        self.seed, self.count, self.margin = seed, count, margin

    def training(self, number: int = 0) -> Slices:
        """Slices for the network of this number: each has its own. The second one's are a quarter
        as many: the first one has to segment them."""
        if number == 0:
            return self._draw("train", range(self.count))
        return self._draw("train", range(self.count, self.count + max(1, self.count // 4)))

    def validation(self) -> Slices:
        """Slices to choose settings by."""
        return self._draw("validation", range(VALIDATION))

    def test(self) -> list[Subject]:
        """Slices to measure once, all as one subject."""
        return [Subject("simulated", self._draw("test", range(TEST)), np.eye(4))]

    def _draw(self, split: str, indices: range) -> Slices:
        drawn = lesions.slices(self.seed, split, indices)
        mean = drawn.images.mean((2, 3), keepdims=True)
        images = (drawn.images - mean) / drawn.images.std((2, 3), keepdims=True)
        return Slices(_surrounded(images, self.margin), drawn.labels)


class Folder:
    """The axial slices of a folder's subjects in BraTS's layout, see :mod:`convgrad.data.nifti`.

    Args:
        path: the folder.
        seed: of the split, which is by subject.
        margin: m of :class:`Slices`.

    FileNotFoundError and ValueError as there, and as :func:`of_images`.
    """

    def __init__(self, path: Path, seed: int, margin: int) -> None:
        self.margin = margin
        self.parts = nifti.split_subjects(nifti.find_subjects(path), seed)

    def training(self, number: int = 0) -> Slices:
        """The slices of all training subjects that show something, for any network."""
        return self._stacked("train")

    def validation(self) -> Slices:
        """Those of the validation subjects."""
        return self._stacked("validation")

    def test(self) -> list[Subject]:
        """The test subjects, with all of their slices."""
        return self._read("test")

    def _read(self, split: str) -> list[Subject]:
        subjects = []
        for subject in self.parts[split]:
            case = nifti.read_case(subject)
            images = of_images(case.images, self.margin)
            labels = np.moveaxis(BRATS[case.label], 2, 0)
            subjects.append(Subject(subject.name, Slices(images, labels), case.affine))
        return subjects

    def _stacked(self, split: str) -> Slices:
        subjects = self._read(split)
        sizes = sorted({subject.slices.labels.shape[1:] for subject in subjects})
        if len(sizes) > 1:
            raise ValueError(
                "[tumour] Subjects must have slices of one size: resample them first. Got "
                f"{', '.join(map(str, sizes))}."
            )
        images, labels = (np.concatenate(arrays) for arrays in zip(*(s.slices for s in subjects)))
        shown = images.any((1, 2, 3))
        if not labels[shown].any():
            raise ValueError(f"[tumour] The {split} subjects must have a tumour. Got none.")
        return Slices(images[shown], labels[shown])


def of_images(images: np.ndarray, margin: int) -> np.ndarray:
    """A subject's sequences (4, X, Y, Z) as axial slices (Z, 4, X + 2 margin, Y + 2 margin).

    ValueError for another number of sequences, and for slices smaller than the margin.
    """
    if len(images) != len(lesions.SEQUENCES):
        raise ValueError(
            f"[tumour] A subject must have the sequences {', '.join(lesions.SEQUENCES)}, as in "
            f"BraTS's layout. Got {len(images)} images."
        )
    if min(images.shape[1:3]) <= margin:
        raise ValueError(
            f"[tumour] Slices must be larger than the {margin} pixels that the network looks "
            f"around. Got {images.shape[1:3]}."
        )
    return _surrounded(np.moveaxis(nifti.standardise(images), 3, 0), margin)


def _surrounded(images: np.ndarray, margin: int) -> np.ndarray:
    around = (margin, margin)
    return np.pad(images, ((0, 0), (0, 0), around, around), mode="reflect").astype(np.float32)


def brats_labels(predicted: np.ndarray) -> np.ndarray:
    """Classes (N, H, W) of axial slices as a volume (H, W, N) of BraTS's numbers 0, 1, 2 and 4."""
    return np.moveaxis(BRATS_VALUES[predicted], 0, 2)
