"""What the compiled GPU code must look like, read with cuobjdump (PyPI: nvidia-cuda-cuobjdump):
no registers spilled to memory, no atomic operations on floating-point numbers (they would add in a
different order each time), and tensor-core instructions in the kernels that are meant to use them.

    python .ci/check_cuda.py python/convgrad/_cuda*.so
"""

import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

# SASS of atomics on floats: RED or ATOM with a type of F16, F32, F64 or packed halves.
FLOAT_ATOMIC = re.compile(r"\b(?:RED|ATOM|ATOMG|ATOMS)\.\S*(?:F16|F32|F64|BF16)")
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA)\.\S+")
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


def resources(module: str) -> dict[str, dict[str, int]]:
    """Per kernel: registers, bytes of stack and of local memory, shared memory."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in output_of("--dump-resource-usage", module).splitlines():
        if match := re.search(r"Function (\S+?):", line):
            name = match[1]
        elif name and "REG:" in line:
            found[name] = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
    return found


def instructions(module: str) -> tuple[dict[str, set[str]], list[str]]:
    """Per kernel its tensor-core instructions; and every atomic on floats, with its kernel."""
    tensor: dict[str, set[str]] = defaultdict(set)
    atomics = []
    name = ""
    for line in output_of("--dump-sass", module).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            name = match[1]
            tensor[name] = set()
        elif match := TENSOR_CORE.search(line):
            tensor[name].add(match[0])
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
    print(f"{Path(module).name}: {len(usage)} kernels")
    wrong = [f"atomic on floats in {a}" for a in atomics]
    for name, used in sorted(usage.items(), key=lambda item: -item[1]["REG"]):
        on_tensor_cores = MEANT_FOR_TENSOR_CORES in name
        if on_tensor_cores:
            kinds = ", ".join(sorted(tensor[name])) or "none"
            print(f"  {used['REG']:3d} registers  {kinds}  {short(name)}")
            if tensor[name] != {meant(name)}:
                wrong.append(f"{kinds} for {meant(name)} in {short(name)}")
        if used.get("LOCAL", 0) or (on_tensor_cores and used.get("STACK", 0)):
            wrong.append(f"{used} in {short(name)}: registers are spilled")
    stacks = {short(n): u["STACK"] for n, u in usage.items() if u.get("STACK", 0)}
    for name, size in stacks.items():
        print(f"  {size} bytes of stack: {name}")
    print(*wrong, sep="\n") if wrong else print("no spills, no atomics on floats")
    return bool(wrong) or not usage


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
