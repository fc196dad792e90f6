"""Writes what a real card makes of every wrapper of csrc/cuda/ptx.cuh: tests/golden/ptx_*.npz, with
which test_sim.py compares the simulator.

    cmake ... -DCONVGRAD_CUDA=ON -DCONVGRAD_SELFTEST=ON; python -m tests.write_golden
"""

import argparse
import importlib
from pathlib import Path

import numpy as np

from tests.reference import ptx

GOLDEN = Path(__file__).parent / "golden"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", default="convgrad._cuda_selftest")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    options = parser.parse_args()
    lib = importlib.import_module(options.module)
    options.out.mkdir(exist_ok=True)
    for name, words_in, _ in lib.wrappers():
        x = ptx.inputs(name, words_in)
        y = lib.run_wrapper(name, x)
        path = options.out / f"ptx_{name}.npz"
        np.savez_compressed(path, input=x, output=y, device=lib.device_name())
        print(f"{path}: {lib.device_name()}")


if __name__ == "__main__":
    main()
