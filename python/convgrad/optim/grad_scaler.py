"""The loss scale of training in float16."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from convgrad.backend import Backend, host, of
from convgrad.optim.optimizer import Optimizer
from convgrad.tensor import Tensor

__all__ = ["GradScaler"]

Array = Any


class _Seen:
    """What has happened to an optimizer since the last update, and whether its gradients had an
    infinity or NaN: 0 or 1 on their device, None before the first look."""

    def __init__(self) -> None:
        self.unscaled = self.stepped = False
        self.found: Array | None = None


class GradScaler:
    """Multiplies the loss, so that small gradients do not vanish in float16, and divides the
    gradients before the step, as ``torch.amp.GradScaler``::

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    A step whose gradients hold an infinity or NaN changes nothing, and the scale is multiplied by
    ``backoff_factor``; after ``growth_interval`` steps without, by ``growth_factor``. Scale and
    finding live on the device, and SGD, Adam and AdamW look at the finding there: the host waits
    for nothing. For other optimizers :meth:`step` waits, and calls them or not.

    SGD with momentum: after a first step that was skipped, the next one adds its gradient times
    1 - dampening, where PyTorch's adds all of it.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not growth_factor > 1:
            raise ValueError(f"[GradScaler] growth_factor must be > 1. Got {growth_factor}.")
        if not 0 < backoff_factor < 1:
            raise ValueError(
                f"[GradScaler] backoff_factor must be in (0, 1). Got {backoff_factor}."
            )
        if not init_scale > 0:
            raise ValueError(f"[GradScaler] init_scale must be > 0. Got {init_scale}.")
        self._first_scale, self._first_tracker = float(init_scale), 0
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval = growth_interval
        self._enabled = enabled
        # Made where the first loss or gradient is, and changed in place from then on.
        self._scale: Tensor | None = None
        self._tracker: Array | None = None
        self._seen: weakref.WeakKeyDictionary[Optimizer, _Seen] = weakref.WeakKeyDictionary()

    def _on(self, backend: Backend) -> Tensor:
        """The scale, float32 without axes, on this device."""
        if self._scale is None:
            self._scale = Tensor(backend.put(np.full((), self._first_scale, np.float32)))
            self._tracker = backend.put(np.full((), self._first_tracker, np.int32))
        return self._scale

    def scale(self, outputs: Any) -> Any:
        """A tensor, or an iterable of them, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._on(of(outputs.array))
        if isinstance(outputs, Iterable):
            scaled = [self.scale(t) for t in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        raise TypeError(
            f"[GradScaler.scale] outputs must be a tensor or an iterable of them. Got {outputs!r}."
        )

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divides the gradients of the optimizer's parameters by the scale, so that they can be
        clipped; :meth:`step` does it otherwise. RuntimeError twice between updates."""
        if not self._enabled:
            return
        seen = self._seen.setdefault(optimizer, _Seen())
        if seen.unscaled or seen.stepped:
            done = "step()" if seen.stepped else "unscale_()"
            raise RuntimeError(
                "[GradScaler.unscale_] The gradients of an optimizer are unscaled once between "
                f"updates. Got a call after {done}."
            )
        gradients: defaultdict[np.dtype[Any], list[Array]] = defaultdict(list)
        for p in optimizer._parameters():
            if p.grad is not None:
                gradients[p.grad.dtype].append(p.grad.array)
        if "float16" in [dtype.name for dtype in gradients]:
            raise ValueError(
                "[GradScaler.unscale_] Gradients must be float32: keep the parameters in float32. "
                "Got float16."
            )
        for arrays in gradients.values():
            self._unscale(seen, arrays)
        seen.unscaled = True

    def _unscale(self, seen: _Seen, arrays: list[Array]) -> None:
        backend = of(arrays[0])
        scale = self._on(backend).array
        if seen.found is None:
            seen.found = backend.put(np.zeros(()))
        with backend.current(), np.errstate(all="ignore"):
            largest = backend.lib.list_norm(arrays, "abs_max", 0.0)  # NaN if one is
            finite = backend.xp.isfinite(largest)
            seen.found[...] = backend.xp.maximum(seen.found, 1.0 - finite)
            # A power of two unless the user chose another: then the quotient is exact.
            factor = backend.xp.reciprocal(scale.astype(np.float64))
            backend.lib.list_scale(arrays, backend.xp.asarray(factor))

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Unscales the gradients unless that is done, and ``optimizer.step(*args, **kwargs)`` if
        all of them are finite. RuntimeError twice between updates."""
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        seen = self._seen.setdefault(optimizer, _Seen())
        if seen.stepped:
            raise RuntimeError(
                "[GradScaler.step] An optimizer is stepped once between updates. Got a second call."
            )
        if not seen.unscaled:
            self.unscale_(optimizer)
        seen.stepped = True
        if seen.found is None:
            raise RuntimeError("[GradScaler.step] No parameter of the optimizer has a gradient.")
        if not optimizer._heeds_found_inf:
            return None if host(seen.found) else optimizer.step(*args, **kwargs)
        optimizer.found_inf = seen.found
        try:
            return optimizer.step(*args, **kwargs)
        finally:
            optimizer.found_inf = None

    def update(self, new_scale: float | None = None) -> None:
        """The scale of the next iteration: by what was found since the last update, or the one
        given. RuntimeError if no optimizer has been unscaled or stepped."""
        if not self._enabled:
            return
        found = [s.found for s in self._seen.values() if s.unscaled and s.found is not None]
        if new_scale is not None:
            self._set(float(new_scale))
        elif not found:
            raise RuntimeError(
                "[GradScaler.update] There must have been a step() or unscale_() since the last "
                "update. Got none."
            )
        else:
            self._grow(found)
        for array in found:
            array[...] = 0
        for seen in self._seen.values():
            seen.unscaled = seen.stepped = False

    def _set(self, value: float) -> None:
        if self._scale is None:
            self._first_scale = value
        else:
            self._scale.fill_(value)

    def _grow(self, found: list[Array]) -> None:
        assert self._scale is not None and self._tracker is not None
        backend = of(found[0])
        xp, scale = backend.xp, self._scale.array
        with backend.current(), np.errstate(over="ignore"):
            bad = found[0]
            for other in found[1:]:
                bad = xp.maximum(bad, other)
            bad = bad != 0
            steps = self._tracker + 1
            grows = steps >= self._growth_interval
            grown = scale * np.float32(self._growth_factor)
            grown = xp.where(grows & xp.isfinite(grown), grown, scale)
            scale[...] = xp.where(bad, scale * np.float32(self._backoff_factor), grown)
            self._tracker[...] = xp.where(bad | grows, 0, steps)
        self._scale.version[0] += 1

    def get_scale(self) -> float:
        """The scale; waits for the device."""
        if not self._enabled:
            return 1.0
        return self._first_scale if self._scale is None else float(host(self._scale.array))

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._growth_interval = new_interval

    def is_enabled(self) -> bool:
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """Numbers, with PyTorch's keys; {} if not enabled."""
        if not self._enabled:
            return {}
        tracker = self._first_tracker if self._tracker is None else int(host(self._tracker))
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave, PyTorch's too."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "[GradScaler.load_state_dict] The state must be that of an enabled scaler. Got {}."
            )
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._first_tracker = int(state_dict["_growth_tracker"])
        self._set(float(state_dict["scale"]))
        if self._tracker is not None:
            self._tracker[...] = self._first_tracker
