"""What the source of a plugin declares, read without importing it; and its import."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.hyperparameters import Hyperparameter

_ATTRIBUTES = ("display", "family", "fidelity", "needs", "uses_teacher", "version", "presets", "carries_kd")
_DEFAULTS: dict[str, Any] = {
    "display": "",
    "family": "logits",
    "fidelity": "paper",
    "needs": {"logits"},
    "uses_teacher": True,
    "version": 1,
    "presets": {},
    "carries_kd": {},
}


class PluginError(KdbenchError):
    """A plugin that cannot be read or imported; ``details`` is its own traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def read_methods(path: Path, module: str, registered: Callable[[str], type | None]) -> list[dict[str, Any]]:
    """Read what the methods of a file declare: ``name``, ``class_name``, ``paper``, class attributes and ``hyperparameters``.

    A file with a declaration that is no literal is imported instead.

    Args:
        registered: gives the class that an imported method registered.

    Raises:
        PluginError: if the file does not parse.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise PluginError(f"plugin {path}, line {error.lineno}: {error.msg}", traceback.format_exc()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"plugin {path}: cannot be read ({error})") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for node in classes.values():
        name = _registered_name(node)
        if name is None:
            continue
        try:
            declared = _declarations(node, classes)
        except ValueError:
            import_source(module, path)
            declared = _imported_declarations(name, registered(name), path)
        paper = (ast.get_docstring(node) or "").strip().split("\n\n")[0].replace("\n", " ")
        found.append({"name": name, "class_name": node.name, "paper": paper, **declared})
    return found


def _registered_name(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and _called(decorator) == "register_method":
            match decorator.args:
                case [ast.Constant(value=name), *_]:
                    return str(name)
    return None


def registers_additions(path: Path) -> bool:
    """Whether a file registers a metric or defines a hook (a class with the base ``Hook``)."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and any(
            isinstance(decorator, ast.Call) and _called(decorator) == "register_metric"
            for decorator in node.decorator_list
        ):
            return True
        if isinstance(node, ast.ClassDef) and any(
            getattr(base, "attr", getattr(base, "id", "")) == "Hook" for base in node.bases
        ):
            return True
    return False


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _declarations(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """Class attributes and keyword-only arguments, as literals. Raises ValueError when they are not."""
    declared = dict(_DEFAULTS)
    parameters: dict[str, Hyperparameter] | None = None
    lineage = [node]
    while True:  # base classes in the same file; a foreign base other than Method needs the import
        bases = [getattr(base, "id", getattr(base, "attr", "")) for base in lineage[-1].bases]
        local = [classes[base] for base in bases if base in classes]
        if not local:
            if any(base not in ("Method", "Module") for base in bases):
                raise ValueError("a base class from another file")
            break
        lineage.append(local[0])
    for cls in reversed(lineage):
        for statement in cls.body:
            declared.update(_literal_attributes(statement))
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                parameters = _keyword_arguments(statement)
    declared["hyperparameters"] = parameters or {}
    return declared


def _literal_attributes(statement: ast.stmt) -> dict[str, Any]:
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs += zip(target.elts, statement.value.elts, strict=True)
            else:
                pairs.append((target, statement.value))
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        pairs.append((statement.target, statement.value))
    return {
        target.id: _literal(value)
        for target, value in pairs
        if isinstance(target, ast.Name) and target.id in _ATTRIBUTES
    }


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "frozenset":
        return frozenset(_literal(node.args[0])) if node.args else frozenset()
    return ast.literal_eval(node)


def _keyword_arguments(function: ast.FunctionDef) -> dict[str, Hyperparameter]:
    parameters = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is None:
            raise ValueError("a hyper-parameter without a default")
        value = _literal(default)
        annotation = ast.unparse(argument.annotation) if argument.annotation else type(value).__name__
        parameters[argument.arg] = Hyperparameter.read(argument.arg, value, annotation)
    return parameters


def _imported_declarations(name: str, cls: type | None, path: Path) -> dict[str, Any]:
    if cls is None:
        raise PluginError(f"plugin {path}: importing it registers no method {name!r}")
    parameters = {}
    for argument in inspect.signature(cls).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY:
            continue
        if argument.default is argument.empty:
            raise PluginError(f"plugin {path}: hyper-parameter {name}.{argument.name} has no default")
        parameters[argument.name] = Hyperparameter.of(argument)
    return {**{key: getattr(cls, key, _DEFAULTS[key]) for key in _ATTRIBUTES}, "hyperparameters": parameters}


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


def import_source(module: str, path: Path) -> None:
    """Import a plugin, by the name of its module or, for a file of ``--plugin``, from its path.

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
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # a plugin must not end the run of the others
        sys.modules.pop(module, None)
        if isinstance(error, KdbenchError):
            raise
        raise PluginError(
            f"plugin {path} raised when it was imported: {type(error).__name__}: {error}", traceback.format_exc()
        ) from error
