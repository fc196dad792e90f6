"""Every test runs with poisoned memory: what a kernel did not write is NaN, and a write beyond the
end of a block fails the test. Parity tests need PyTorch; in CI its absence is a failure.

On a GPU or its simulator (see device.py) tests marked `cpu` or, on the simulator, `large` are left
out, and the CPU's kernels refuse to run, so that no test passes by them.
"""

import gc
import os
import signal

import pytest

import convgrad as cg
from convgrad import _cpu, backend
from tests.device import BACKEND, DEVICE, ON_CPU, SIMULATED


def pytest_configure(config):
    if not ON_CPU:
        cg.set_default_device(DEVICE)


def pytest_collection_modifyitems(config, items):
    if ON_CPU:
        return
    for item in items:
        mark = item.get_closest_marker("cpu")
        if mark is None and SIMULATED:
            mark = item.get_closest_marker("large")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"{mark.name}: {mark.args[0]}"))


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    if not ON_CPU:
        yield from _checked_device(monkeypatch)
        return
    before = _cpu.broken_guards()
    _cpu.poison_blocks(True)
    yield
    gc.collect(0)
    _cpu.poison_blocks(False)
    assert _cpu.broken_guards() == before, "a kernel wrote outside its output or workspace"


def _checked_device(monkeypatch):
    """The simulator poisons and guards memory itself. What a kernel reported must have been raised
    in the test."""
    guarded = _Refusing()
    monkeypatch.setitem(backend._LIB_BY_TYPE, backend.np.ndarray, guarded)
    monkeypatch.setattr(backend.CPU, "lib", guarded)
    yield
    BACKEND.lib.synchronize(BACKEND.index)


class _Refusing:
    """The CPU's library without its kernels but for layouts, and with its switches."""

    allowed = frozenset(
        {
            *("channels_last", "contiguous", "convert", "empty_like", "is_channels_last"),
            *("exact_algorithms", "set_exact_algorithms", "set_tf32", "tf32_allowed"),
        }
    )

    def __getattr__(self, name):
        if name in self.allowed:
            return getattr(_cpu, name)
        raise AssertionError(f"{name} ran on the CPU in a test of {DEVICE}")


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


@pytest.fixture
def interruptible():
    """Ctrl-C reaches children, even if this process was begun to ignore it, as by a script's &."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
