"""To be written: loss."""

__all__: list[str] = []
