"""Losses: ``pytest bench/bench_loss.py --benchmark-only``."""

from bench.history import cases, run


@cases("cross_entropy")
def test_loss(benchmark, case):
    run(benchmark, case)
