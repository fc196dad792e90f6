"""The wheel is at most 5 MB and holds the package and its one extension, nothing else."""

import sys
import zipfile
from pathlib import Path

LIMIT = 5 * 10**6

wheel = Path(sys.argv[1])
size = wheel.stat().st_size
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
strange = [n for n in names if not n.startswith(("convgrad/", "convgrad-"))]
print(f"{wheel.name}: {size / 1e6:.2f} MB (limit {LIMIT / 1e6:.0f}), {len(names)} files")
if strange:
    print("unexpected files:", *strange)
sys.exit(size > LIMIT or bool(strange) or "convgrad/py.typed" not in names)
