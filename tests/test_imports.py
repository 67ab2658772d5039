"""Packages import one another in one direction, without a circle; the top of kdbench stays small, and so does every module."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import kdbench

TOP = Path(kdbench.__file__).parent
#: Each imports only what stands after it. ``kdbench`` is the package's own front, ``api`` its functions, which do what verbs do.
ORDER = (
    *(
        "methods",
        "__main__",
        "kdbench",
        "api",
        "cli",
        "launch",
        "conformance",
        "forecast",
        "engine",
        "reporting",
        "students",
    ),
    *("search", "teachers", "store", "matrix", "plugins", "datasets", "data", "nets", "suite", "blocks", "method"),
    *("hyperparameters", "seeding", "distributed", "userfiles", "opening", "shown", "errors"),
)
MOST_AT_THE_TOP, MOST_LINES = 12, 400


def modules() -> dict[str, Path]:
    """Every module of kdbench and of its methods, with its file."""
    found = {}
    for name, folder in (("kdbench", TOP), ("kdbench.methods", TOP.parent / "methods")):
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            found[".".join((name, *parts))] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Modules of kdbench that a file imports anywhere, for types and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if (target := name if name in MODULES else node.module) in MODULES:
                    yield str(target)


def place(module: str) -> int:
    """The position in ``ORDER`` of the package that a module is in."""
    return ORDER.index(module.split(".")[1] if "." in module else module)


def test_modules_import_in_no_circle() -> None:
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    assert len(graph) > 100
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_packages_import_in_one_direction() -> None:
    against = [
        f"{name} imports {target}"
        for name, path in MODULES.items()
        for target in imports(path)
        if place(target) < place(name)
    ]
    assert not against, "\n".join(against)


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((TOP.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {_plain(re.split(r"[\[<>=!~; ]", text)[0]) for text in declared}
    names |= {"opencv-python", "opencv-python-headless"}  # mmengine's, which an error message is about
    known = packages_distributions()
    libraries = {name.split(".")[0] for path in MODULES.values() for name in _all_imports(path)}
    foreign = libraries - {*sys.stdlib_module_names, "kdbench"}
    assert not {name for name in foreign if not names & {_plain(found) for found in known.get(name, [name])}}


def _all_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_top_of_the_package_holds_few_modules() -> None:
    assert len(list(TOP.glob("*.py"))) <= MOST_AT_THE_TOP


def test_no_module_is_long() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_every_package_names_its_modules_in_its_docstring() -> None:
    unnamed = []
    for init in sorted(TOP.rglob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        inside = {path.stem for path in init.parent.glob("*.py") if path.stem != "__init__"}
        inside |= {path.parent.name for path in init.parent.glob("*/__init__.py")}
        unnamed += [f"{init.parent.relative_to(TOP)}: {name}" for name in sorted(inside) if f"``{name}``" not in said]
    assert not unnamed, "\n".join(unnamed)
