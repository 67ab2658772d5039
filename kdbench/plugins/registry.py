"""All methods by name: built-in ones, those of installed packages, those of plugin files.

Methods are catalogued by reading their source: that keeps ``kdbench list`` and ``kdbench table`` fast. A method's module is
imported when the method is first built.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.plugins.entry import MethodEntry, check_name
from kdbench.plugins.hooks import read_hooks
from kdbench.plugins.source import makes_net, read_source, registers_metric
from kdbench.suite.protocol import Variant
from kdbench.suite.suite import packaged
from kdbench.userfiles import PluginError, first_file, import_source, plugin_module

ENTRY_POINT_GROUP = "kdbench.methods"


class MethodCatalog(dict[str, MethodEntry]):
    """Methods by name: the built-in ones, those of installed packages, those of ``--plugin`` files.

    ``errors`` holds the plugins that could not be read; they do not stop the others. ``metrics``: modules that register metrics,
    with their files.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[PluginError] = []
        self.metrics: dict[str, Path] = {}

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

    def include(
        self, entries: Sequence[MethodEntry], module: str, path: Path, who: str, makes_nets: bool = False
    ) -> None:
        """Add what one plugin registers; ``who`` begins the message when that is nothing and it makes no net either."""
        measures = registers_metric(path)
        if not entries and not measures and not read_hooks(path) and not makes_nets and not makes_net(path):
            raise PluginError(
                f'{who} registers no method, metric or hook; decorate a class with @register_method("name"), or a function '
                'with @register_metric("name"); of a net, make it by a function that takes num_classes'
            )
        for entry in entries:
            self.add(entry)
        if measures:
            self.metrics[module] = path

    def with_variants(self, variants: Iterable[tuple[str, Variant]]) -> MethodCatalog:
        """These methods, and variants of them by name.

        Raises:
            KdbenchError: for a variant of no method, or a name that is bad or taken.
        """
        found = MethodCatalog()
        found.update({name: entry for name, entry in self.items() if not entry.variant_of})
        found.errors, found.metrics = self.errors, self.metrics
        methods = tuple(found)
        for name, variant in variants:
            check_name(name, f"variant {name!r}")
            if name in found:
                kind = "variant" if found[name].variant_of else "method"
                raise KdbenchError(f"variant {name!r}: there is a {kind} of this name; choose another")
            if variant.method not in methods:
                raise UnknownNameError("method", variant.method, methods, f"variant {name}")
            parent, display = found[variant.method], variant.display or name
            found[name] = replace(parent, name=name, display=display, variant_of=parent.name, settings=variant.set)
        return found

    def load_metrics(self) -> None:
        """Import the plugins that register metrics.

        Raises:
            PluginError: if one raises, with its own traceback.
        """
        for module, path in self.metrics.items():
            if module not in sys.modules:
                import_source(module, path)


def catalog(plugins: Iterable[str] = (), net_files: Collection[Path] = ()) -> MethodCatalog:
    """Read all methods without importing them.

    Args:
        plugins: paths of files and folders.
        net_files: resolved paths of those of them that make nets of a suite, in whatever way.

    Raises:
        PluginError: for a plugin that is missing or registers nothing.
    """
    found = MethodCatalog()
    for entry in _built_in():
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
        first_file(path)
        try:
            entries = read_source(path, plugin_module(path))
        except PluginError as error:
            found.errors.append(error)
            continue
        found.include(entries, plugin_module(path), path, f"plugin {plugin}:", path.resolve() in net_files)
    return found


@functools.cache
def _built_in() -> tuple[MethodEntry, ...]:
    """The methods that come with kdbench. Parsing their source takes a fifth of a second: once in a process."""
    files = sorted(packaged("methods").glob("[a-z]*.py"))
    return tuple(entry for path in files for entry in read_source(path, f"kdbench.methods.{path.stem}", builtin=True))


def _entry_point_file(point: importlib.metadata.EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as error:
        raise PluginError(f"plugin {point.name}: {type(error).__name__}: {error}", traceback.format_exc()) from None
    if spec is None or spec.origin is None:
        raise PluginError(f"plugin {point.name}: module {point.module} was not found")
    return Path(spec.origin)
