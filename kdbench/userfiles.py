"""Python files of the user: read, hashed with the local modules that they import, imported."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.errors import KdbenchError

_PACKAGE = "__init__.py"
#: Where plugins lie that were imported.
_FOLDERS: set[Path] = set()


class PluginError(KdbenchError):
    """A plugin that cannot be read or imported; ``details`` is its own traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def plugin_module(path: Path) -> str:
    """The name under which a plugin file is imported."""
    return f"kdbench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def source_hash(path: Path) -> str:
    """Hash of a plugin, a file or a folder, and of the local modules that it imports.

    Raises:
        PluginError: if one of them cannot be read or does not parse.
    """
    digest, folder = hashlib.sha256(), path if path.is_dir() else path.parent
    for file in local_files(path):
        name = os.path.relpath(file, folder).replace(os.sep, "/")
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def parse_source(path: Path, kind: str = "plugin") -> ast.Module:
    """The syntax tree of a user's file.

    Raises:
        PluginError: if it cannot be read or does not parse.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise PluginError(f"{kind} {path}, line {error.lineno}: {error.msg}", traceback.format_exc()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"{kind} {path}: cannot be read ({error})") from None


def first_file(path: Path) -> Path:
    """The file of a plugin that is imported: itself, or the ``__init__.py`` of a folder.

    Raises:
        PluginError: if there is none.
    """
    if path.is_dir():
        if not (path / _PACKAGE).is_file():
            raise PluginError(f"plugin {path}: a folder is a plugin if it holds {_PACKAGE}, which imports its methods")
        return path / _PACKAGE
    if not path.is_file():
        raise PluginError(f"plugin {path}: no such file")
    return path


def own_files(path: Path) -> list[Path]:
    """The files of a plugin in which methods, metrics and hooks are looked for: of a folder those that it imports."""
    return [file for file in local_files(path) if path in file.parents] if path.is_dir() else [path]


def local_files(path: Path) -> list[Path]:
    """The first file of a plugin, and those of all modules in its folder, or in the package that it belongs to, that it imports,
    and that these import. A module that no import names as a literal is not found.

    Raises:
        PluginError: if one cannot be read or does not parse.
    """
    files = [first_file(path)]
    roots = [path.parent] if path.is_file() else []
    above = path if path.is_dir() else path.parent
    while (above / _PACKAGE).is_file():  # absolute imports begin above the package
        above = above.parent
    roots += [] if above in roots else [above]
    for file in files:
        for folder, name in _imported(file, roots):
            files += [found for found in _files_of(folder, name) if found not in files]
    return files


def _imported(file: Path, roots: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """What a file imports: the parts of each name, and the folder in which the first of them would lie."""
    for node in ast.walk(parse_source(file)):
        if isinstance(node, ast.Import):
            names, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            names, level = [f"{node.module or ''}.{alias.name}" for alias in node.names], node.level
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            given = [value.value for value in node.args[:1] if isinstance(value, ast.Constant)]
            names = [name for name in given if isinstance(name, str)]
            level = len(names[0]) - len(names[0].lstrip(".")) if names else 0
        else:
            continue
        # .name is beside the file, ..name one above
        folders = [(file.parent, *file.parents)[min(level, len(file.parents))]] if level else roots
        for name in names:
            parts = [part for part in name.split(".") if part]
            if level or parts[:1] != ["kdbench"]:  # which a plugin in its clone has beside it
                yield from ((folder, parts) for folder in folders)


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _files_of(folder: Path, name: Sequence[str]) -> Iterator[Path]:
    """The files that are run when a module is imported: of its packages, and its own."""
    for part in name:
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
        folder /= part
        if (folder / _PACKAGE).is_file():
            yield folder / _PACKAGE
        elif not folder.is_dir():
            return


def import_source(module: str, path: Path) -> None:
    """Import a plugin, by the name of its module or, for a file or folder of ``--plugin``, from its path, with the modules beside it.

    Raises:
        PluginError: if it raises, with its own traceback.
    """
    try:
        if not module.startswith("kdbench_plugin_"):
            importlib.import_module(module)
            return
        inner = [str(path)] if path.is_dir() else None
        spec = importlib.util.spec_from_file_location(module, first_file(path), submodule_search_locations=inner)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        _check_siblings(path)
        sys.modules[module] = loaded
        if str(path.resolve().parent) not in sys.path:
            sys.path.append(str(path.resolve().parent))  # last, so that nothing there hides a library
        _FOLDERS.add(path.resolve().parent)
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # a plugin must not end the run of the others
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            del sys.modules[name]
        if isinstance(error, KdbenchError):
            raise
        raise PluginError(
            f"plugin {path} raised when it was imported: {type(error).__name__}: {error}", traceback.format_exc()
        ) from error


def _check_siblings(path: Path) -> None:
    """Refuse a module beside a plugin whose name another plugin's sibling has taken: that one would be used."""
    for file in local_files(path)[1:]:
        name = file.stem if file.name != "__init__.py" else file.parent.name
        other = getattr(sys.modules.get(name), "__file__", None)
        if other and Path(other).resolve() != file.resolve() and _FOLDERS & {*Path(other).resolve().parents}:
            raise PluginError(
                f"plugin {path}: {file.name} has the name of {other}, which another plugin imports; rename one"
            )
