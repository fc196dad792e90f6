"""To be written: local."""

__all__: list[str] = []
