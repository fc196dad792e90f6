"""Normalisation: ``pytest bench/bench_norm.py --benchmark-only``."""

from bench.history import cases, run


@cases("batch_norm")
def test_norm(benchmark, case):
    run(benchmark, case)
