"""Volumes in NIfTI files (nibabel, of the extra 'medical'): single ones, and folders of subjects.

A folder holds a folder per subject, in one of two layouts (each file .nii or .nii.gz):

SUBJECT/SUBJECT_t1, _t1ce, _t2, _flair, and _seg with labels 0, 1, 2, 4    as BraTS
SUBJECT/image and label, labels 0, 1, 2, ...                              simple

A volume's axes stay as they are in the file, (X, Y, Z); its affine, 4x4, leads from voxel indices
to millimetres, and predictions are written with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convgrad.extras import require

__all__ = [
    "LAYOUTS",
    "Case",
    "Layout",
    "Subject",
    "Volume",
    "find_subjects",
    "read_case",
    "read_images",
    "read_volume",
    "split_subjects",
    "standardise",
    "write_volume",
]

SUFFIXES = (".nii.gz", ".nii")
AFFINE_TOLERANCE = 1e-3  # mm: files of one scan differ by the rounding of their headers


@dataclass(frozen=True)
class Layout:
    """File names without suffix, {} for the subject's name; values[c] is class c in the label file,
    None for c itself."""

    images: tuple[str, ...]
    label: str
    values: tuple[int, ...] | None = None


LAYOUTS = {
    "BraTS": Layout(("{}_t1", "{}_t1ce", "{}_t2", "{}_flair"), "{}_seg", (0, 1, 2, 4)),
    "simple": Layout(("image",), "label"),
}


class Volume(NamedTuple):
    """Voxels (X, Y, Z), float32, and the affine (4, 4), float64."""

    voxels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Subject:
    """Where a subject's files are."""

    name: str
    images: tuple[Path, ...]
    label: Path
    layout: Layout


class Case(NamedTuple):
    """A subject's images (C, X, Y, Z) float32, labels (X, Y, Z) int64, and the affine (4, 4)."""

    images: np.ndarray
    label: np.ndarray
    affine: np.ndarray


# ---- files ----


def read_volume(path: Path) -> Volume:
    """One file. ValueError if it is not a whole NIfTI file, not 3-D, or has voxels that are not
    finite; FileNotFoundError if it is missing."""
    nibabel = require("nibabel", "medical")
    if not path.is_file():
        raise FileNotFoundError(f"[nifti] There is no file '{path}'.")
    try:
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # ImageFileError, EOFError, OSError, zlib.error, ...
        raise ValueError(f"[nifti] '{path}' must be a whole NIfTI file. Got: {error}") from error
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise ValueError(f"[nifti] '{path}' must hold a volume (X, Y, Z). Got {voxels.shape}.")
    wrong = int((~np.isfinite(voxels)).sum())
    if wrong:
        raise ValueError(
            f"[nifti] Voxels must be finite. Got {wrong} that are NaN or infinite in '{path}'."
        )
    return Volume(voxels, np.asarray(image.affine, np.float64))


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Writes (X, Y, Z) with its affine; labels as uint8 or int16, floats as float32.

    ValueError for a name that does not end in .nii or .nii.gz.
    """
    nibabel = require("nibabel", "medical")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(
            f"[nifti] A file's name must end in {' or '.join(SUFFIXES)}. Got '{path}'."
        )
    if voxels.dtype.kind in "iub":
        voxels = voxels.astype(np.uint8 if voxels.max(initial=0) < 256 else np.int16)
    else:
        voxels = voxels.astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def read_images(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(images (C, X, Y, Z), affine) of one file per channel.

    ValueError if they differ in shape or affine.
    """
    volumes = [read_volume(path) for path in paths]
    for path, volume in zip(paths, volumes):
        _must_match(paths[0], volumes[0], path, volume)
    return np.stack([volume.voxels for volume in volumes]), volumes[0].affine


def _must_match(path: Path, volume: Volume, other_path: Path, other: Volume) -> None:
    if other.voxels.shape != volume.voxels.shape:
        raise ValueError(
            f"[nifti] Files of one subject must have one shape. Got {volume.voxels.shape} in "
            f"'{path}' and {other.voxels.shape} in '{other_path}'."
        )
    apart = np.abs(other.affine - volume.affine).max()
    if not apart <= AFFINE_TOLERANCE:
        raise ValueError(
            "[nifti] Files of one subject must have one affine: resample them to one grid first. "
            f"Got entries that differ by up to {apart:g} in '{path}' and '{other_path}'."
        )


# ---- folders ----


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for s in SUFFIXES if (p := folder / f"{stem}{s}").is_file()), None)


def find_subjects(folder: Path) -> list[Subject]:
    """The subjects of a folder, by name, all of one layout.

    FileNotFoundError lists what was looked for where a folder has no subject, or a subject only
    some of its files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"[nifti] There is no folder '{folder}'.")
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    for layout in LAYOUTS.values():
        subjects, missing = [], []
        for place in places:
            stems = [stem.format(place.name) for stem in (*layout.images, layout.label)]
            found = [_file(place, stem) for stem in stems]
            if all(found):
                *images, label = (path for path in found if path is not None)
                subjects.append(Subject(place.name, tuple(images), label, layout))
            elif any(found):
                missing += [place / f"{s}.nii[.gz]" for s, path in zip(stems, found) if not path]
        if missing:
            shown = ", ".join(f"'{path}'" for path in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise FileNotFoundError(
                f"[nifti] A subject must have all of its files. Looked for {shown}{more}."
            )
        if subjects:
            return subjects
    wanted = "; or ".join(
        ", ".join(
            f"SUBJECT/{stem.format('SUBJECT')}.nii[.gz]" for stem in (*each.images, each.label)
        )
        for each in LAYOUTS.values()
    )
    raise FileNotFoundError(
        f"[nifti] '{folder}' must hold a folder per subject. Looked in {len(places)} folders for "
        f"{wanted}."
    )


def read_case(subject: Subject, classes: int | None = None) -> Case:
    """A subject's images and labels.

    Args:
        subject: of :func:`find_subjects`.
        classes: labels must be of 0 .. classes - 1; any whole numbers if left out.

    ValueError if files differ in shape or affine, voxels are not finite, or a label is outside the
    classes.
    """
    images, affine = read_images(subject.images)
    label = read_volume(subject.label)
    _must_match(subject.images[0], Volume(images[0], affine), subject.label, label)
    values = subject.layout.values or tuple(range(256 if classes is None else classes))
    wrong = ~np.isin(label.voxels, values)
    if wrong.any():
        allowed = ", ".join(map(str, values)) if len(values) < 9 else f"0 .. {values[-1]}"
        raise ValueError(
            f"[nifti] Labels must be {allowed}. Got {label.voxels[wrong][0]:g} in "
            f"'{subject.label}'."
        )
    return Case(images, np.searchsorted(values, label.voxels).astype(np.int64), affine)


def split_subjects(
    subjects: Sequence[Subject], seed: int = 0, part: float = 0.2
) -> dict[str, list[Subject]]:
    """{'train', 'validation', 'test'}: whole subjects, at random by ``seed``; validation and test
    get ``part`` of them each, at least one. ValueError for fewer than three."""
    if len(subjects) < 3:
        raise ValueError(
            "[nifti] At least 3 subjects are needed, one each to train on, to validate by and to "
            f"test on. Got {len(subjects)}."
        )
    size = max(1, int(part * len(subjects)))
    order = [subjects[i] for i in np.random.default_rng(seed).permutation(len(subjects))]
    parts = {
        "test": order[:size],
        "validation": order[size : 2 * size],
        "train": order[2 * size :],
    }
    return {name: sorted(chosen, key=lambda s: s.name) for name, chosen in parts.items()}


def standardise(images: np.ndarray) -> np.ndarray:
    """Each channel (X, Y, Z) with mean 0 and variance 1 over its voxels that are not 0, which are
    taken to be the background and stay 0; a channel without contrast becomes 0."""
    out = np.zeros(images.shape, np.float32)
    for channel, image in zip(out, images):
        inside = image != 0
        if inside.any():
            values = image[inside].astype(np.float64)
            channel[inside] = (values - values.mean()) / (values.std() or 1.0)
    return out
