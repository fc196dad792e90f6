"""Packages that convgrad uses when they are installed, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["MissingPackageError", "require"]


class MissingPackageError(ImportError):
    """A package of one of convgrad's extras is not installed."""


def require(name: str, extra: str = "demo") -> ModuleType:
    """The module ``name``; MissingPackageError says which extra to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise  # the package is there, but something that it imports is not
        package = name.split(".")[0]
        raise MissingPackageError(
            f"[convgrad] This needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'convgrad[{extra}]'."
        ) from None
