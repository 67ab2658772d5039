"""Methods as their classes register them, and as their source declares them."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kdbench.errors import HyperparameterError, KdbenchError, nearest
from kdbench.hyperparameters import Hyperparameter
from kdbench.userfiles import PluginError, import_source, source_hash

#: name -> class, filled by ``register_method`` when a method's module is imported.
METHODS: dict[str, type] = {}

T = TypeVar("T", bound=type)

#: Families of methods, in the order of tables, with their headings.
FAMILIES = {
    "baseline": "Baseline",
    "logits": "On logits",
    "hint": "On features",
    "relation": "On relations between samples",
    "hybrid": "On several of these",
}
FIDELITIES = ("reference", "paper", "reconstruction")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,60}")


def check_name(name: str, where: str) -> None:
    """Refuse what is no name of a folder.

    Raises:
        PluginError: beginning with ``where``.
    """
    if not _NAME.fullmatch(name):
        raise PluginError(f"{where}: a name has letters, digits, '_', '+' and '-' only, 61 at most")


class Setting(NamedTuple):
    """The value of a hyper-parameter, and where it comes from."""

    value: Any
    origin: str = "default"


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method as its source declares it, or a variant of one with its own ``settings``."""

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
    added_later: Collection[str]
    citation: Mapping[str, Any]
    paper: str
    hyperparameters: Mapping[str, Hyperparameter]
    path: Path
    module: str
    builtin: bool
    variant_of: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> str:
        """Whose class it is: its own name, or that of the method of which it is a variant."""
        return self.variant_of or self.name

    def load(self) -> type:
        """Import the method's module and return its class.

        Raises:
            PluginError: if the module raises when it is imported, with its own traceback.
        """
        if self.method not in METHODS:
            import_source(self.module, self.path)
        if self.method not in METHODS:
            raise PluginError(f"plugin {self.path}: importing it registers no method {self.method!r}")
        return METHODS[self.method]

    def source_hash(self) -> str:
        """See ``source_hash``; part of the identity of a plugin's results."""
        return source_hash(self.path)

    def identity(self, settings: Mapping[str, Setting]) -> dict[str, Any]:
        """What an identity says of hyper-parameters: their values, without those that were added later and have their defaults."""
        return {
            name: setting.value
            for name, setting in settings.items()
            if name not in self.added_later or setting.value != self.hyperparameters[name].default
        }

    def resolve(self, datasets: str | Sequence[str], *overrides: Mapping[str, Any], family: str = "") -> dict[str, Any]:
        """Return all hyper-parameters; see ``trace``."""
        found = self.trace(datasets, [("", changes) for changes in overrides], family)
        return {name: setting.value for name, setting in found.items()}

    def trace(
        self,
        datasets: str | Sequence[str],
        overrides: Sequence[tuple[str, Mapping[str, Any]]] = (),
        family: str = "",
        kd: Mapping[str, Any] | None = None,
    ) -> dict[str, Setting]:
        """Return all hyper-parameters. What comes later in this list replaces what comes before:

        1. the method's defaults;
        2. KD's settings, for a method that carries a KD term;
        3. the method's preset for the data set;
        4. its preset for the data set and the family of the student;
        5. the overrides in order.

        Args:
            datasets: names under which presets are looked up; the first of them that has any counts.
            overrides: where they come from, and hyper-parameters by name.
            family: of the student, ``"cnn"``, ``"vit"`` or ``"mlp"``.
            kd: KD's own hyper-parameters on this suite.

        Raises:
            HyperparameterError: for an unknown name, a wrong type or a value out of range.
        """
        names = (datasets,) if isinstance(datasets, str) else datasets
        presets: list[tuple[str, Mapping[str, Any]]] = next(
            (own for name in names if (own := self._presets(name, family))), []
        )
        unknown = [theirs for theirs in self.carries_kd if kd is not None and theirs not in kd]
        if kd is not None and unknown:
            raise HyperparameterError(f"{self.name}.carries_kd: KD has no {unknown[0]!r}; {nearest(unknown[0], kd)}")
        carried = {own: kd[theirs] for theirs, own in self.carries_kd.items()} if kd is not None else {}
        settings = {name: Setting(parameter.default) for name, parameter in self.hyperparameters.items()}
        for origin, layer in (("KD", carried), *presets, *overrides):
            for name, value in layer.items():
                if name not in self.hyperparameters:
                    raise HyperparameterError(
                        f"unknown hyper-parameter {self.name}.{name}; {nearest(name, self.hyperparameters)}"
                        if self.hyperparameters
                        else f"unknown hyper-parameter {self.name}.{name}; {self.name} has none"
                    )
                settings[name] = Setting(self.hyperparameters[name].check(value, self.name), origin)
        return settings

    def _presets(self, dataset: str, family: str) -> list[tuple[str, Mapping[str, Any]]]:
        keys = (dataset, f"{dataset}:{family}")
        return [(f"preset {key}", self.presets[key]) for key in keys if key in self.presets]


def register_method(name: str) -> Callable[[T], T]:
    """Class decorator that puts a ``Method`` into the registry under ``name``."""

    def register(cls: T) -> T:
        known = METHODS.get(name)
        if known is not None and _origin(known) != _origin(cls):
            raise KdbenchError(f"method {name!r} is registered twice, by {known.__module__} and by {cls.__module__}")
        METHODS[name] = cls
        cls.name = name  # type: ignore[attr-defined]
        return cls

    return register


def _origin(cls: type) -> tuple[str, str]:
    """File and name of a class: a plugin may be imported by another one too, under another name of its module."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return os.path.realpath(file) if file else cls.__module__, cls.__qualname__
