"""What the compiled GPU code must look like, read with cuobjdump (PyPI: nvidia-cuda-cuobjdump):
no registers spilled to memory, no atomic operations on floating-point numbers (they would add in a
different order each time), and tensor-core instructions in the kernels that are meant to use them.
Of every architecture that the module holds. And that a wheel of six keeps to its 25 MB.

    python .ci/check_cuda.py python/convgrad/_cuda*.so
"""

import re
import subprocess
import sys
import sysconfig
import zlib
from collections import defaultdict
from pathlib import Path

# SASS of atomics on floats: RED or ATOM with a type of F16, F32, F64 or packed halves.
FLOAT_ATOMIC = re.compile(r"\b(?:RED|ATOM|ATOMG|ATOMS)\.\S*(?:F16|F32|F64|BF16)")
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA)\.\S+")
# Zipped, per architecture: six are 13 MB and one is 3 (2026-11-24), of the 25 MB that they may be.
MOST_BYTES = 5_000_000
# Kernels with this in their name are written for the tensor cores.
MEANT_FOR_TENSOR_CORES = "mma"
# The type in their name says by which instruction.
MEANT_INSTRUCTION = {"bfloat16": "HMMA.16816.F32.BF16", "float16": "HMMA.16816.F32"}
FLOAT_INSTRUCTION = "HMMA.1688.F32.TF32"


def cuobjdump() -> str:
    """The program's path: in the environment's nvidia package, or on PATH."""
    packaged = Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin/cuobjdump")
    return str(packaged) if packaged.exists() else "cuobjdump"


def output_of(option: str, module: str) -> str:
    done = subprocess.run([cuobjdump(), option, module], check=True, capture_output=True, text=True)
    return done.stdout


def short(mangled: str) -> str:
    """A kernel's name without what the compiler adds for anonymous namespaces."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True)
    name = (done.stdout or mangled).strip()
    return re.sub(r"convgrad::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)[:110]


Kernel = tuple[str, str]  # its architecture and name


def resources(module: str) -> dict[Kernel, dict[str, int]]:
    """Per kernel: registers, bytes of stack and of local memory, shared memory."""
    found: dict[Kernel, dict[str, int]] = {}
    arch = name = ""
    for line in output_of("--dump-resource-usage", module).splitlines():
        if match := re.search(r"^arch = (\S+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+?):", line):
            name = match[1]
        elif name and "REG:" in line:
            found[arch, name] = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
    return found


def instructions(module: str) -> tuple[dict[Kernel, set[str]], list[str]]:
    """Per kernel its tensor-core instructions; and every atomic on floats, with its kernel."""
    tensor: dict[Kernel, set[str]] = defaultdict(set)
    atomics = []
    arch = name = ""
    for line in output_of("--dump-sass", module).splitlines():
        if match := re.search(r"^\s*arch = (\S+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            name = match[1]
            tensor[arch, name] = set()
        elif match := TENSOR_CORE.search(line):
            tensor[arch, name].add(match[0])
        elif FLOAT_ATOMIC.search(line):
            atomics.append(f"{short(name)}: {line.strip()[:80]}")
    return tensor, atomics


def meant(name: str) -> str:
    """The tensor-core instruction that a kernel of this (mangled) name is for."""
    types = re.findall(r"(b?float16)E", name)
    return MEANT_INSTRUCTION[types[0]] if types else FLOAT_INSTRUCTION


def main(module: str) -> int:
    usage = resources(module)
    tensor, atomics = instructions(module)
    archs = sorted({arch for arch, _ in usage})
    print(f"{Path(module).name}: {len(usage)} kernels, of {', '.join(archs) or 'none'}")
    wrong = [f"atomic on floats in {a}" for a in atomics]
    size = len(zlib.compress(Path(module).read_bytes())) // max(1, len(archs))
    print(f"{size / 1e6:.1f} MB zipped per architecture")
    if size > MOST_BYTES:
        wrong.append(f"{size} bytes per architecture are more than {MOST_BYTES}")
    for kernel, used in sorted(usage.items(), key=lambda item: -item[1]["REG"]):
        arch, name = kernel
        on_tensor_cores = MEANT_FOR_TENSOR_CORES in name
        if on_tensor_cores:
            kinds = ", ".join(sorted(tensor[kernel])) or "none"
            print(f"  {arch} {used['REG']:3d} registers  {kinds}  {short(name)}")
            if tensor[kernel] != {meant(name)}:
                wrong.append(f"{kinds} for {meant(name)} in {short(name)} for {arch}")
        if used.get("LOCAL", 0) or (on_tensor_cores and used.get("STACK", 0)):
            wrong.append(f"{used} in {short(name)} for {arch}: registers are spilled")
    for (arch, name), used in usage.items():
        if used.get("STACK", 0):
            print(f"  {arch} {used['STACK']} bytes of stack: {short(name)}")
    print(*wrong, sep="\n") if wrong else print("no spills, no atomics on floats")
    return bool(wrong) or not usage


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
