"""What the hyper-parameters of a method are for a pair of a suite, and where each value comes from.

Later ones win: the method's default; KD's, where it carries KD; its preset for the data; its preset for the data and the student's
family; ``methods.set`` of the suite; ``set`` of the protocol; with ``--as-tuned``, of the command line or the suite, what was published
for the pair; with ``--settings``, what a search found; ``--set METHOD``.
A variant begins where its method ends: then come its own ``set``, the protocol's for it, and ``--set VARIANT``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.matrix.found import Found, read_found
from kdbench.matrix.request import Request
from kdbench.plugins.entry import MethodEntry, Setting
from kdbench.plugins.registry import MethodCatalog
from kdbench.plugins.tuned import find_tuned
from kdbench.suite.suite import Suite

_PUBLISHED = "published for the pair"


def settings_of(
    entry: MethodEntry, catalog: MethodCatalog, suite: Suite, protocol: str, request: Request, pair: str, family: str
) -> dict[str, Setting]:
    """The hyper-parameters of a method or variant for a pair, whose student is of ``family``.

    Raises:
        HyperparameterError: for an unknown name, a wrong type or a value out of range.
    """
    presets = [name for name in (suite.dataset.presets, suite.dataset.name) if name]
    method, of_protocol = entry.method, suite.protocols[protocol].set

    def files(name: str) -> list[tuple[str, Mapping[str, Any]]]:
        return [
            (f"suite {suite.name}", suite.methods.set.get(name, {})),
            (f"protocol {protocol}", of_protocol.get(name, {})),
        ]

    # What the command line sets for KD is KD's alone: rows of methods that carry KD stay as they are.
    kd = None
    if entry.carries_kd:
        kd = {name: setting.value for name, setting in catalog.find("kd").trace(presets, files("kd"), family).items()}
    overrides = files(method)
    if request.as_tuned or suite.methods.as_tuned:
        overrides += [(f"{_PUBLISHED}: {tuned.source}", tuned.values) for tuned in find_tuned(method, presets, pair)]
    if found := found_of(suite, request):
        overrides.append((found.origin(protocol), found.settings.get(method, {})))
    overrides.append((f"--set {method}", request.set.get(method, {})))
    if entry.variant_of:
        overrides += [
            (f"variant {entry.name}", entry.settings),
            (f"protocol {protocol}, {entry.name}", of_protocol.get(entry.name, {})),
            (f"--set {entry.name}", request.set.get(entry.name, {})),
        ]
    return entry.trace(presets, overrides, family, kd)


def is_tuned(settings: Mapping[str, Setting]) -> bool:
    """Whether any value is one that was published for the pair."""
    return any(setting.origin.startswith(_PUBLISHED) for setting in settings.values())


def found_of(suite: Suite, request: Request) -> Found | None:
    """What a search found, where the request names its file.

    Raises:
        KdbenchError: if the file is damaged or of another suite.
    """
    return read_found(request.settings, suite.name) if request.settings else None


def disclosed(settings: Mapping[str, Setting], search: str = "") -> str:
    """What captions say of a row: the values that its method would not have on this suite by itself.

    Args:
        settings: by hyper-parameter.
        search: the origin of what a search found, for a method that was searched; said even where the method's own values won.
    """
    origins = ("variant", "--set", _PUBLISHED)
    chosen = [(name, setting) for name, setting in settings.items() if setting.origin.startswith(origins)]
    texts = [
        f"{name} = {value}{'' if origin.startswith('variant') else f' ({origin})'}" for name, (value, origin) in chosen
    ]
    if search:
        values = [f"{name} = {setting.value}" for name, setting in settings.items() if setting.origin == search]
        texts.append(f"{', '.join(values) or 'its own values'} ({search})")
    return ", ".join(texts)
