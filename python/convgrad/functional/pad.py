"""To be written: pad."""

__all__: list[str] = []
