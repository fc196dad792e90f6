"""Every test runs with poisoned memory: what a kernel did not write is NaN, and a write beyond the
end of a block fails the test. Parity tests need PyTorch; in CI its absence is a failure."""

import gc
import os

import pytest

import convgrad as cg
from convgrad import _cpu


@pytest.fixture(autouse=True)
def poisoned_memory():
    before = _cpu.broken_guards()
    _cpu.poison_blocks(True)
    yield
    gc.collect(0)
    _cpu.poison_blocks(False)
    assert _cpu.broken_guards() == before, "a kernel wrote outside its output or workspace"


@pytest.fixture(autouse=True)
def restored_threads():
    threads = cg.get_num_threads()
    yield
    cg.set_num_threads(threads)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for parity."""
    if os.environ.get("CI"):
        import torch
    else:
        torch = pytest.importorskip(
            "torch", reason="parity needs the extra: pip install '.[parity]'"
        )
    return torch
