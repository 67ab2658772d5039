"""Registries of methods, and how plugins are found.

Methods are catalogued by reading their source, without importing it (and so without importing torch): that keeps
``kdbench list`` and ``kdbench table`` fast. A method's module is imported when the method is first built.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kdbench.errors import HyperparameterError, KdbenchError, UnknownNameError, nearest
from kdbench.plugins.hyperparameters import Hyperparameter
from kdbench.suite.net import FAMILIES as NET_FAMILIES

ENTRY_POINT_GROUP = "kdbench.methods"

#: name -> class, filled by ``register_method`` when a method's module is imported.
METHODS: dict[str, type] = {}

T = TypeVar("T", bound=type)

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
#: Families of methods, in the order of tables, with their headings.
FAMILIES = {
    "baseline": "Baseline",
    "logits": "On logits",
    "hint": "On features",
    "relation": "On relations between samples",
    "hybrid": "On several of these",
}
FIDELITIES = ("reference", "paper", "reconstruction")
_TYPES: dict[str, Any] = {
    "display": str,
    "family": str,
    "fidelity": str,
    "needs": (set, frozenset, list, tuple),
    "uses_teacher": bool,
    "version": int,
    "presets": Mapping,
    "carries_kd": Mapping,
}


class PluginError(KdbenchError):
    """A plugin that cannot be read or imported; ``details`` is its own traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method as its source declares it."""

    name: str
    class_name: str
    display: str
    family: str
    fidelity: str
    needs: frozenset[str]
    uses_teacher: bool
    version: int
    presets: Mapping[str, Mapping[str, Any]]
    carries_kd: Mapping[str, str]
    paper: str
    hyperparameters: Mapping[str, Hyperparameter]
    path: Path
    module: str
    builtin: bool

    def load(self) -> type:
        """Import the method's module and return its class.

        Raises:
            PluginError: if the module raises when it is imported, with its own traceback.
        """
        if self.name not in METHODS:
            import_source(self.module, self.path)
        if self.name not in METHODS:
            raise PluginError(f"plugin {self.path}: importing it registers no method {self.name!r}")
        return METHODS[self.name]

    def source_hash(self) -> str:
        """See ``source_hash``; part of the identity of a plugin's results."""
        return source_hash(self.path)

    def resolve(
        self,
        datasets: str | Sequence[str],
        *overrides: Mapping[str, Any],
        family: str = "",
        kd: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return all hyper-parameters. What comes later in this list replaces what comes before:

        1. the method's defaults;
        2. KD's settings, for a method that carries a KD term;
        3. the method's preset for the data set;
        4. its preset for the data set and the family of the student;
        5. the overrides in order: the suite's, the protocol's, the command line's.

        Args:
            datasets: names under which presets are looked up; the first of them that has any counts.
            overrides: hyper-parameters by name.
            family: of the student, ``"cnn"``, ``"vit"`` or ``"mlp"``.
            kd: KD's own hyper-parameters on this suite.

        Raises:
            HyperparameterError: for an unknown name, a wrong type or a value out of range.
        """
        names = (datasets,) if isinstance(datasets, str) else datasets
        presets = next((found for name in names if (found := self._presets(name, family))), [])
        unknown = [theirs for theirs in self.carries_kd if kd is not None and theirs not in kd]
        if kd is not None and unknown:
            raise HyperparameterError(f"{self.name}.carries_kd: KD has no {unknown[0]!r}; {nearest(unknown[0], kd)}")
        carried = {own: kd[theirs] for theirs, own in self.carries_kd.items()} if kd is not None else {}
        values = {name: parameter.default for name, parameter in self.hyperparameters.items()}
        for layer in (carried, *presets, *overrides):
            for name, value in layer.items():
                if name not in self.hyperparameters:
                    raise HyperparameterError(
                        f"unknown hyper-parameter {self.name}.{name}; {nearest(name, self.hyperparameters)}"
                        if self.hyperparameters
                        else f"unknown hyper-parameter {self.name}.{name}; {self.name} has none"
                    )
                values[name] = self.hyperparameters[name].check(value, self.name)
        return values

    def _presets(self, dataset: str, family: str) -> list[Mapping[str, Any]]:
        return [self.presets[key] for key in (dataset, f"{dataset}:{family}") if key in self.presets]


def register_method(name: str) -> Callable[[T], T]:
    """Class decorator that puts a ``Method`` into the registry under ``name``."""

    def register(cls: T) -> T:
        known = METHODS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise KdbenchError(f"method {name!r} is registered twice, by {known.__module__} and by {cls.__module__}")
        METHODS[name] = cls
        cls.name = name  # type: ignore[attr-defined]
        return cls

    return register


class MethodCatalog(dict[str, MethodEntry]):
    """Methods by name: the built-in ones, those of installed packages, those of ``--plugin`` files.

    ``errors`` holds the plugins that could not be read; they do not stop the others. ``additions``: modules, with their files,
    that register metrics or hooks, perhaps beside methods.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[PluginError] = []
        self.additions: dict[str, Path] = {}

    def find(self, name: str) -> MethodEntry:
        if name not in self:
            raise UnknownNameError("method", name, self)
        return self[name]

    def add(self, entry: MethodEntry) -> None:
        known = self.get(entry.name)
        if known is not None and known.path.resolve() != entry.path.resolve():
            raise PluginError(
                f"{entry.path}: method {entry.name!r} is already defined in {known.path}; choose another name"
            )
        self[entry.name] = entry

    def include(self, entries: Sequence[MethodEntry], module: str, path: Path, who: str) -> None:
        """Add what one plugin registers; ``who`` begins the message when that is nothing."""
        adds = _registers_additions(path)
        if not entries and not adds:
            raise PluginError(
                f'{who} registers no method, metric or hook; decorate a class with @register_method("name"), or a function '
                'with @register_metric("name")'
            )
        for entry in entries:
            self.add(entry)
        if adds:
            self.additions[module] = path

    def load_additions(self) -> None:
        """Import the plugins that register metrics or hooks.

        Raises:
            PluginError: if one raises, with its own traceback.
        """
        for module, path in self.additions.items():
            if module not in sys.modules:
                import_source(module, path)


def catalog(plugins: tuple[str, ...] | list[str] = ()) -> MethodCatalog:
    """Read all methods without importing them.

    Args:
        plugins: paths of plugin files.

    Raises:
        PluginError: for a plugin file that is missing or registers no method.
    """
    found = MethodCatalog()
    for path in sorted(_builtin_folder().glob("[a-z]*.py")):
        for entry in read_source(path, f"kdbench.methods.{path.stem}", builtin=True):
            found.add(entry)
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            path = _entry_point_file(point)
            who = f"plugin {point.name}: module {point.module}"
            found.include(read_source(path, point.module), point.module, path, who)
        except PluginError as error:
            found.errors.append(error)
    for plugin in plugins:
        path = Path(plugin)
        if not path.is_file():
            raise PluginError(f"plugin {plugin}: no such file")
        try:
            entries = read_source(path, plugin_module(path))
        except PluginError as error:
            found.errors.append(error)
            continue
        found.include(entries, plugin_module(path), path, f"plugin {plugin}:")
    return found


def read_source(path: Path, module: str, builtin: bool = False) -> list[MethodEntry]:
    """Read the methods that one file registers. A declaration that is no literal makes the file be imported instead.

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
    entries = []
    for node in classes.values():
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


def _builtin_folder() -> Path:
    spec = importlib.util.find_spec("kdbench.methods")
    if spec is None or not spec.submodule_search_locations:
        raise KdbenchError(
            "kdbench is not installed completely: the package kdbench.methods is missing (pip install -e .)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _entry_point_file(point: importlib.metadata.EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as error:
        raise PluginError(f"plugin {point.name}: {type(error).__name__}: {error}", traceback.format_exc()) from None
    if spec is None or spec.origin is None:
        raise PluginError(f"plugin {point.name}: module {point.module} was not found")
    return Path(spec.origin)


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


def _check_declared(name: str, declared: Mapping[str, Any], path: Path) -> None:
    """Refuse what would go wrong later: names that are no folder's, attributes of another type or outside their lists."""
    where = f"plugin {path}: method {name!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,60}", name):
        raise PluginError(f"{where}: a name has letters, digits, '_', '+' and '-' only, 61 at most")
    for key, expected in _TYPES.items():
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


def _registers_additions(path: Path) -> bool:
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
    return {**{key: getattr(cls, key, _DEFAULTS[key]) for key in _ATTRIBUTES}, "hyperparameters": parameters}
