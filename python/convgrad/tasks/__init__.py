"""Data sets with their networks and settings: what ``convgrad train <task>`` trains."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["TASKS", "get"]

TASKS = ("digits", "mnist", "texture")


def get(name: str) -> Any:
    """The module of a task; ValueError for an unknown name."""
    if name not in TASKS:
        raise ValueError(f"[tasks] The tasks are {', '.join(TASKS)}. Got {name!r}.")
    return importlib.import_module(f"convgrad.tasks.{name}")
