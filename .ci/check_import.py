"""`import convgrad` takes at most 100 ms beyond `import numpy`: medians of fresh processes."""

import statistics
import subprocess
import sys
import time

LIMIT = 0.1


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


seconds("convgrad")
pairs = [(seconds("numpy"), seconds("convgrad")) for _ in range(9)]
extra = statistics.median(c - n for n, c in pairs)
print(f"import convgrad: {1e3 * extra:.0f} ms beyond numpy (limit {1e3 * LIMIT:.0f})")
sys.exit(extra > LIMIT)
