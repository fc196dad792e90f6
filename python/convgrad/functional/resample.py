"""To be written: resample."""

__all__: list[str] = []
