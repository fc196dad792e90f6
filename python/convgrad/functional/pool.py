"""To be written: pool."""

__all__: list[str] = []
