"""Linear layers: ``pytest bench/bench_linear.py --benchmark-only``."""

from bench.history import cases, run


@cases("linear")
def test_linear(benchmark, case):
    run(benchmark, case)
