"""The tasks' data: splits, augmentation, IDX files whole and damaged."""

import gzip
import struct

import numpy as np
import pytest

from convgrad import tasks
from convgrad.tasks import digits, mnist
from convgrad.tasks.images import Images, split_off, warp

pytestmark = pytest.mark.large("trains networks")


def idx(array, code):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, train=48, test=24, compress=False, seed=0):
    """IDX files in which class k is a bright row k + 5."""
    rng = np.random.default_rng(seed)
    for part, n in (("train", train), ("t10k", test)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), labels + 5] += 180
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array, 0x08)
            name = folder / f"{part}-{kind}-ubyte"
            if compress:
                name.with_name(name.name + ".gz").write_bytes(gzip.compress(data))
            else:
                name.write_bytes(data)
    return folder


# ---- digits ----


@pytest.fixture(scope="module")
def sklearn():
    return pytest.importorskip("sklearn", reason="needs: pip install '.[demo]'")


def test_the_split_is_the_documented_one(sklearn):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train_x, test_x, _, test_y = train_test_split(x, y, test_size=540, stratify=y, random_state=0)
    splits = digits.load(seed=1)
    test = splits.test()
    np.testing.assert_array_equal(test.images.reshape(540, 64) * 16, test_x)
    np.testing.assert_array_equal(test.labels, test_y)
    ours = np.concatenate([splits.train.images, splits.validation.images]).reshape(-1, 64) * 16
    assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(map(bytes, train_x.astype(np.uint8)))
    assert splits.train.images.shape == (1100, 1, 8, 8) and len(splits.validation.labels) == 157
    assert splits.train.images.dtype == np.float32 and splits.train.labels.dtype == np.int64
    other = digits.load(seed=2)
    assert (other.validation.images != splits.validation.images).any()
    np.testing.assert_array_equal(other.test().images, test.images)


def test_split_off_keeps_images_with_their_labels():
    data = Images(np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1), np.arange(20))
    rest, chosen = split_off(data, 6, seed=3)
    for part in (rest, chosen):
        np.testing.assert_array_equal(part.images.ravel(), part.labels)
    assert sorted([*rest.labels, *chosen.labels]) == list(range(20))
    np.testing.assert_array_equal(split_off(data, 6, seed=3)[1].labels, chosen.labels)


# ---- augmentation ----


@pytest.mark.quick
def test_warp_by_nothing_whole_pixels_and_half_turns():
    rng = np.random.default_rng(0)
    images = rng.random((3, 1, 8, 8), np.float32)
    one = np.ones((3, 4))
    np.testing.assert_allclose(warp(images, one, 0, 0, 0), images, atol=1e-6)
    moved = warp(images, one, 2, 0, 0)  # pixel (y, x) comes from (y + 2, x + 2)
    np.testing.assert_allclose(moved[..., :6, :6], images[..., 2:, 2:], atol=1e-6)
    assert (moved[..., 6:, :] == 0).all() and (moved[..., 6:] == 0).all()
    np.testing.assert_allclose(warp(images, one, 0, 180, 0), images[..., ::-1, ::-1], atol=1e-4)
    half = warp(images, one * [0, 0, 1, 0], 0.5, 0, 0)
    want = (images[..., :-1, :] + images[..., 1:, :]) / 2
    np.testing.assert_allclose(half[..., :-1, :], want, atol=1e-6)
    assert half.dtype == np.float32 and half.shape == images.shape


def test_warp_agrees_with_scipy():
    ndimage = pytest.importorskip("scipy.ndimage", reason="comes with scikit-learn: '.[demo]'")
    rng = np.random.default_rng(1)
    images = np.zeros((4, 1, 11, 9), np.float32)
    images[..., 3:-3, 3:-3] = rng.random((4, 1, 5, 3))
    draws = rng.uniform(-1, 1, (4, 4))
    got = warp(images, draws, 1.5, 15, 0.2)
    middle = np.array([5.0, 4.0])
    for i, (turn, size, down, right) in enumerate(draws):
        angle, factor = np.deg2rad(15) * turn, np.exp(0.2 * size)
        matrix = factor * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        offset = middle - matrix @ middle + 1.5 * np.array([down, right])
        want = ndimage.affine_transform(
            images[i, 0].astype(np.float64), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(got[i, 0], want, atol=1e-5)


# ---- IDX files ----


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("u1", 8), ("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)],
)
def test_idx_types(tmp_path, dtype, code):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "x"
    for data in (idx(array, code), gzip.compress(idx(array, code))):
        path.write_bytes(data)
        back = mnist.read_idx(path, 3)
        assert back.dtype == array.dtype and back.dtype.isnative
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_from_plain_and_gzipped_files(tmp_path, compress):
    splits = mnist.load(write_mnist(tmp_path, compress=compress), seed=0)
    test = splits.test()
    assert splits.train.images.shape == (44, 1, 28, 28)
    assert splits.validation.images.shape == (4, 1, 28, 28)
    assert test.images.shape == (24, 1, 28, 28) and test.labels.dtype == np.int64
    np.testing.assert_array_equal(test.images[:, 0].mean(2).argmax(1), test.labels + 5)
    assert 0.9 < test.images.max() <= 1


def test_missing_files_are_listed(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"Looked for t10k-labels-idx1-ubyte\[\.gz\]\."):
        mnist.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist; looked for train-images-idx3"):
        mnist.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3", lambda d: d[:-1], "must have 37648 bytes .* Got 37647: it is trunc"),
        ("train-images-idx3", lambda d: d + b"x", "Got 37649"),
        ("train-images-idx3", lambda d: d[:9], r"Got 9"),
        ("train-images-idx3", lambda d: gzip.compress(d)[:-9], "whole gzip file"),
        ("train-labels-idx1", lambda d: b"", "Got nothing"),
        ("train-labels-idx1", lambda d: b"\x89PNG" + d, "Got 89 50 4e 47"),
        ("train-labels-idx1", lambda d: d[:-1] + b"\x0b", r"Labels must be in 0..9. Got 0 to 11"),
        ("train-labels-idx1", lambda d: idx(np.zeros(7, np.uint8), 8), "48 images and 7 labels"),
        ("train-images-idx3", lambda d: idx(np.zeros((48, 28), np.uint8), 8), "rank 3. Got 2"),
        ("train-images-idx3", lambda d: idx(np.zeros((48, 8, 8), np.uint8), 8), r"Got \(8, 8\)"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, name, change, message):
    write_mnist(tmp_path)
    path = tmp_path / f"{name}-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        mnist.load(tmp_path)


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"tasks are digits, mnist, texture. Got 'cifar'"):
        tasks.get("cifar")
    with pytest.raises(ValueError, match=r"\[mnist\] .*Got none"):
        mnist.load(None)
