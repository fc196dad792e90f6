"""Convolution and transposed convolution: ``pytest bench/bench_conv.py --benchmark-only``."""

from bench.history import cases, run


@cases("conv")
def test_conv(benchmark, case):
    run(benchmark, case)
