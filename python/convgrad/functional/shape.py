"""To be written: shape."""

__all__: list[str] = []
