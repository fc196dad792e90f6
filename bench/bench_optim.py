"""Optimizers: ``pytest bench/bench_optim.py --benchmark-only``."""

from bench.history import cases, run


@cases("sgd")
def test_optim(benchmark, case):
    run(benchmark, case)
