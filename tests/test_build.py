"""The build: instruction sets, symbols, import, what a wheel would hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import convgrad as cg
from convgrad import _cpu

pytestmark = pytest.mark.cpu("of instruction sets and the CPU's library")

ISAS = _cpu.isa_names()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_loads(isa: str) -> None:
    done = run("from convgrad import _cpu; print(_cpu.isa_name())", CONVGRAD_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_unknown_instruction_set_is_an_error() -> None:
    done = run("import convgrad", CONVGRAD_ISA="avx1024")
    assert done.returncode != 0
    assert "CONVGRAD_ISA must be one of" in done.stderr and "'avx1024'" in done.stderr


@pytest.mark.skipif("avx512" in ISAS, reason="this processor has AVX-512")
def test_unsupported_instruction_set_is_an_error() -> None:
    done = run("import convgrad", CONVGRAD_ISA="avx512")
    assert done.returncode != 0 and "'avx512'" in done.stderr


def test_the_widest_real_instruction_set_is_the_default() -> None:
    done = run("from convgrad import _cpu; print(_cpu.isa_name())", CONVGRAD_ISA="")
    assert done.stdout.strip() == [isa for isa in ISAS if isa != "avx512-emulated"][-1]


def test_number_of_threads_from_the_environment() -> None:
    code = "import convgrad as cg; print(cg.get_num_threads())"
    assert run(code, CONVGRAD_NUM_THREADS="3").stdout.strip() == "3"
    for wrong in ("0", "two", "-1", "100000"):
        done = run(code, CONVGRAD_NUM_THREADS=wrong)
        assert done.returncode != 0 and f"Got '{wrong}'" in done.stderr
    assert int(run(code, CONVGRAD_NUM_THREADS="").stdout) <= len(os.sched_getaffinity(0))


def test_set_num_threads_checks_its_argument() -> None:
    for wrong in (0, -3, 1000):
        with pytest.raises(ValueError, match=f"Got {wrong}"):
            cg.set_num_threads(wrong)


def test_no_weak_symbol_escapes_from_the_kernels() -> None:
    """A function compiled for one instruction set must not be callable from another's code.

    Kernels live in anonymous namespaces, and their entry points carry the instruction set in their
    namespace; anything else with vector code in it could be picked by the linker for everyone.
    """
    objects = [o for o in kernel_objects() if "table.cpp" not in o.name]
    if not objects:
        assert not os.environ.get("CI"), "CI builds in the tree, so there must be object files"
        pytest.skip("no object files: not built in place (.ci/run does)")
    for path in objects:
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        for line in listing.splitlines():
            kind, name = line.split(maxsplit=2)[1:]
            assert kind not in "WwVvu", f"{path.name}: weak symbol {name}"
            isa = path.parts[path.parts.index("CMakeFiles") + 1][len("kernels_") : -len(".dir")]
            assert kind.islower() or f"convgrad::cpu::{isa}::" in name, f"{path.name}: {line}"


def kernel_objects() -> list[Path]:
    root = Path(__file__).parents[1] / "build"
    return [o for o in root.rglob("*.o") if any(p.startswith("kernels_") for p in o.parts)]


def test_import_is_light() -> None:
    """Nothing heavy is imported: the extras come when they are used."""
    code = "import sys, json, convgrad; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(run(code).stdout))
    heavy = {"torch", "sklearn", "matplotlib", "scipy", "tqdm", "cupy", "safetensors", "PIL"}
    assert not modules & heavy


@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd lists what a library links")
def test_the_extension_links_only_system_libraries() -> None:
    listing = subprocess.run(["ldd", _cpu.__file__], capture_output=True, text=True, check=True)
    allowed = ("linux-vdso", "libstdc++", "libm.", "libgcc_s", "libc.", "libpthread", "ld-linux")
    for line in listing.stdout.splitlines():
        assert any(name in line for name in allowed), line
