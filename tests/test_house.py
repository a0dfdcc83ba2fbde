"""The house: sizes, import levels, rooms that say what lives in them, scripts on their own."""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("wscore", "wsrun")
    for path in sorted((ROOT / package).rglob("*.py"))
}
ROOMS = [n for n, p in FILES.items() if p.name == "__init__.py" and "." in n]
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
MOST_LEVELS = 8
MOST_LINES, MOST_OF_A_MODULE, MOST_OF_A_SCRIPT = 3850, 300, 150


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of both packages that a module imports, wherever in it, unless for types only.

    `from package import x` counts for the module package.x where there is one, else for package.
    """
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in FILES else node.module)
    return frozenset(found & FILES.keys()) - {name}


def runtime_nodes(tree: ast.AST):
    """All nodes but those below `if TYPE_CHECKING:`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from runtime_nodes(child)


def chains(package: str) -> dict[str, tuple[str, ...]]:
    """module -> the longest chain of imports inside its package, from it down; no cycles."""
    found: dict[str, tuple[str, ...]] = {}

    def down(name: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
        assert name not in above, f"cycle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in found:
            inside = [n for n in sorted(imports(name)) if n.split(".")[0] == package]
            below = [down(n, (*above, name)) for n in inside]
            found[name] = (name, *max(below, key=len, default=()))
        return found[name]

    for name in FILES:
        if name.startswith(f"{package}.") and name not in ROOMS:
            down(name)
    return found


def test_imports_of_wsrun_are_at_most_eight_levels_deep():
    """level(module) = 1 + the highest level of what it imports of wsrun; the lists of rooms, which
    nothing inside imports, are left out"""
    too_deep = {c[0]: " -> ".join(c) for c in chains("wsrun").values() if len(c) > MOST_LEVELS}
    assert not too_deep, "\n".join(too_deep.values())


@pytest.mark.parametrize("package", ["wscore", "wsrun"])
def test_imports_have_no_cycle(package):
    chains(package)


def test_no_module_inside_a_package_imports_a_room_as_a_whole():
    """import from the module that defines a name, so that chains stay short"""
    whole = {
        name: sorted(imports(name) & set(ROOMS))
        for name in FILES
        if name.startswith("wsrun") and name not in {*ROOMS, "wsrun"}
    }
    assert not {n: rooms for n, rooms in whole.items() if any(r.startswith("wsrun") for r in rooms)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_lives_there_and_lists_its_names(room):
    """a first sentence, then __all__, each name of which is there; below 40 lines"""
    tree = ast.parse(FILES[room].read_text())
    assert "." in (ast.get_docstring(tree) or ""), "no docstring with a sentence"
    module = importlib.import_module(room)
    assert getattr(module, "__all__", None), "no __all__"
    assert not [name for name in module.__all__ if not hasattr(module, name)]
    assert lines(FILES[room]) < 40


def test_no_script_imports_another():
    others = {path.stem for path in SCRIPTS} | {"experiments", "runpy"}
    for path in SCRIPTS:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        asked = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        asked |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in asked} & others, path.name


def test_scripts_are_short():
    sizes = {path.name: lines(path) for path in SCRIPTS}
    too_long = {n: k for n, k in sizes.items() if n.startswith("t") and k > MOST_OF_A_SCRIPT}
    assert not too_long
    assert sum(sizes.values()) < MOST_LINES


def test_modules_are_short():
    sizes = {name: lines(path) for name, path in FILES.items()}
    assert not {name: k for name, k in sizes.items() if k > MOST_OF_A_MODULE}


def test_top_level_is_as_drawn():
    """the folders and files that the design names, dotfiles and artifacts aside"""
    aside = {"artifacts", "build", "dist"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - aside
    found = {name for name in found if not name.endswith((".egg-info", "__pycache__"))}
    files = {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"}
    assert found == files | {"wscore", "wsrun", "experiments", "tests", "data", "docs"}
