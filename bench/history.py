"""What the bench_<stem>.py files share: pytest-benchmark over the cases of `convgrad bench ops`."""

from __future__ import annotations

from typing import Any

import pytest

from convgrad.bench.cases import Case, all_cases
from convgrad.bench.ops import CONVGRAD


def cases(*ops: str) -> Any:
    """A decorator: one benchmark per case whose op starts with one of ``ops``."""
    chosen = [case for case in all_cases() if case.op.startswith(ops)]
    return pytest.mark.parametrize("case", chosen, ids=str)


def run(benchmark: Any, case: Case) -> None:
    benchmark.group = f"{case.op} {case.what}"
    benchmark.extra_info["algorithm"] = case.algorithm()
    benchmark(case.make(CONVGRAD))
