"""What the library asks while a training step is captured (``cuda.capture``): which numbers may be
others at the next replay, and what such a step may not do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Recorder", "caller", "check_gradient", "recorder", "recording", "refuse"]

Array = Any
_CHUNK = 4000  # bytes that one launch uploads (csrc/cuda/device.cu)


class _Current(threading.local):
    recorder: Recorder | None = None


_current = _Current()


def recorder() -> Recorder | None:
    """The recorder of the step that this thread captures, or None."""
    return _current.recorder


class recording:
    """``with recording(recorder):`` this thread captures a step."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        if _current.recorder is not None:
            raise RuntimeError("[capture] A step is being captured in this thread already.")
        backend = self._recorder.backend
        backend.lib.set_captured_device(backend.index)
        _current.recorder = self._recorder

    def __exit__(self, *_: object) -> None:
        _current.recorder = None
        self._recorder.backend.lib.set_captured_device(-1)


def refuse(rule: str, op: str | None = None) -> None:
    """RuntimeError if this thread captures a step. ``op`` is the public function called, if that is
    not to be found among the callers."""
    if _current.recorder is not None:
        raise RuntimeError(f"[{op or caller()}] {rule}")


def check_gradient(array: Array) -> None:
    """RuntimeError for a gradient that a captured step adds to, and that was not made in it."""
    recorder = _current.recorder
    if recorder is not None and array.data.ptr not in recorder.allocated:
        raise RuntimeError(
            "[backward] A gradient from before the captured step would be added to, the same one "
            "at each replay. zero_grad() belongs into the step."
        )


# Between a public function and whoever found that it cannot be captured.
_INNER = frozenset(
    {"apply", "caller", "forward", "host", "moved", "operand_for", "put", "refuse", "text"}
)


def caller() -> str:
    """The name of the library's function that was called, without underscores."""
    name = ""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        # Beyond the first one, of bool(x), which calls x.item().
        if not module.startswith("convgrad.") or (name and module != "convgrad.tensor"):
            break
        candidate = frame.f_code.co_name
        private = candidate.startswith("_") and not candidate.startswith("__")
        if not private and candidate not in _INNER:
            name = candidate
        frame = frame.f_back
    return name.removeprefix("__").removesuffix("__") or "capture"


class Recorder:
    """The numbers that a captured step reads from device memory, and that are brought up to date
    before each replay: learning rates, states of random draws.

    They lie side by side in blocks of 4,000 bytes, so that one launch uploads many.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        # Versions (see Tensor) of arrays that a replay changes in place.
        self.changed: list[list[int]] = []
        self.allocated: set[int] = set()  # addresses of memory that the step was given
        self._functions: list[Callable[[], np.ndarray]] = []
        self._values: list[np.ndarray] = []  # what they gave last
        self._blocks: list[Array] = []  # on the device
        self._places: list[tuple[int, int]] = []  # of each value: block, byte
        self._used = _CHUNK
        self._fresh = True

    def number(self, function: Callable[[], np.ndarray]) -> Array:
        """``function()`` in device memory, at each replay anew; calls are in this order."""
        value = np.ascontiguousarray(function())
        bytes_used = -(-value.nbytes // 8) * 8
        if bytes_used > _CHUNK:
            raise ValueError(f"[capture] At most {_CHUNK} bytes. Got {value.nbytes}.")
        if self._used + bytes_used > _CHUNK:
            self._blocks.append(self.backend.xp.empty(_CHUNK, np.uint8))
            self._used = 0
        block, at = self._blocks[-1], self._used
        self._places.append((len(self._blocks) - 1, at))
        self._functions.append(function)
        self._values.append(value)
        self._used += bytes_used
        return self.backend.xp.ndarray(value.shape, value.dtype, block.data + at)

    def refresh(self) -> None:
        """Uploads the numbers of the next replay, if any differ from the last one's, on the current
        stream. Those of the first replay were asked for by the capture."""
        changed = self._fresh
        if not self._fresh:
            values = [np.ascontiguousarray(f()) for f in self._functions]
            changed = any(a.tobytes() != b.tobytes() for a, b in zip(values, self._values))
            self._values = values
        self._fresh = False
        if changed:
            self._upload()
        for version in self.changed:
            version[0] += 1

    def _upload(self) -> None:
        hosts = [np.zeros(_CHUNK, np.uint8) for _ in self._blocks]
        for value, (block, at) in zip(self._values, self._places):
            hosts[block][at : at + value.nbytes] = value.reshape(-1).view(np.uint8)
        for host, block in zip(hosts, self._blocks):
            self.backend.lib.upload_into(host, block)
