"""The kernel lab: a convolution from naive to fast, each version checked before it is timed."""
