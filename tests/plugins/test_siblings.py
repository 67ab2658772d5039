"""What a plugin imports from beside it belongs to its identity, and can be imported; a plugin may be a folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.userfiles import PluginError, local_files, plugin_module, source_hash

METHOD = '''
from kdbench import Method, register_method

@register_method("{name}")
class {cls}({base}):
    """A method of the tests."""

    def __init__(self, student, teacher, task, *, weight: float = 1.0):
        super().__init__(student, teacher, task)
'''


@pytest.fixture(autouse=True)
def forget(forget_plugins: None, tmp_path: Path) -> Iterator[None]:
    before = {*sys.modules}, [*sys.path]
    yield
    for name in [name for name in sys.modules if name not in before[0]]:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for name in [name for name, cls in METHODS.items() if cls.__module__ not in sys.modules]:
        del METHODS[name]
    sys.path[:] = before[1]


def write(folder: Path, **files: str) -> Path:
    """Files by their names, ``__`` for a slash; returns the first."""
    paths = [folder / (name.replace("__", "/") + ".py") for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return paths[0]


def test_a_plugin_alone_has_the_hash_of_its_name_and_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, mine="import torch\nfrom kdbench import Method\n", helpers="x = 1")
    (tmp_path / "kdbench").mkdir()
    (tmp_path / "kdbench" / "__init__.py").write_text("a clone of kdbench")
    assert source_hash(path) == hashlib.sha256(b"mine.py\0" + path.read_bytes() + b"\0").hexdigest()[:12]


@pytest.mark.parametrize(
    "imports",
    [
        "import helpers", "import helpers as h", "from helpers import x", "from helpers import *", "def f():\n import helpers",
        "import pkg.helpers", "from pkg import helpers", "from pkg.helpers import x", "import between",
        "import importlib\nh = importlib.import_module('helpers')", "if True:\n    from between import helpers",
        "import names.helpers",
    ],
)  # fmt: skip
def test_a_change_in_whatever_way_it_is_imported_changes_the_identity(tmp_path: Path, imports: str) -> None:
    path = write(tmp_path, mine=imports, helpers="x = 1", between="import helpers, mine")
    write(tmp_path / "pkg", **{"helpers": "x = 1"})
    write(tmp_path / "names", helpers="x = 1")  # a package without __init__.py
    (tmp_path / "pkg" / "__init__.py").write_text("")
    before = source_hash(path)
    for folder in (tmp_path, tmp_path / "pkg", tmp_path / "names"):
        write(folder, helpers="x = 2")
    assert source_hash(path) != before


def test_what_is_not_imported_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, mine="import helpers", helpers="x = 1", other="y = 1")
    before = source_hash(path)
    write(tmp_path, other="y = 2")
    assert source_hash(path) == before


def test_imports_of_a_package_are_found_from_within_it(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write(
        folder,
        mine="from . import a\nfrom .sub.b import x\nfrom pack.c import y",
        a="", sub__b="from .. import d\nfrom ...pack import e", c="", d="", e="", f="",
    )  # fmt: skip
    (folder / "__init__.py").write_text("from .mine import *")
    found = {file.relative_to(tmp_path).as_posix() for file in local_files(folder)}
    assert found == {f"pack/{name}.py" for name in ("__init__", "mine", "a", "sub/b", "c", "d", "e")}


def test_a_folder_is_a_plugin(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write(
        folder,
        mine=METHOD.format(name="packed", cls="Packed", base="Method") + "\nfrom .losses import f",
        losses="f = 1",
    )
    (folder / "__init__.py").write_text("from .mine import Packed")
    entry = catalog([str(folder)])["packed"]
    assert (entry.path, list(entry.hyperparameters)) == (folder, ["weight"])
    assert entry.load().__name__ == "Packed"
    before = entry.source_hash()
    write(folder, losses="f = 2")
    assert entry.source_hash() != before


def test_a_folder_without_init_is_no_plugin(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"a folder is a plugin if it holds __init__\.py"):
        catalog([str(tmp_path)])


def test_a_method_that_derives_from_a_siblings_loads_with_it_and_beside_it(tmp_path: Path) -> None:
    base = write(tmp_path, base=METHOD.format(name="base_of_test", cls="Base", base="Method"))
    derived = write(
        tmp_path, derived="from base import Base\n" + METHOD.format(name="derived_of_test", cls="Derived", base="Base")
    )
    for plugins in ([str(derived)], [str(base), str(derived)], [str(derived), str(base)]):
        found = catalog(plugins)
        assert not found.errors
        for name in [name for name in found if name.endswith("_of_test")]:
            assert found[name].load().__name__ == name.split("_")[0].title()


def test_siblings_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    plugins = [
        write(
            tmp_path / name, **{name: "import helpers\n" + METHOD.format(name=f"{name}_test", cls="M", base="Method")}
        )
        for name in ("one", "two")
    ]
    for path in plugins:
        write(path.parent, helpers="x = 1")
    found = catalog(list(map(str, plugins)))
    found["one_test"].load()
    with pytest.raises(PluginError, match=r"helpers\.py has the name of .*one/helpers\.py"):
        found["two_test"].load()
    assert plugin_module(plugins[1]) not in sys.modules


def test_a_sibling_that_does_not_parse_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, mine="import helpers", helpers="x = = 1")
    with pytest.raises(PluginError, match=r"helpers\.py, line 1"):
        source_hash(path)
