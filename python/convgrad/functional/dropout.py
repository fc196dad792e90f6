"""To be written: dropout."""

__all__: list[str] = []
