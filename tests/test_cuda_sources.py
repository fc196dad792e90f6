"""Rules of csrc/cuda that no compiler enforces; csrc/cuda/launch.cuh says why each is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "csrc"
KERNELS = sorted((ROOT / "cuda" / "kernels").glob("*.cu*"))
LAB = sorted((ROOT.parent / "bench" / "lab").glob("*.cu*"))
FORBIDDEN = {
    r"\basm\b": "inline assembly lives in ptx.cuh",
    r"<<<": "launches go through launch()",
    r"__shared__": "shared memory comes from shared<S>()",
    r"\b(?:std::)?mem(?:cpy|set|move)\b": "the simulator does not see these",
    r"cooperative_groups|cuda::(?:pipeline|barrier)": "the simulator does not have these",
    r"\batomicAdd\s*\(\s*[^)]*(?:float|double)": "no atomics on floats: sums keep their order",
    r"__expf|__logf|__sinf|__cosf|__powf|__fdividef|__tanhf": "no fast approximations",
}


def code_of(path: Path) -> str:
    """The file without comments."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"//.*", "", text)


@pytest.mark.parametrize("path", KERNELS + LAB, ids=lambda path: path.name)
def test_kernels_keep_to_the_rules(path: Path) -> None:
    code = code_of(path)
    for pattern, reason in FORBIDDEN.items():
        found = re.search(pattern, code)
        assert not found, f"{path.name}: '{found and found[0]}': {reason}"


def test_both_backends_have_the_same_stems() -> None:
    """conv is csrc/cpu/kernels/conv.cpp and csrc/cuda/kernels/conv.cu."""
    cpu = {path.stem for path in (ROOT / "cpu" / "kernels").glob("*.cpp")} - {"table"}
    assert {path.stem for path in KERNELS if path.suffix == ".cu"} == cpu


def test_a_rule_that_is_broken_is_found() -> None:
    code = "__global__ void f(float* y) { __shared__ float a[4]; memcpy(a, y, 64); }"
    broken = [pattern for pattern in FORBIDDEN if re.search(pattern, code)]
    assert broken == ["__shared__", r"\b(?:std::)?mem(?:cpy|set|move)\b"]
