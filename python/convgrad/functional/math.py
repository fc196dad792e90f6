"""To be written: math."""

__all__: list[str] = []
