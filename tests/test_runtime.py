"""The thread pool and the block cache: fork, threads, memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import _cpu

pytestmark = pytest.mark.cpu("of threads, the block cache and processes")


def convolution() -> np.ndarray:
    """A convolution large enough for all threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 32, 32)).astype(np.float32)
    w = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    return _cpu.conv_forward(x, w, None, 1, 1, 1, 1)


def child_digest(queue: multiprocessing.Queue) -> None:
    queue.put(convolution().tobytes())


def assert_child_computes(expected: bytes) -> None:
    """A forked process gets the same bits, and ends well."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=child_digest, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(timeout=30)
    assert child.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_fork() -> None:
    cg.set_num_threads(2)
    expected = convolution().tobytes()
    assert_child_computes(expected)
    assert convolution().tobytes() == expected


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_another_thread_runs_a_kernel() -> None:
    """The child has neither the parent's workers nor its running kernel, and uses its own."""
    cg.set_num_threads(2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 32, 64, 64)).astype(np.float32)
    w = rng.standard_normal((32, 32, 5, 5)).astype(np.float32)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _cpu.conv_forward(x, w, None, 1, 2, 1, 1)

    expected = convolution().tobytes()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            time.sleep(0.01)  # amid a kernel
            assert_child_computes(expected)
    finally:
        stop.set()
        thread.join()


BESIDE = {
    "torch": """
import torch
a = torch.ones(300, 300)
other = lambda: float((a @ a).sum())
wanted = 300.0**3
""",
    "sklearn": """
from sklearn.ensemble import RandomForestClassifier
rows, above = np.arange(200.0).reshape(100, 2), np.arange(100) > 49
forest = RandomForestClassifier(8, n_jobs=2, random_state=0)
other = lambda: forest.fit(rows, above).score(rows, above)
wanted = 1.0
""",
}


@pytest.mark.parametrize("library", BESIDE)
@pytest.mark.parametrize("first", ["convgrad", "other"])
def test_beside_another_library_with_threads_of_its_own(library: str, first: str) -> None:
    pytest.importorskip(library)
    ours = "import convgrad as cg\nimport convgrad.functional as F\n"
    imports = [ours, BESIDE[library]] if first == "convgrad" else [BESIDE[library], ours]
    code = f"""
import numpy as np

{"".join(imports)}
cg.set_num_threads(2)
x, w = cg.ones(4, 16, 32, 32), cg.ones(16, 16, 3, 3)
for _ in range(5):
    assert float(F.conv2d(x, w).sum()) == 144.0 * 4 * 16 * 30 * 30
    assert other() == wanted
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_concurrent_callers_get_the_same_bits() -> None:
    cg.set_num_threads(2)
    expected = convolution().tobytes()
    results: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            results.append(convolution().tobytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 20 and all(r == expected for r in results)


def test_other_threads_run_while_a_kernel_does() -> None:
    """Kernels drop the GIL."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 32, 64, 64)).astype(np.float32)
    w = rng.standard_normal((32, 32, 5, 5)).astype(np.float32)
    cg.set_num_threads(1)
    done = threading.Event()

    def work() -> None:
        for _ in range(3):
            _cpu.conv_forward(x, w, None, 1, 2, 1, 1)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert ticks >= 5


def test_ctrl_c_interrupts_a_loop_of_kernels(interruptible: None) -> None:
    code = (
        "import numpy as np, convgrad.functional as F, convgrad as cg\n"
        "x, w = cg.tensor(np.ones((1, 8, 32, 32), 'f')), cg.tensor(np.ones((8, 8, 3, 3), 'f'))\n"
        "print('ready', flush=True)\n"
        "while True: F.conv2d(x, w)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    try:
        _, error = child.communicate(timeout=30)
    finally:
        child.kill()  # a loop without end
    assert "KeyboardInterrupt" in error and child.returncode in (1, -signal.SIGINT)


def test_blocks_are_reused_and_can_be_freed() -> None:
    shape = (1 << 20,)
    before = _cpu.memory_stats()["live_bytes"]
    a = _cpu.empty_like(np.empty(shape, np.float32))
    assert _cpu.memory_stats()["live_bytes"] >= before + a.nbytes
    assert a.ctypes.data % 64 == 0
    del a
    assert _cpu.memory_stats()["live_bytes"] == before
    kept = _cpu.memory_stats()["cached_bytes"]
    b = _cpu.empty_like(np.empty(shape, np.float32))
    assert _cpu.memory_stats()["cached_bytes"] <= kept - b.nbytes
    del b
    assert _cpu.memory_stats()["cached_bytes"] == kept
    cg.empty_cache()
    assert _cpu.memory_stats()["cached_bytes"] == 0


def test_blocks_of_random_sizes_never_overlap() -> None:
    """Cut, merged and taken again in any order, small and large: each keeps what was written."""
    rng = np.random.default_rng(0)
    blocks: dict[int, np.ndarray] = {}
    for i in range(3000):
        n = int(2 ** rng.uniform(0, 19))
        blocks[i] = _cpu.empty_like(np.empty(n, np.float32))
        blocks[i][...] = i
        if len(blocks) > 30:
            victim = int(rng.choice(list(blocks)))
            assert (blocks.pop(victim) == victim).all()
        if i % 1000 == 500:
            cg.empty_cache()
    assert all((block == i).all() for i, block in blocks.items())


def test_a_training_step_touches_no_fresh_memory() -> None:
    """Blocks of steady shapes are found again, though sizes differ from one layer to the next."""
    _cpu.poison_blocks(False)
    cg.empty_cache()
    model = cg.nn.Sequential(
        cg.nn.Conv2d(3, 32, 3, padding=1), cg.nn.ReLU(), cg.nn.Conv2d(32, 32, 3, padding=1),
        cg.nn.ReLU(), cg.nn.MaxPool2d(2), cg.nn.Conv2d(32, 64, 3, padding=1), cg.nn.ReLU(),
        cg.nn.MaxPool2d(2), cg.nn.Flatten(), cg.nn.Linear(4096, 10),
    )  # fmt: skip
    x, target = cg.randn(64, 3, 32, 32), cg.tensor(np.arange(64) % 10)
    optimizer = cg.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def steps(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()

    steps(5)
    before = _cpu.memory_stats()["fresh_bytes"]
    steps(20)
    assert _cpu.memory_stats()["fresh_bytes"] == before


def test_a_view_keeps_its_block() -> None:
    a = _cpu.empty_like(np.zeros((1000, 1000), np.float32))
    a[...] = 7
    view = a[10:20]
    del a
    filler = [_cpu.empty_like(np.zeros((1000, 1000), np.float32)) for _ in range(3)]
    for f in filler:
        f[...] = 0
    assert (view == 7).all()


def test_impossible_sizes_are_memory_errors() -> None:
    x = np.zeros((1, 1, 1, 1), np.float32)
    wide = np.broadcast_to(x, (1 << 14, 1 << 14, 1 << 10, 1 << 4))
    with pytest.raises(MemoryError, match=rf"^\[convgrad\] .* Got {1 << 44} bytes, beside \d+ in"):
        _cpu.channels_last(wide)
    with pytest.raises(ValueError, match=rf"must fit 64 bits. Got shape \({1 << 62}, 1, 3, 1\)"):
        _cpu.pad_constant(x, (0, 0, 1, 0), ((1 << 62) - 1, 0, 1, 0), 0.0)
    assert F.conv2d(cg.tensor(x), cg.tensor(x)).shape == (1, 1, 1, 1)  # and life goes on


def test_memory_stays_flat_over_many_shapes() -> None:
    """Nothing keyed by shape may grow: 1,000 random shapes, resident memory."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc")
    _cpu.poison_blocks(False)
    rng = np.random.default_rng(0)
    w = np.ones((8, 4, 3, 3), np.float32)

    def churn(n: int) -> None:
        for _ in range(n):
            h, width = rng.integers(3, 200, 2)
            _cpu.conv_forward(np.ones((1, 4, h, width), np.float32), w, None, 1, 1, 1, 1)

    churn(300)
    before = resident()
    churn(700)
    assert resident() - before < 32 << 20
