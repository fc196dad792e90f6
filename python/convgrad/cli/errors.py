"""What the user can put right."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Shown as one line, without a traceback; the command ends with exit code 1."""
