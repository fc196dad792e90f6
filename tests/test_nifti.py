"""NIfTI volumes: one file, folders of subjects, and what is said about those that do not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from convgrad.data import nifti
from convgrad.extras import MissingPackageError

pytestmark = pytest.mark.cpu("of the host's side: files")

nibabel = pytest.importorskip("nibabel", reason="needs: pip install '.[medical]'")

AFFINE = np.array([[-1.5, 0, 0, 90], [0, 1.5, 0.1, -120], [0, -0.1, 2, -70], [0, 0, 0, 1.0]])
SHAPE = (6, 7, 5)


def write(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def write_brats(folder, names=("a", "b", "c"), suffix=".nii.gz", shape=SHAPE):
    """Subjects whose channels hold 1, 2, 3, 4 and whose labels are 0, 1, 2 and 4."""
    for name in names:
        for value, kind in enumerate(("t1", "t1ce", "t2", "flair"), 1):
            voxels = np.full(shape, value, np.float32)
            write(folder / name / f"{name}_{kind}{suffix}", voxels)
        label = np.array([0, 1, 2, 4], np.uint8)[np.arange(np.prod(shape)) % 4].reshape(shape)
        write(folder / name / f"{name}_seg{suffix}", label)


def write_simple(folder, names=("a", "b", "c"), shape=SHAPE, classes=3, seed=0):
    """Subjects whose image is their label, 0 .. classes - 1, with a little noise."""
    rng = np.random.default_rng(seed)
    for name in names:
        label = rng.integers(classes, size=[-(-n // 4) for n in shape])
        for axis, n in enumerate(shape):
            label = np.take(np.repeat(label, 4, axis), np.arange(n), axis)
        image = label + 0.1 * rng.standard_normal(shape)
        write(folder / name / "image.nii.gz", image.astype(np.float32))
        write(folder / name / "label.nii.gz", label.astype(np.uint8))


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_what_is_written_is_read_again(tmp_path, name, dtype):
    voxels = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 2).astype(dtype)
    nifti.write_volume(tmp_path / name, voxels, AFFINE)
    got, affine = nifti.read_volume(tmp_path / name)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, voxels)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    kept = nibabel.load(tmp_path / name).get_data_dtype()
    assert kept == (np.float32 if dtype == np.float32 else np.uint8)


def test_intensities_are_scaled_as_the_header_says(tmp_path):
    image = nibabel.Nifti1Image(np.arange(30, dtype=np.int16).reshape(2, 3, 5), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "x.nii")
    got = nifti.read_volume(tmp_path / "x.nii").voxels
    np.testing.assert_allclose(
        got.ravel(), np.asarray(nibabel.load(tmp_path / "x.nii").dataobj).ravel()
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_brats_layout(tmp_path, suffix):
    write_brats(tmp_path, suffix=suffix)
    (tmp_path / "README").write_text("not a subject")
    subjects = nifti.find_subjects(tmp_path)
    assert [s.name for s in subjects] == ["a", "b", "c"]
    case = nifti.read_case(subjects[1])
    assert case.images.shape == (4, *SHAPE) and case.label.dtype == np.int64
    np.testing.assert_array_equal(case.images.mean((1, 2, 3)), [1, 2, 3, 4])
    np.testing.assert_array_equal(case.label.ravel()[:5], [0, 1, 2, 3, 0])  # 4 is class 3
    np.testing.assert_allclose(case.affine, AFFINE, atol=1e-5)


def test_simple_layout(tmp_path):
    write_simple(tmp_path)
    case = nifti.read_case(nifti.find_subjects(tmp_path)[0], classes=3)
    assert case.images.shape == (1, *SHAPE)
    assert np.abs(case.images[0] - case.label).max() < 1
    with pytest.raises(ValueError, match=r"\[nifti\] Labels must be 0, 1. Got 2 in .*label"):
        nifti.read_case(nifti.find_subjects(tmp_path)[0], classes=2)


def test_subjects_are_split_whole(tmp_path):
    write_simple(tmp_path, [f"s{i:02}" for i in range(11)])
    subjects = nifti.find_subjects(tmp_path)
    parts = nifti.split_subjects(subjects, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 7,
        "validation": 2,
        "test": 2,
    }
    assert sorted(s.name for part in parts.values() for s in part) == [s.name for s in subjects]
    assert parts == nifti.split_subjects(subjects, seed=1)
    assert parts != nifti.split_subjects(subjects, seed=2)
    with pytest.raises(ValueError, match=r"At least 3 subjects are needed.*Got 2"):
        nifti.split_subjects(subjects[:2])


def test_standardised_inside_the_background():
    images = np.zeros((3, *SHAPE), np.float32)
    images[0, 1:4, 1:4, 1:4] = 100 + np.random.default_rng(0).standard_normal((3, 3, 3))
    images[1, 0] = 7
    got = nifti.standardise(images)
    inside = got[0][images[0] != 0]
    assert inside.mean() == pytest.approx(0, abs=1e-5) and inside.std() == pytest.approx(
        1, abs=1e-4
    )
    assert not got[0][images[0] == 0].any() and not got[1:].any()


# ---- what does not fit ----


def test_folders_without_subjects_list_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*none'"):
        nifti.find_subjects(tmp_path / "none")
    (tmp_path / "a").mkdir()
    looked = r"Looked in 1 folders for .*SUBJECT/SUBJECT_t1ce.nii.*_seg.*SUBJECT/image.nii.*label"
    with pytest.raises(FileNotFoundError, match=looked):
        nifti.find_subjects(tmp_path)


def test_a_subject_without_all_of_its_files(tmp_path):
    write_brats(tmp_path)
    (tmp_path / "b" / "b_t2.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"Looked for '.*b/b_t2.nii\[.gz\]'"):
        nifti.find_subjects(tmp_path)


def test_files_that_differ_in_shape_or_affine(tmp_path):
    write_brats(tmp_path)
    subject = nifti.find_subjects(tmp_path)[0]
    write(subject.images[2], np.zeros((6, 7, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"one shape. Got \(6, 7, 5\) in .*t1.*\(6, 7, 4\) in .*t2"
    ):
        nifti.read_case(subject)
    moved = AFFINE.copy()
    moved[0, 3] += 2
    write(subject.images[2], np.zeros(SHAPE, np.float32), moved)
    with pytest.raises(ValueError, match=r"one affine.*differ by up to 2 in .*t2"):
        nifti.read_case(subject)
    write(subject.images[2], np.zeros(SHAPE, np.float32))
    write(subject.label, np.zeros(SHAPE, np.uint8), moved)
    with pytest.raises(ValueError, match=r"one affine.*seg"):
        nifti.read_case(subject)


def test_labels_outside_the_classes(tmp_path):
    write_brats(tmp_path)
    subject = nifti.find_subjects(tmp_path)[0]
    write(subject.label, np.full(SHAPE, 3, np.uint8))
    with pytest.raises(ValueError, match=r"Labels must be 0, 1, 2, 4. Got 3 in '.*a_seg"):
        nifti.read_case(subject)
    write(subject.label, np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(ValueError, match=r"Got 0.5"):
        nifti.read_case(subject)


def test_volumes_that_are_not_finite_or_no_volumes(tmp_path):
    path = tmp_path / "x.nii.gz"
    write(path, np.where(np.arange(30).reshape(2, 3, 5) < 3, np.nan, 1).astype(np.float32))
    with pytest.raises(ValueError, match=r"must be finite. Got 3 that are NaN .*x.nii"):
        nifti.read_volume(path)
    write(path, np.zeros((2, 3, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"a volume \(X, Y, Z\). Got \(2, 3, 4, 2\)"):
        nifti.read_volume(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"must be a whole NIfTI file"):
        nifti.read_volume(path)
    with pytest.raises(FileNotFoundError, match=r"no file '.*y.nii'"):
        nifti.read_volume(tmp_path / "y.nii")
    with pytest.raises(ValueError, match=r"must end in .nii.gz or .nii. Got '.*x.png'"):
        nifti.write_volume(tmp_path / "x.png", np.zeros(SHAPE), AFFINE)


def test_a_missing_nibabel_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingPackageError, match=r"'nibabel'.*convgrad\[medical\]"):
        nifti.read_volume(tmp_path / "x.nii")
