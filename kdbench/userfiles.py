"""Python files of the user: read, hashed, imported."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from kdbench.errors import KdbenchError


class PluginError(KdbenchError):
    """A plugin that cannot be read or imported; ``details`` is its own traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def plugin_module(path: Path) -> str:
    """The name under which a plugin file is imported."""
    return f"kdbench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def source_hash(path: Path) -> str:
    """Hash of a plugin file and of the modules beside it that it imports."""
    digest, files = hashlib.sha256(), [path]
    for file in files:
        content = file.read_bytes()
        digest.update(file.name.encode() + b"\0" + content + b"\0")
        for node in ast.walk(ast.parse(content)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            beside = (file.with_name(f"{name.split('.')[0]}.py") for name in names)
            files += [other for other in beside if other.is_file() and other not in files]
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


def import_source(module: str, path: Path) -> None:
    """Import a plugin, by the name of its module or, for a file of ``--plugin``, from its path, with the modules beside it.

    Raises:
        PluginError: if it raises, with its own traceback.
    """
    try:
        if not module.startswith("kdbench_plugin_"):
            importlib.import_module(module)
            return
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        if str(path.resolve().parent) not in sys.path:
            sys.path.append(str(path.resolve().parent))  # last, so that nothing there hides a library
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # a plugin must not end the run of the others
        sys.modules.pop(module, None)
        if isinstance(error, KdbenchError):
            raise
        raise PluginError(
            f"plugin {path} raised when it was imported: {type(error).__name__}: {error}", traceback.format_exc()
        ) from error
