"""Which lines of the CUDA kernels the test suite runs in the simulator.

    cmake ... -DCONVGRAD_CUDA_SIM=ON -DCONVGRAD_SIM_COVERAGE=ON, and install
    CONVGRAD_CUDA_SIM=1 CONVGRAD_TEST_DEVICE=cuda CONVGRAD_SIM_CHECK=0 pytest ...
    python .ci/sim_coverage.py BUILD_DIRECTORY

Counters are host memory, which the checks of accesses refuse to kernels: hence CHECK=0. A line
counts once, however many templates hold it.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path


def counts(build):
    """{file: {line: times run}} for csrc/cuda, the simulator's own files excepted."""
    lines = defaultdict(lambda: defaultdict(int))
    with tempfile.TemporaryDirectory() as directory:
        data = [str(path.resolve()) for path in Path(build).rglob("*.gcda")]
        subprocess.run(
            ["gcov", "--json-format", "--preserve-paths", *data],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for report in Path(directory).glob("*.gcov.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                _, found, name = file["file"].rpartition("csrc/cuda/")
                if not found or name.startswith("sim/"):
                    continue
                for line in file["lines"]:
                    lines[name][line["line_number"]] += line["count"]
    return lines


def ranges(lines, missed):
    """ "3-9 12": runs of missed lines, with no executed line between."""
    runs = []
    for previous, line in zip([None, *lines], lines):
        if line in missed:
            if previous in missed:
                runs[-1][1] = line
            else:
                runs.append([line, line])
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def main(build):
    total = run = 0
    for name, lines in sorted(counts(build).items()):
        missed = {line for line, count in lines.items() if count == 0}
        total += len(lines)
        run += len(lines) - len(missed)
        share = 100 * (1 - len(missed) / len(lines))
        print(f"{share:5.1f} % of {len(lines):4} lines  {name}  {ranges(sorted(lines), missed)}")
    print(f"{100 * run / total:5.1f} % of {total:4} lines  in all")


if __name__ == "__main__":
    main(*sys.argv[1:])
