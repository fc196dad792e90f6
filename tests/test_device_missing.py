"""What is said where CUDA cannot be used: which part is missing, and how to get it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import convgrad as cg
from convgrad import backend

pytestmark = pytest.mark.cpu("of processes without a GPU")


class CudaError(RuntimeError):
    pass


def cupy_that(devices: Any) -> ModuleType:
    """As much of CuPy as is asked before a GPU is used."""
    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(CUDARuntimeError=CudaError, getDeviceCount=devices)
    cupy.cuda = SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    return cupy


def no_driver() -> int:
    raise CudaError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


# The kernels and CuPy, None where they are not installed; and what is said.
CASES = {
    "no kernels": (
        None,
        cupy_that(lambda: 1),
        "no CUDA backend in this installation.*convgrad_kernels",
    ),
    "no CuPy": (
        ModuleType("convgrad_kernels"),
        None,
        r"no CuPy: .*pip install 'convgrad\[cuda13\]'",
    ),
    "no driver": (
        ModuleType("convgrad_kernels"),
        cupy_that(no_driver),
        "no usable NVIDIA driver: .*CUDA driver version is insufficient",
    ),
    "no GPU": (ModuleType("convgrad_kernels"), cupy_that(lambda: 0), "no NVIDIA GPU"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_said(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, cupy, message = CASES[case]
    monkeypatch.setitem(sys.modules, "convgrad_kernels", kernels)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "_CUDA_MODULES", ("convgrad_kernels", "cupy"))
    monkeypatch.setattr(backend, "_cuda", [])
    monkeypatch.delenv("CONVGRAD_CUDA_SIM", raising=False)
    assert not cg.cuda.is_available()
    with pytest.raises(RuntimeError, match=rf"\[device\] 'cuda' is not available: {message}"):
        cg.zeros(2, device="cuda")
