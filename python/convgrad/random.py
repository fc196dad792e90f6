"""Random numbers: host draws by NumPy's Philox, and counters for the kernels that draw themselves.

Kernels number their draws by element (Philox counters), so that a mask does not depend on the
number of threads, the instruction set or the device.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

__all__ = ["Generator", "default_generator", "initial_seed", "manual_seed"]

_MASK = (1 << 64) - 1
_STATE_KEYS = frozenset(
    {"seed", "offset", "counter", "key", "buffer", "buffer_pos", "has_uint32", "uinteger"}
)


class Generator:
    """A stream of random numbers with a seed and a state that can be saved.

    ``numpy`` is the ``numpy.random.Generator`` for draws on the host; ``next_state`` hands ranges
    of counters to kernels. Deepcopy and pickle keep the state.
    """

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Starts again from ``seed`` (any int; its lowest 64 bits count). Returns self."""
        self._seed = int(seed) & _MASK
        self._offset = 0
        self._numpy: np.random.Generator | None = None
        return self

    @property
    def numpy(self) -> np.random.Generator:
        """Host draws. Made when first asked for: numpy.random is slow to import."""
        if self._numpy is None:
            self._numpy = np.random.Generator(np.random.Philox(self._seed))
        return self._numpy

    def initial_seed(self) -> int:
        """The seed the stream started from."""
        return self._seed

    def next_state(self, n_elements: int) -> np.ndarray:
        """uint64 [seed, offset] for a kernel that draws ``n_elements`` numbers.

        Element i uses word i % 4 of the Philox block with counter offset + i // 4; the offset then
        moves on by ceil(n_elements / 4) counters.
        """
        if n_elements < 0:
            raise ValueError(f"[next_state] n_elements must be at least 0. Got {n_elements}.")
        with self._lock:
            state = np.array([self._seed, self._offset], np.uint64)
            self._offset = (self._offset + (n_elements + 3) // 4) & _MASK
        return state

    def state_dict(self) -> dict[str, Any]:
        """The whole state in ints, strings and lists (JSON can hold it)."""
        host = self.numpy.bit_generator.state
        return {
            "seed": self._seed,
            "offset": self._offset,
            "counter": [int(v) for v in host["state"]["counter"]],
            "key": [int(v) for v in host["state"]["key"]],
            "buffer": [int(v) for v in host["buffer"]],
            "buffer_pos": int(host["buffer_pos"]),
            "has_uint32": int(host["has_uint32"]),
            "uinteger": int(host["uinteger"]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where ``state_dict()`` was taken; ValueError if an entry is missing."""
        missing = _STATE_KEYS - state.keys()
        if missing:
            raise ValueError(f"[load_state_dict] The state must hold {sorted(missing)}.")
        self.manual_seed(state["seed"])
        self._offset = int(state["offset"])
        self.numpy.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array(state["counter"], np.uint64),
                "key": np.array(state["key"], np.uint64),
            },
            "buffer": np.array(state["buffer"], np.uint64),
            "buffer_pos": state["buffer_pos"],
            "has_uint32": state["has_uint32"],
            "uinteger": state["uinteger"],
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self.load_state_dict(state)


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Starts the default generator again from ``seed``, and returns it."""
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()
