"""Data sets with their networks and settings: what ``convgrad train <task>`` trains."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["CLASSIFICATION", "get"]

CLASSIFICATION = ("digits", "mnist", "texture")


def get(name: str) -> Any:
    """The module of a classification task; ValueError for another name."""
    if name not in CLASSIFICATION:
        raise ValueError(
            f"[tasks] The classification tasks are {', '.join(CLASSIFICATION)}. Got {name!r}."
        )
    return importlib.import_module(f"convgrad.tasks.{name}")
