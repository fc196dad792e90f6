"""Pooling: ``pytest bench/bench_pool.py --benchmark-only``."""

from bench.history import cases, run


@cases("max_pool", "avg_pool")
def test_pool(benchmark, case):
    run(benchmark, case)
