"""To be written: softmax."""

__all__: list[str] = []
