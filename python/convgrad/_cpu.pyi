"""The bindings of csrc/python for the CPU; they check their arguments themselves."""

from typing import Any

def __getattr__(name: str) -> Any: ...
