"""Scripts written for PyTorch (tests/scripts) run on convgrad after changing their imports only."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.large("trains networks")

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.py"))


def change_imports(source):
    """The script with convgrad's names in its import lines; no other line changes."""

    def change(match):
        line = match.group()
        line = line.replace("torch.nn.functional", "convgrad.functional")
        line = line.replace("torch.utils.data", "convgrad.data")
        line = re.sub(r"^import torch$", "import convgrad as torch", line)
        return re.sub(r"^(import|from) torch", r"\1 convgrad", line)

    return re.sub(r"^(import|from) torch\b.*$", change, source, flags=re.MULTILINE)


def load(path, source):
    module = ModuleType(path.stem)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def assert_same(name, ours, theirs):
    if isinstance(theirs, (str, int)) or (isinstance(theirs, list) and isinstance(theirs[0], str)):
        assert ours == theirs, name
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


def test_only_import_lines_change():
    assert len(SCRIPTS) == 8
    for path in SCRIPTS:
        before = path.read_text().split("\n")
        after = change_imports(path.read_text()).split("\n")
        changed = [(a, b) for a, b in zip(before, after) if a != b]
        assert len(before) == len(after)
        assert [a for a, _ in changed][:3] == [
            "import torch",
            "import torch.nn as nn",
            "import torch.nn.functional as F",
        ]
        assert all(re.match("(import|from) torch", a) and "convgrad" in b for a, b in changed)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_gives_the_same_losses(torch, path):
    source = path.read_text()
    theirs = load(path, source).main()
    ours = load(path, change_imports(source)).main(theirs["initial_state"])
    assert ours.keys() == theirs.keys()
    state = ours.pop("initial_state")
    assert list(state) == list(theirs.pop("initial_state"))
    losses = theirs["losses"]
    assert 5 <= len(losses) <= 10 and losses[-1] < losses[0]
    for name, value in theirs.items():
        assert_same(name, ours[name], value)
