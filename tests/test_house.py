"""The house: which file may import which. Arrows run down, and no arrow runs in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

from tests.helpers import HERE

ROOMS = ["plumbing/system", "plumbing/data", "plumbing/run", "plumbing/judge"]  # from the lowest
SCRIPTS = ["char_rnn", "vae", "gan_mnist", "dcgan", "simclr"]
FLOORS = [*([room] for room in ROOMS), ["common"], ["fid"], SCRIPTS]
PATHS = sorted([*HERE.glob("*.py"), *HERE.glob("plumbing/*/*.py")])
MODULES = {path.relative_to(HERE).with_suffix("").as_posix() for path in PATHS}


def place(module: str) -> str:
    """Return the room of a module, or the module itself on the top floor."""
    return module.rpartition("/")[0] or module


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if place(module) in names)


def imports(path: Path) -> dict[str, int]:
    """Return the modules of this repository that a file imports, and how deep the statement is indented."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.replace(".", "/") in MODULES:
                found[name.replace(".", "/")] = node.col_offset
    return found


@pytest.mark.parametrize("path", [p for p in PATHS if p.stem not in ("test_all", "__init__")], ids=lambda p: p.name)
def test_imports_run_down(path):
    module = path.relative_to(HERE).with_suffix("").as_posix()
    for other, depth in imports(path).items():
        same_room = place(other) == place(module) and "/" in module
        opened_on_demand = module == "fid" and other in SCRIPTS and depth  # a run's generator, an encoder
        assert floor(other) < floor(module) or same_room or opened_on_demand, f"{module} imports {other}"
        if other == "fid":
            assert depth, f"{module} imports fid outside the function that evaluates"


def test_there_is_no_circle():
    arrows = {path.relative_to(HERE).with_suffix("").as_posix(): imports(path).keys() for path in PATHS}
    arrows["fid"] = arrows["fid"] - set(SCRIPTS)
    assert len(list(graphlib.TopologicalSorter(arrows).static_order())) >= 30


def test_the_check_can_fail(tmp_path):
    (tmp_path / "upward.py").write_text("def f():\n    from plumbing.run.run import Run\n    return Run\n")
    assert imports(tmp_path / "upward.py") == {"plumbing/run/run": 4}
