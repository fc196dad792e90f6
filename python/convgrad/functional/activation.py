"""To be written: activation."""

__all__: list[str] = []
