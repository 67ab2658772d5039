"""Hooks of mmengine in files of users: found by reading their source, imported only where the command line named the file.

A hook is a class with the decorator ``@HOOKS.register_module()``, in a file of ``--hook`` or ``--plugin``. One that declares
``observes = True`` changes nothing that is trained; any other is part of the identity of the cells that it is called for.
"""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.userfiles import PluginError, import_source, own_files, parse_source, plugin_module, source_hash


@dataclass(frozen=True)
class HookEntry:
    """One hook as its source declares it."""

    name: str
    path: Path
    observes: bool
    source: str

    def load(self) -> type:
        """Import the file and return the class.

        Raises:
            PluginError: if the file raises when it is imported, with its own traceback, or the class is no hook.
        """
        module = plugin_module(self.path)
        if module not in sys.modules:
            import_source(module, self.path)
        cls: type | None = getattr(sys.modules[module], self.name, None)
        if cls is None:
            raise PluginError(f"hook {self.path}: its __init__.py does not import {self.name}")
        if not any(base.__name__ == "Hook" and base.__module__.startswith("mmengine.") for base in cls.__mro__):
            raise PluginError(f"hook {self.path}: {self.name} is not a subclass of mmengine.hooks.Hook")
        return cls


def find_hooks(wanted: Sequence[str], named: Sequence[str], plugins: Sequence[str], suite: str) -> list[HookEntry]:
    """The hooks of a run, by name and source, without importing them.

    Args:
        wanted: files that the suite names.
        named: files of ``--hook``.
        plugins: files of ``--plugin``, which may hold hooks beside methods.
        suite: its name.

    Raises:
        KdbenchError: for a file that the suite names and the command line does not.
        PluginError: for a file of hooks that is missing, does not parse or holds none.
    """
    allowed = {Path(file).resolve() for file in (*named, *plugins)}
    for file in wanted:
        if Path(file).resolve() not in allowed:
            raise KdbenchError(
                f"suite {suite} names the hook {file}; a suite's Python runs only when you name it too: --hook {file}"
            )
    found: dict[Path, list[HookEntry]] = {}
    for file in named:
        found[Path(file).resolve()] = hooks = read_hooks(Path(file).resolve())
        if not hooks:
            raise PluginError(f"hook {file}: holds no hook; decorate a class with @HOOKS.register_module()")
    for file in plugins:
        with contextlib.suppress(PluginError):  # one that does not parse is among the errors of the catalog
            found[Path(file).resolve()] = read_hooks(Path(file).resolve())
    return sorted((hook for hooks in found.values() for hook in hooks), key=lambda hook: (hook.name, hook.source))


def read_hooks(path: Path) -> list[HookEntry]:
    """The hooks of a file, or of a plugin's folder."""
    nodes = [node for file in own_files(path) for node in parse_source(file, "hook").body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and _is_registered(node)]
    return [HookEntry(node.name, path, _observes(node), source_hash(path)) for node in classes]


def _is_registered(node: ast.ClassDef) -> bool:
    calls = [decorator.func for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return any(ast.unparse(function).endswith("HOOKS.register_module") for function in calls)


def _observes(node: ast.ClassDef) -> bool:
    return any(
        isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == ["observes"]
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is True
        for statement in node.body
    )
