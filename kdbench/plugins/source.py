"""Reads what a file registers without importing it, and so without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import nearest
from kdbench.hyperparameters import Hyperparameter
from kdbench.plugins.citations import problem_of
from kdbench.plugins.entry import FAMILIES, FIDELITIES, METHODS, MethodEntry, check_name
from kdbench.suite.net import FAMILIES as NET_FAMILIES
from kdbench.userfiles import PluginError, import_source, own_files, parse_source

#: What a class body may declare: name -> (default, type).
_ATTRIBUTES: dict[str, tuple[Any, Any]] = {
    "display": ("", str),
    "family": ("logits", str),
    "fidelity": ("paper", str),
    "needs": ({"logits"}, (set, frozenset, list, tuple)),
    "uses_teacher": (True, bool),
    "version": (1, int),
    "presets": ({}, Mapping),
    "carries_kd": ({}, Mapping),
    "added_later": (frozenset(), (set, frozenset, list, tuple)),
    "citation": ({}, Mapping),
}


def read_source(path: Path, module: str, builtin: bool = False) -> list[MethodEntry]:
    """Read the methods that a file or a folder registers. A declaration that is no literal makes it be imported instead.

    Raises:
        PluginError: if a file does not parse.
    """
    bodies = [parse_source(file).body for file in own_files(path)]
    nodes = [node for body in bodies for node in body if isinstance(node, ast.ClassDef)]
    classes = {node.name: node for node in nodes}
    entries = []
    for node in nodes:
        name = _registered_name(node)
        if name is None:
            continue
        try:
            declared = _declarations(node, classes)
        except ValueError:
            declared = _imported_declarations(name, module, path)
        _check_declared(name, declared, path)
        entries.append(
            MethodEntry(
                name=name,
                class_name=node.name,
                path=path,
                module=module,
                builtin=builtin,
                paper=(ast.get_docstring(node) or "").strip().split("\n\n")[0].replace("\n", " "),
                **{**declared, "display": declared["display"] or name, "needs": frozenset(declared["needs"])},
            )
        )
    return entries


def _check_declared(name: str, declared: Mapping[str, Any], path: Path) -> None:
    """Refuse what would go wrong later: names that are no folder's, attributes of another type or outside their lists."""
    where = f"plugin {path}: method {name!r}"
    check_name(name, where)
    for key, (_, expected) in _ATTRIBUTES.items():
        if not isinstance(declared[key], expected) or (expected is int and isinstance(declared[key], bool)):
            raise PluginError(f"{where}: {key} = {declared[key]!r} has the wrong type")
    for key, valid in (("family", FAMILIES), ("fidelity", FIDELITIES)):
        if declared[key] not in valid:
            raise PluginError(f"{where}: unknown {key} {declared[key]!r}; {nearest(declared[key], valid)}")
    if not all(isinstance(preset, Mapping) for preset in declared["presets"].values()):
        raise PluginError(f"{where}: presets maps a data set to a mapping of hyper-parameters")
    for key in declared["presets"]:
        _, colon, student = key.partition(":")
        if colon and student not in NET_FAMILIES:
            raise PluginError(f"{where}: preset {key!r} names no family of students; {nearest(student, NET_FAMILIES)}")
    if problem := problem_of(declared["citation"]):
        raise PluginError(f"{where}: {problem}")
    for own in declared["carries_kd"].values():
        if own not in declared["hyperparameters"]:
            known = declared["hyperparameters"]
            raise PluginError(f"{where}: carries_kd names the hyper-parameter {own!r}; {nearest(own, known)}")


def _registered_name(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and _called(decorator) == "register_method":
            match decorator.args:
                case [ast.Constant(value=name), *_]:
                    return str(name)
    return None


def registers_metric(path: Path) -> bool:
    """Whether a plugin that parses registers a metric."""
    trees = [parse_source(file) for file in own_files(path)]
    functions = (node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef))
    decorators = [decorator for function in functions for decorator in function.decorator_list]
    return any(isinstance(decorator, ast.Call) and _called(decorator) == "register_metric" for decorator in decorators)


def makes_net(path: Path) -> bool:
    """Whether a file that parses has what makes a net: a function, or a class, that takes ``num_classes``."""
    tops = [node for file in own_files(path) for node in parse_source(file).body]
    functions = [node for node in tops if isinstance(node, ast.FunctionDef)]
    functions += [
        node for top in tops if isinstance(top, ast.ClassDef) for node in top.body if isinstance(node, ast.FunctionDef)
    ]
    return any("num_classes" in (a.arg for a in (*f.args.args, *f.args.kwonlyargs)) for f in functions)


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _declarations(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """Class attributes and keyword-only arguments, as literals. Raises ValueError when they are not."""
    declared = {key: default for key, (default, _) in _ATTRIBUTES.items()}
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


def _imported_declarations(name: str, module: str, path: Path) -> dict[str, Any]:
    import inspect

    import_source(module, path)
    if name not in METHODS:
        raise PluginError(f"plugin {path}: importing it registers no method {name!r}")
    cls = METHODS[name]
    parameters = {}
    for argument in inspect.signature(cls).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY:
            continue
        if argument.default is argument.empty:
            raise PluginError(f"plugin {path}: hyper-parameter {name}.{argument.name} has no default")
        parameters[argument.name] = Hyperparameter.of(argument)
    attributes = {key: getattr(cls, key, default) for key, (default, _) in _ATTRIBUTES.items()}
    return {**attributes, "hyperparameters": parameters}
