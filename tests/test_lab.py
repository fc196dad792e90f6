"""The kernel lab (bench/lab), in the simulator: every version is exactly a convolution."""

from __future__ import annotations

import numpy as np
import pytest
from bench.lab import conv as lab_conv
from bench.lab.conv import Shape

from tests.device import SIMULATED
from tests.reference.conv import conv

lab = pytest.importorskip("convgrad._cuda_sim_lab", reason="needs the simulator: make sim")
VERSIONS = dict(lab.versions())
# Tiles are 16, 64 and 128 pixels and channels, slices 8 and 16 terms, stages three.
SHAPES = {
    "less than a tile": Shape(1, 3, 5, 4, 8, 3),
    "several tiles": Shape(2, 9, 11, 20, 132, 3),
    "more channels of x than a slice": Shape(1, 10, 13, 36, 20, 1),
    "filter wider than the image": Shape(3, 2, 3, 8, 68, 7),
    "odd channels": Shape(1, 12, 13, 3, 67, 5),
    "one of everything": Shape(1, 1, 1, 1, 1, 1),
}
TAKEN = [
    (name, shape)
    for name, multiple in VERSIONS.items()
    for shape, sizes in SHAPES.items()
    if lab_conv.takes(multiple, sizes)
]


@pytest.mark.quick
@pytest.mark.kernel
@pytest.mark.parametrize("name, shape", TAKEN)
def test_versions_are_convolutions(name: str, shape: str) -> None:
    sizes = SHAPES[shape]
    x, weight = lab_conv.integers(sizes)
    run, result = lab_conv.calls_of_versions(lab, sizes, x, weight)[name]
    run()
    expected = conv(
        np.moveaxis(x, -1, 1), np.moveaxis(weight, (3, 2), (0, 1)), padding=sizes.r // 2
    )
    np.testing.assert_array_equal(result(), np.moveaxis(expected, 1, -1))


def test_a_wrong_version_is_found() -> None:
    """The lab's own check: against what NumPy makes of other weights."""
    shape = SHAPES["less than a tile"]
    x, weight = lab_conv.integers(shape)
    calls = lab_conv.calls_of_versions(lab, shape, x, weight)
    assert lab_conv.check(calls, lab_conv.convolved(x, weight)) == []
    assert lab_conv.check(calls, lab_conv.convolved(x, weight[::-1])) == list(VERSIONS)


def test_what_a_version_does_not_take_is_an_error() -> None:
    x = lab.upload(np.zeros(1000, np.float32))
    for shape, message in {
        (1, 2, 3, 4, 8, 2): r"r odd.*Got \(1, 2, 3, 4, 8, 2\)",
        (1, 2, 0, 4, 8, 3): r"must be positive.*Got \(1, 2, 0, 4, 8, 3\)",
        (1, 2, 3, 4, 6, 3): "multiples of 4. Got 4 and 6",
        (2048, 1024, 1024, 4, 8, 3): "below 2.31 elements",
    }.items():
        with pytest.raises(ValueError, match=message):
            lab.run("pipeline", shape, x, x, x)
    with pytest.raises(ValueError, match="no version called 'slow'"):
        lab.run("slow", (1, 1, 1, 4, 4, 1), x, x, x)


def test_without_a_card_it_only_checks(monkeypatch, capsys) -> None:
    monkeypatch.setenv("CONVGRAD_CUDA_SIM", "1")
    assert lab_conv.main([]) == 0
    printed = capsys.readouterr().out
    assert "nothing is timed" in printed and "WRONG" not in printed and "ms" not in printed
    assert all(f"  {name}" in printed for name in VERSIONS)


def test_without_any_build_it_says_how_to_make_one(monkeypatch, capsys) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(lab_conv.importlib, "import_module", missing)
    assert lab_conv.main([]) == 2
    assert "make sim" in capsys.readouterr().out


@pytest.mark.skipif(not SIMULATED, reason="runs the library's kernels on the simulator")
def test_the_librarys_kernels_run_beside_them(capsys) -> None:
    shape = SHAPES["less than a tile"]
    x, weight = lab_conv.integers(shape)
    calls = lab_conv.calls_of_others(x, weight)
    assert lab_conv.check(calls, lab_conv.convolved(x, weight)) == []
    lab_conv._print_times(calls, ["convgrad, tf32"], shape, rounds=1, seconds=0)
    printed = capsys.readouterr().out
    assert "GFLOP/s" in printed and "convgrad, tf32       WRONG" in printed
