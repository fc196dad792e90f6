"""cupy.cuda of the stand-in (cupy_standin.py): memory, devices, streams, events and graphs of the
simulator. What a stream is given while something before it is left to be done, or while it is
captured, is left too (csrc/cuda/sim/stream.cpp); else it is done at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from convgrad import _cuda_sim as sim

__all__ = [
    *("Device", "Event", "Graph", "Memory", "MemoryPointer", "MemoryPool", "OutOfMemoryError"),
    *("Stream", "alloc", "alloc_pinned_memory", "get_current_stream", "is_available", "runtime"),
    *("synchronize_for", "using_allocator"),
]


class _ThreadLocal(threading.local):
    streams: tuple[Any, ...] = ()
    allocator: Callable[[int], MemoryPointer] | None = None


_local = _ThreadLocal()


# ---- memory ----


class OutOfMemoryError(MemoryError):
    pass


def _allocate(size: int) -> int:
    device = runtime.getDevice()
    ptr: int = sim.sim_allocate(size, device)
    if ptr == 0:
        used = sim.sim_bytes_in_use(device)
        raise OutOfMemoryError(
            f"Out of memory allocating {size:,} bytes (allocated so far: {used:,} bytes)."
        )
    return ptr


class Memory:
    """A block of a device's memory; giving it back waits for the device, as cudaFree does."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.device_id = runtime.getDevice()
        self.ptr = _allocate(size)
        self._on_release(_free, self.ptr, self.device_id)

    def _on_release(self, *call: Any) -> None:
        self._release = weakref.finalize(self, *call)
        self._release.atexit = False


def _free(ptr: int, device: int) -> None:
    sim.sim_finish_device(device)
    sim.sim_release(ptr)


class _Unpooled(Memory):
    """A block of the default pool. CuPy keeps blocks to hand them out again, to work on the stream
    that they were allocated for; here they are gone when that stream has done what it was given, so
    that whatever still uses them is in error."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.device_id = runtime.getDevice()
        self.ptr = _allocate(size)
        self._on_release(sim.sim_release_in_order, self.ptr, get_current_stream().ptr)


class MemoryPointer:
    """An address in a block."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset

    @property
    def device_id(self) -> int:
        device: int = self.mem.device_id
        return device

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)


class _Pooled(Memory):
    """A block that goes back to its pool, if that is still there."""

    def __init__(self, block: Memory, free: list[Memory]) -> None:
        self.size, self.device_id, self.ptr = block.size, block.device_id, block.ptr
        self._on_release(free.append, block)


_UNIT = 512  # bytes that a pool's sizes are rounded up to


class MemoryPool:
    """Keeps blocks that were given back, and hands one of equal size out again at once for work on
    the same stream. The work before may still use it; what it held is gone in that order."""

    def __init__(self, allocator: Any = None) -> None:
        self._free: dict[tuple[int, int, int], list[Memory]] = {}

    def malloc(self, size: int) -> MemoryPointer:
        size = max(1, -(-size // _UNIT)) * _UNIT
        stream = get_current_stream()
        free = self._free.setdefault((runtime.getDevice(), stream.ptr, size), [])
        if free:
            block = free.pop()
            sim.sim_submit(stream.ptr, lambda at=block.ptr: sim.sim_mark_unwritten(at, size))
        else:
            block = Memory(size)
        return MemoryPointer(_Pooled(block, free), 0)

    def free_all_blocks(self, stream: Any = None) -> None:
        for free in self._free.values():
            free.clear()

    def used_bytes(self) -> int:
        return self.total_bytes() - self.free_bytes()

    def total_bytes(self) -> int:
        return sim.sim_bytes_in_use(runtime.getDevice())  # type: ignore[no-any-return]

    def free_bytes(self) -> int:
        device = runtime.getDevice()
        return sum(key[2] * len(free) for key, free in self._free.items() if key[0] == device)


def alloc(size: int) -> MemoryPointer:
    return (_local.allocator or _default_alloc)(size)


def _default_alloc(size: int) -> MemoryPointer:
    return MemoryPointer(_Unpooled(size), 0)


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    before, _local.allocator = _local.allocator, allocator
    try:
        yield
    finally:
        _local.allocator = before


def alloc_pinned_memory(size: int) -> Any:
    """Memory of the host that copies are asynchronous from; NumPy takes it as a buffer. CuPy's pool
    hands a block out again as soon as it is let go, whatever copies from it are under way: here it
    is filled with 0xFF then."""
    ptr = sim.sim_host_allocate(size)
    out = (ctypes.c_char * size).from_address(ptr)
    weakref.finalize(out, sim.sim_release, ptr).atexit = False
    return out


# ---- devices ----


class _Runtime:
    CUDARuntimeError = RuntimeError

    @staticmethod
    def getDevice() -> int:
        return sim.sim_current_device()  # type: ignore[no-any-return]

    @staticmethod
    def setDevice(device: int) -> None:
        sim.sim_set_device(device)

    @staticmethod
    def getDeviceCount() -> int:
        return sim.device_count()  # type: ignore[no-any-return]

    @staticmethod
    def deviceSynchronize() -> None:
        sim.synchronize(runtime.getDevice())

    @staticmethod
    def memGetInfo() -> tuple[int, int]:
        total = 1 << 40
        return total - sim.sim_bytes_in_use(sim.sim_current_device()), total

    @staticmethod
    def getDeviceProperties(device: int) -> dict[str, Any]:
        return {"name": b"simulator", "major": 9, "minor": 0, "totalGlobalMem": 1 << 40}

    @staticmethod
    def driverGetVersion() -> int:
        return 13000


runtime = _Runtime()


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = runtime.getDevice() if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> Device:
        runtime.setDevice(self.id)
        return self

    def synchronize(self) -> None:
        with self:
            runtime.deviceSynchronize()

    def __enter__(self) -> Device:
        self._before.append(runtime.getDevice())
        return self.use()

    def __exit__(self, *_: object) -> None:
        runtime.setDevice(self._before.pop())

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


# ---- streams, events, graphs ----


class Stream:
    null: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: Any = None,
    ) -> None:
        self.ptr = 0 if null else sim.sim_create_stream(non_blocking)
        self.device_id = -1 if null else runtime.getDevice()

    def __enter__(self) -> Stream:
        if self.device_id not in (-1, runtime.getDevice()):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with "
                f"the current device ({runtime.getDevice()})"
            )
        _local.streams += (self,)
        return self

    def __exit__(self, *_: object) -> None:
        _local.streams = _local.streams[:-1]

    def use(self) -> Stream:
        _local.streams = (self,)
        return self

    def synchronize(self) -> None:
        sim.sim_stream_synchronize(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        sim.sim_event_record(event.ptr, self.ptr)
        return event

    def wait_event(self, event: Event) -> None:
        sim.sim_wait_event(self.ptr, event.ptr)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        sim.sim_begin_capture(self.ptr)

    def end_capture(self) -> Graph:
        return Graph(sim.sim_end_capture(self.ptr))

    def is_capturing(self) -> bool:
        return sim.sim_is_capturing(self.ptr)  # type: ignore[no-any-return]


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    device = runtime.getDevice() if device_id == -1 else device_id
    for stream in reversed(_local.streams):
        if stream.device_id in (-1, device):
            return stream  # type: ignore[no-any-return]
    return Stream.null


class Event:
    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.ptr = sim.sim_create_event()
        weakref.finalize(self, sim.sim_destroy_event, self.ptr).atexit = False

    @property
    def done(self) -> bool:
        return sim.sim_event_done(self.ptr)  # type: ignore[no-any-return]

    def record(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream()).record(self)

    def synchronize(self) -> None:
        sim.sim_event_synchronize(self.ptr)


class Graph:
    def __init__(self, graph: int) -> None:
        self.graphExec = graph
        weakref.finalize(self, sim.sim_graph_destroy, graph).atexit = False

    def launch(self, stream: Stream | None = None) -> None:
        sim.sim_graph_launch(self.graphExec, (stream or get_current_stream()).ptr)


def synchronize_for(what: str, stream: Stream | None = None) -> None:
    """Waits for the stream, the current one if None is given; RuntimeError while it is captured."""
    stream = stream or get_current_stream()
    if stream.is_capturing():
        raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")
    stream.synchronize()


def is_available() -> bool:
    return True
