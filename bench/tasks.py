"""``python -m bench.tasks [TASK OPTION...]``: how much of a task's training lies outside kernels.

Runs ``convgrad train TASK OPTION...`` (by default a short run of every task) and measures, of the
time of its training steps, the part that the main thread did not spend inside the kernels' library:
Python, the tape, and waiting for data that was not ready. Kernels run as in any training, with all
threads; loading batches happens in a thread beside them. The same of the main thread's processor
time leaves out waiting, and what else the machine does: on a busy one look at that.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from convgrad import backend
from convgrad.bench import machine, report
from convgrad.cli.main import main as convgrad_main
from convgrad.tasks import filters
from convgrad.train import loop

TASKS = (
    ("digits", "--epochs", "5"),
    ("texture", "--epochs", "2"),
    ("tissue", "--epochs", "2", "--draws", "78"),
    ("tissue", "--model", "segnet", "--epochs", "2", "--draws", "39"),
    ("tissue", "--model", "fcn", "--epochs", "1", "--draws", "39"),
    ("tissue", "--model", "unet3d", "--epochs", "2", "--draws", "64"),
    ("tumour", "--epochs", "1", "--output-epochs", "1", "--steps", "50", "--slices", "100"),
    ("filters", "--epochs", "2"),
)
CONDITIONS = {"exact": False, "precision": "highest"}
LIMIT = 0.2
SHOWN = 5


class TimedLibrary:
    """The kernels' library, its functions timed where the main thread calls them."""

    def __init__(self, library: Any) -> None:
        self.inner = library
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.processor = 0.0  # the main thread's processor time in it

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        timed = self._timed(name, value) if callable(value) else value
        setattr(self, name, timed)
        return timed

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **options)
            start, processor = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.processor += time.thread_time() - processor

        return call


LOOPS = (loop, filters)  # modules whose _train_epoch makes the updates


class Watch:
    """Times the epochs of updates, wherever they are called, and the kernels in them."""

    def __init__(self) -> None:
        self.timed = TimedLibrary(backend.CPU.lib)
        self.wall = self.processor = self.processor_in_kernels = 0.0
        self.kernels: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> Watch:
        self.before = [module._train_epoch for module in LOOPS]
        for module, function in zip(LOOPS, self.before):
            module._train_epoch = functools.partial(self._epoch, function)
        backend.CPU.lib = backend._LIB_BY_TYPE[np.ndarray] = self.timed
        return self

    def __exit__(self, *error: object) -> None:
        for module, function in zip(LOOPS, self.before):
            module._train_epoch = function
        backend.CPU.lib = backend._LIB_BY_TYPE[np.ndarray] = self.timed.inner

    def _epoch(self, function: Callable[..., Any], *args: Any) -> Any:
        before, in_kernels = dict(self.timed.seconds), self.timed.processor
        start, processor = time.perf_counter(), time.thread_time()
        out = function(*args)
        self.wall += time.perf_counter() - start
        self.processor += time.thread_time() - processor
        self.processor_in_kernels += self.timed.processor - in_kernels
        for name, seconds in self.timed.seconds.items():
            self.kernels[name] += seconds - before.get(name, 0.0)
        return out

    def outside(self) -> float:
        """The part of the time that no kernel ran in."""
        return 1 - sum(self.kernels.values()) / self.wall

    def outside_processor(self) -> float:
        """The same of the main thread's processor time."""
        return 1 - self.processor_in_kernels / self.processor


def measure(arguments: tuple[str, ...]) -> tuple[list[str], float]:
    """(a row of the table, the part outside kernels) of one command."""
    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        code = convgrad_main(["train", *arguments, "--out", f"{folder}/run"])
    if code or not watch.wall:
        raise SystemExit(f"convgrad train {' '.join(arguments)} trained nothing (exit code {code})")
    largest = sorted(watch.kernels.items(), key=lambda item: -item[1])[:SHOWN]
    kernels = ", ".join(f"{name} {seconds / watch.wall:.0%}" for name, seconds in largest)
    shares = [f"{watch.outside():.1%}", f"{watch.outside_processor():.1%}"]
    return [" ".join(arguments), f"{watch.wall:.1f}", *shares, kernels], watch.outside()


def main() -> int:
    """Prints a table; exit code 1 if a task spends more than LIMIT outside kernels."""
    measured = [measure(task) for task in ([tuple(sys.argv[1:])] if sys.argv[1:] else TASKS)]
    print(f"\n{report.about_line(machine.about() | CONDITIONS)}\n")
    head = (
        "convgrad train",
        "seconds of updates",
        "outside kernels",
        "of processor time",
        "largest kernels",
    )
    print(report.table(head, [row for row, _ in measured]))
    return int(any(outside > LIMIT for _, outside in measured))


if __name__ == "__main__":
    sys.exit(main())
