"""Weights on disk: every layout and dtype comes back; half a file never appears."""

import os
import stat

import numpy as np
import pytest

import convgrad as cg
from convgrad import io


def test_every_dtype_and_rank_comes_back(tmp_path):
    arrays = {
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "double": np.linspace(0, 1, 5),
        "mask": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        "big endian": np.arange(5, dtype=">f4"),
        "half": np.ones(3, np.float16),
    }
    io.save(arrays, tmp_path / "x.safetensors")
    back = io.load(tmp_path / "x.safetensors")
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype.newbyteorder("=") and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.quick
def test_strided_arrays_are_written_in_logical_order(tmp_path):
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    channels_last = np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not channels_last.flags.c_contiguous
    state = {"cl": cg.tensor(channels_last), "reversed": image[:, ::-1, :, ::-2], "t": image.T}
    io.save(state, tmp_path / "x.safetensors")
    back = io.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(back["cl"], image)
    np.testing.assert_array_equal(back["reversed"], image[:, ::-1, :, ::-2])
    np.testing.assert_array_equal(back["t"], image.T)


def test_pytorch_reads_what_we_write_and_the_other_way(tmp_path, torch):
    from safetensors.torch import load_file, save_file

    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    io.save({"conv.weight": weight}, tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "ours.safetensors")["conv.weight"], weight)
    save_file({"conv.weight": torch.tensor(weight)}, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(io.load(tmp_path / "theirs.safetensors")["conv.weight"], weight)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    io.save({"a": np.ones(3)}, path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        io.save({"a": np.zeros(3)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_files_get_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        io.save({"a": np.ones(3)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text"])
def test_a_damaged_file_is_refused_with_a_reason(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    io.save({"a": np.ones((3, 4))}, path)
    data = path.read_bytes()
    data = {
        "truncated": data[:-8],
        "header": data[:9] + b"\xff" + data[10:],
        "empty": b"",
        "text": b"not a safetensors file",
    }[damage]
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"\[load\] .*x\.safetensors.*Got one of {len(data)} bytes"
    ):
        io.load(path)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"\[save\] .*Got list for 'a'"):
        io.save({"a": [1, 2]}, tmp_path / "x")
    with pytest.raises(TypeError, match=r"\[save\] 'b' .*Got complex128"):
        io.save({"b": np.ones(3, complex)}, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        io.save({"a": np.ones(3)}, tmp_path / "missing" / "x")
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "x")
