"""The layers of the package, and one room per heavy dependency."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tngraph

ROOT = Path(__file__).parent.parent / "tngraph"
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = [
    "errors",
    "files",
    "language",
    "search",
    "program",
    "plans",
    "compiler",
    "lowering",
    "modules",
    "fitting",
    "layers",
    "report",
    "options",
    "cli",
    "__main__",
]
ROOMS = {
    "lark": {"language"},
    "networkx": {"language"},
    "opt_einsum": {"language"},
    "cotengra": {"search"},
    "torch": {"modules", "fitting", "layers"},
    "typer": {"options", "cli"},
    "rich": {"cli", "report"},
    "platformdirs": {"compiler"},
    "msgspec": {"plans", "compiler"},
}
FILES_OF = {
    "cotengra": {"search/proposals.py"},
    "networkx": {"language/graphs.py"},
    "msgspec": {"plans/schema.py", "plans/saving.py", "compiler/cache.py"},
    "platformdirs": {"compiler/cache.py"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text())
    inner = {
        node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node in inner))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path):
    if path.parent == ROOT and path.name == "__init__.py":
        return
    own = LAYERS.index(room(path))
    for module, _ in imports(path):
        if module.startswith("tngraph."):
            assert LAYERS.index(module.split(".")[1]) <= own, module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_dependency_is_named_in_its_room(path: Path):
    for module, _ in imports(path):
        name = module.split(".")[0]
        if name in ROOMS:
            assert room(path) in ROOMS[name], module
            assert str(path.relative_to(ROOT)) in FILES_OF.get(name, {str(path.relative_to(ROOT))})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_hides_in_a_function(path: Path):
    """But for the door to torch's room, and what the command line need not load for every command."""
    if path.relative_to(ROOT).parts[0] in ("__init__.py", "cli.py", "options.py"):
        return
    assert not [module for module, is_inner in imports(path) if is_inner]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_hides_from_the_interpreter(path: Path):
    """An import for the type checker alone hides a circle. The package's own is for `tngraph.compile`, without torch.

    The report names torch's values in its annotations, and must not import torch.
    """
    if path.relative_to(ROOT).parts[0] in ("__init__.py", "report"):
        return
    assert "TYPE_CHECKING" not in {
        node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
    }


def test_importing_and_planning_leave_torch_alone():
    code = (
        "import sys, tngraph as tg\n"
        "tg.emit(tg.plan(tg.load('examples/specs/fc2_mpo.tn')))\n"
        "assert 'torch' not in sys.modules\n"
        "tg.compile\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_the_package_shows_what_a_user_needs_and_nothing_else():
    assert dir(tngraph) == sorted(tngraph.__all__)
    assert [name for name in dir(tngraph) if name.startswith("_") or not hasattr(tngraph, name)] == []
    assert {"compile", "load", "plan", "emit"} < set(dir(tngraph))


def test_no_public_function_bears_the_name_of_its_module():
    for path in FILES:
        tree = ast.parse(path.read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in functions or path.stem.startswith("_"), path
