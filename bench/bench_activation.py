"""Activations: ``pytest bench/bench_activation.py --benchmark-only``."""

from bench.history import cases, run


@cases("relu", "gelu")
def test_activation(benchmark, case):
    run(benchmark, case)
