"""To be written: norm."""

__all__: list[str] = []
