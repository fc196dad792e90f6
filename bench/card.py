"""Everything a real GPU is for, in one program: build, tests, sanitizer, training, benchmarks.

    python -m bench.card                     # all parts, some 10 minutes
    python -m bench.card tests digits        # some of them
    python -m bench.card --out folder        # logs and results there (default: build/card)

It needs no network: PyTorch, CuPy, pytest, CMake, Ninja, pybind11 and nvcc are there already. Every
part is tried, whatever became of those before; a table of all of them comes last, and a dated JSON
file with the device, its driver and the commit lies beside the logs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "card-cmake"
# On the card; the simulator's tests and those of the CPU alone are left out by the suite itself.
ON_CARD = {"CONVGRAD_TEST_DEVICE": "cuda", "PYTHONPATH": f"{ROOT / 'python'}:{ROOT}"}
# compute-sanitizer slows kernels 10 to 100 times: the quick tests of every kernel file.
SANITIZED = ("-m", "quick and kernel")

DIGITS_EPOCHS = 10
LOSS_TOLERANCE = 1e-3  # of the first epoch: rounding has not grown yet

Result = dict[str, Any]


class Card:
    """Runs commands in the checkout, each with a log of its own."""

    def __init__(self, out: Path, limit: float) -> None:
        self.out = out
        self.limit = limit

    def run(self, name: str, *command: str) -> Result:
        """{"ok", "seconds", "last": the log's last line}; the log is OUT/<name>.log."""
        start = time.perf_counter()
        log = self.out / f"{name}.log"
        with log.open("w", encoding="utf-8") as file:
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=os.environ | ON_CARD, stdout=file,
                    stderr=subprocess.STDOUT, timeout=self.limit, check=False,
                ).returncode  # fmt: skip
            except (subprocess.TimeoutExpired, OSError) as error:
                file.write(f"\n{error}\n")
                code = -1
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else ""
        return {"ok": code == 0, "seconds": time.perf_counter() - start, "last": last[-120:]}

    def python(self, name: str, *arguments: str) -> Result:
        return self.run(name, sys.executable, *arguments)


def build(card: Card) -> Result:
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    configured = card.run(
        "configure", "cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DCONVGRAD_CUDA=ON",
        "-DCONVGRAD_SELFTEST=ON", "-DCONVGRAD_LAB=ON",
        f"-DCMAKE_INSTALL_PREFIX={ROOT / 'python'}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11}", "-DCONVGRAD_ISAS=baseline;avx2;avx512",
    )  # fmt: skip
    if not configured["ok"]:
        return configured
    built = card.run("build", "cmake", "--build", str(BUILD))
    return card.run("install", "cmake", "--install", str(BUILD)) if built["ok"] else built


def tests(card: Card) -> Result:
    return card.python("tests", "-m", "pytest", "-q", "-n", "4", "tests")


def sanitizer(card: Card) -> Result:
    found: Result = {"ok": True, "seconds": 0.0, "last": ""}
    for tool in ("memcheck", "racecheck"):
        done = card.run(
            tool, "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable,
            "-m", "pytest", "-q", *SANITIZED, "tests",
        )  # fmt: skip
        found["ok"] = found["ok"] and done["ok"]
        found["seconds"] += done["seconds"]
        found["last"] = f"{found['last']} {tool}: {done['last']}".strip()
    return found


def digits(card: Card) -> Result:
    """Trains on the card and on the CPU from equal weights: the losses have to agree."""
    rows, found = {}, {"ok": True, "seconds": 0.0}
    for device in ("cpu", "cuda"):
        folder = card.out / f"digits-{device}"
        shutil.rmtree(folder, ignore_errors=True)
        done = card.python(
            f"digits-{device}", "-m", "convgrad", "train", "digits", "--model", "cnn", "--epochs",
            str(DIGITS_EPOCHS), "--device", device, "--out", str(folder),
        )  # fmt: skip
        if not done["ok"]:
            return done
        found["seconds"] += done["seconds"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows[device] = [json.loads(line) for line in lines]
    first = [rows[device][0]["loss"] for device in rows]
    accuracy = [rows[device][-1]["accuracy"] for device in rows]
    found["ok"] = abs(first[0] - first[1]) <= LOSS_TOLERANCE * first[0] and min(accuracy) > 0.97
    found["last"] = f"cpu, cuda: loss of epoch 1 {first}, test accuracy {accuracy}"
    return found


def training(card: Card) -> Result:
    return _bench(card, "training", "training")


def training_tf32(card: Card) -> Result:
    return _bench(card, "training_tf32", "training", "--precision", "tf32")


def ops(card: Card) -> Result:
    return _bench(card, "ops", "ops")


def ops_tf32(card: Card) -> Result:
    return _bench(card, "ops_tf32", "ops", "--precision", "tf32")


def lab(card: Card) -> Result:
    return card.python("lab", "-m", "bench.lab")


def _bench(card: Card, name: str, *arguments: str) -> Result:
    return card.python(
        f"bench_{name}", "-m", "convgrad", "bench", *arguments, "--device", "cuda",
        "--json", str(card.out / f"bench_{name}.json"), "--rounds", "3", "--seconds", "0.3",
    )  # fmt: skip


PARTS: dict[str, Callable[[Card], Result]] = {
    part.__name__: part
    for part in (build, tests, sanitizer, digits, training, training_tf32, ops, ops_tf32, lab)
}


def about() -> dict[str, str]:
    """The card, its driver and this commit, each "?" where it cannot be told."""

    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "?"
        return done.stdout.strip()

    card = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": card,
        "nvcc": said("nvcc", "--version").rsplit("\n", 1)[-1],
        "commit": said("git", "describe", "--always", "--dirty"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "card", metavar="DIR")
    parser.add_argument("--limit", type=float, default=240, metavar="S", help="of one command")
    args = parser.parse_args()
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    card, results = Card(args.out.resolve(), args.limit), {}
    for name in args.parts or PARTS:
        results[name] = PARTS[name](card)
        print(f"{name}: {results[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    found = {"about": about(), "parts": results}
    path = args.out / f"card-{found['about']['date']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(*(f"{key}: {value}" for key, value in found["about"].items()), sep="\n")
    for name, result in results.items():
        verdict = "ok" if result["ok"] else "FAILED"
        print(f"{name:14s} {verdict:7s} {result['seconds']:6.1f} s  {result['last']}")
    return int(not all(result["ok"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
