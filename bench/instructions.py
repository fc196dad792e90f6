"""Counts the instructions of a few kernels: a regression check that a noisy machine cannot fool.

``python -m bench.instructions`` runs each kernel once under valgrind's callgrind, with AVX2
(valgrind knows no AVX-512) and one thread, and compares with the counts of instructions.json for
the compiler that built the extension. More than 5 % above is a failure, exit code 1. ``--update``
writes the counts. Without valgrind, or without counts for the compiler, it says so and ends with 0.

Fewer instructions are not always faster, so a count is no measure of speed: but the same code gives
the same count, and a loop that lost its vectors or spills its registers shows at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

EXPECTED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
ISA = "avx2"

# ---- inside valgrind ----

# A client request of valgrind.h for x86-64, as a function of the address of its six arguments:
# mov rax, rdi; xor edx, edx; four rotations of rdi by 128 bits in all; xchg rbx, rbx; mov rax, rdx.
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
TOOL = ord("C") << 24 | ord("T") << 16
ZERO_STATS, DUMP_STATS_AT, START_INSTRUMENTATION = TOOL + 1, TOOL + 3, TOOL + 4


def _requester() -> Callable[..., int]:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(REQUEST)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def request(*words: int) -> int:
        return function((ctypes.c_uint64 * 6)(*words))

    request.code = code  # type: ignore[attr-defined]  # keeps the page
    return request


def kernels() -> dict[str, Callable[[], object]]:
    """Each kernel on so much data that the Python around it hardly counts (about 50,000)."""
    import convgrad as cg
    from convgrad.bench.cases import all_cases, conv_cases
    from convgrad.bench.ops import CONVGRAD

    cg.set_num_threads(1)
    conv = conv_cases("3x3 32->32 @16, batch 4", (4, 32, 16, 16), (32, 32, 3, 3))
    cases = {str(case): case for case in (*conv, *all_cases())}
    return {
        name: _forced(algorithm, cases[case].make(CONVGRAD))
        for name, (case, algorithm) in KERNELS.items()
    }


def _forced(algorithm: str, call: Callable[[], object]) -> Callable[[], object]:
    from convgrad import _cpu

    def run() -> None:
        _cpu.force_conv_algorithm(algorithm)
        call()
        _cpu.force_conv_algorithm("auto")

    return run


CONV = "conv2d 3x3 32->32 @16, batch 4"
KERNELS = {
    "conv forward, direct": (f"{CONV} forward", "tile"),
    "conv forward, winograd": (f"{CONV} forward", "winograd"),
    "conv backward_input": (f"{CONV} backward_input", "auto"),
    "conv backward_weight": (f"{CONV} backward_weight", "auto"),
    "max_pool forward": ("max_pool2d 2x2 32 @32, batch 64 forward", "auto"),
    "max_pool backward": ("max_pool2d 2x2 32 @32, batch 64 backward", "auto"),
    "batch_norm forward": ("batch_norm 64x32x32x32 forward", "auto"),
    "batch_norm backward": ("batch_norm 64x32x32x32 backward", "auto"),
    "cross_entropy forward": ("cross_entropy 4x4x128x128, class per pixel forward", "auto"),
    "linear forward": ("linear 784->256, batch 64 forward", "auto"),
}


def child() -> None:
    request = _requester()
    calls = kernels()
    for call in calls.values():
        call()  # fills the block cache
    request(START_INSTRUMENTATION)
    for name, call in calls.items():
        request(ZERO_STATS)
        call()
        text = ctypes.create_string_buffer(name.encode())
        request(DUMP_STATS_AT, ctypes.addressof(text))


# ---- outside ----


def count() -> dict[str, int]:
    """Instructions by kernel, from the files that callgrind leaves."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                "valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet",
                f"--callgrind-out-file={folder}/out", sys.executable, "-m", "bench.instructions",
                "--child",
            ],
            check=True,
            env=os.environ | {"CONVGRAD_ISA": ISA, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        counts = {}
        for path in Path(folder).iterdir():
            text = path.read_text(encoding="utf-8")
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            if name and total:
                counts[name[1]] = int(total[1])
    if counts.keys() != KERNELS.keys():
        raise SystemExit(f"[instructions] callgrind counted {sorted(counts)}.")
    return {name: counts[name] for name in KERNELS}


def compiler() -> str:
    """Name and version of the compiler of the extension, as it left them in the file."""
    from convgrad import _cpu

    found = re.search(rb"GCC: \([^)]*\) ([\d.]+)|clang version ([\d.]+)",
                      Path(_cpu.__file__).read_bytes())  # fmt: skip
    if found is None:
        return "unknown"
    name, version = ("gcc", found[1]) if found[1] else ("clang", found[2])
    return f"{name} {version.decode().split('.')[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the counts")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child()
        return 0
    if shutil.which("valgrind") is None:
        print("no valgrind here: instructions are not counted")
        return 0
    everyone = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    expected = everyone.get(compiler(), {})
    if not expected and not args.update:
        print(f"no counts for {compiler()}: instructions are not compared; --update writes them")
        return 0
    failed = 0
    counts = count()
    for name, n in counts.items():
        before = expected.get(name)
        change = n / before - 1 if before else 0.0
        wrong = change > TOLERANCE
        failed += wrong
        verdict = "MORE" if wrong else "fewer: --update" if change < -TOLERANCE else ""
        print(f"{name:26} {n / 1e6:9.2f} M  {change:+7.1%}  {verdict}".rstrip())
    if args.update:
        EXPECTED.write_text(json.dumps(everyone | {compiler(): counts}, indent=1) + "\n")
        return 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
