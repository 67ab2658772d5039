"""What a search draws from: intervals and choices of hyper-parameters, as methods declare them or as a file gives them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import RootModel

from kdbench.errors import HyperparameterError, KdbenchError, UnknownNameError, nearest
from kdbench.hyperparameters import Hyperparameter
from kdbench.plugins.entry import MethodEntry
from kdbench.plugins.registry import MethodCatalog
from kdbench.suite.typedyaml import read_typed


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, drawn uniformly or log-uniformly; ``whole``: integers only."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False

    def at(self, share: float) -> float:
        """The value at a share in [0, 1) of the way from low to high, to four significant digits."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = float(f"{value:.4g}")
        return round(value) if self.whole else min(max(value, self.low), self.high)

    def plain(self) -> dict[str, Any]:
        """As a file of a space has it."""
        return {"search": [self.low, self.high], "scale": self.scale}


@dataclass(frozen=True)
class Choices:
    """Any of some values."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1) of them."""
        return self.values[int(share * len(self.values))]

    def plain(self) -> dict[str, Any]:
        """As a file of a space has it."""
        return {"choices": list(self.values)}


#: Hyper-parameter -> what it is drawn from.
Space = Mapping[str, Interval | Choices]


class _File(RootModel[dict[str, dict[str, Any]]]):
    """Method -> hyper-parameter -> what it is drawn from."""


def declared(entry: MethodEntry, fixed: Collection[str] = ()) -> Space:
    """The ranges that a method declares with its hyper-parameters, without those that are ``fixed``."""
    return {
        name: Interval(*found.range.search, found.range.scale, found.annotation == "int")
        for name, found in entry.hyperparameters.items()
        if found.range is not None and found.range.search is not None and name not in fixed
    }


def read_space(source: str | PathLike[str] | Mapping[str, Any], methods: MethodCatalog) -> dict[str, Space]:
    """Method to space, from a YAML file or a mapping of the same form.

    ``temperature: [1, 8]`` is an interval with the scale that the method declares, ``{search: [1, 8], scale: log}`` says another, and
    ``{choices: [1, 2, 4]}`` are single values.

    Raises:
        KdbenchError: for an unknown method or hyper-parameter, an empty interval, or values that the method refuses.
    """
    if isinstance(source, Mapping):
        where, content = "space", source
    else:
        where, content = str(source), read_typed(Path(source), _File, "a search space").root
    spaces: dict[str, Space] = {}
    for method, ranges in content.items():
        if method not in methods or methods[method].variant_of:
            names = [name for name, entry in methods.items() if not entry.variant_of]
            raise UnknownNameError("method", method, names, where)
        known = methods[method].hyperparameters
        for name in ranges:
            if name not in known:
                raise KdbenchError(f"{where}: unknown hyper-parameter {method}.{name}; {nearest(name, known)}")
        spaces[method] = {name: _read(known[name], given, method, where) for name, given in ranges.items()}
    return spaces


def _read(parameter: Hyperparameter, given: Any, method: str, where: str) -> Interval | Choices:
    """One entry of a space, checked against its hyper-parameter."""
    name = f"{where}: {method}.{parameter.name}"
    found = {"search": given} if isinstance(given, list | tuple) else given
    if not isinstance(found, Mapping) or not (
        found.keys() == {"choices"} or {"search"} <= found.keys() <= {"search", "scale"}
    ):
        raise KdbenchError(
            f"{name}: {given!r} is none of [low, high], {{search: [low, high], scale: log}}, {{choices: [...]}}"
        )
    (values,) = (found[key] for key in ("choices", "search") if key in found)
    if not isinstance(values, list | tuple) or not values:
        raise KdbenchError(f"{name}: {values!r} holds nothing to draw from")
    try:
        if "choices" in found:
            return Choices(tuple(parameter.check(value, method) for value in values))
        whole = parameter.annotation == "int"
        low, high = (parameter.check(_number(end, whole), method) for end in values)
    except HyperparameterError as error:
        raise KdbenchError(f"{where}: {error}") from None
    except (TypeError, ValueError):
        raise KdbenchError(f"{name}: {values!r} is no interval of two numbers") from None
    if not low < high:
        raise KdbenchError(f"{name}: the interval from {low:g} to {high:g} is empty")
    scale = found.get("scale", parameter.range.scale if parameter.range else "linear")
    if scale not in ("linear", "log"):
        raise UnknownNameError("scale", str(scale), ("linear", "log"), name)
    if scale == "log" and low <= 0:
        raise KdbenchError(f"{name}: an interval with scale log begins above 0, not at {low:g}")
    return Interval(low, high, scale, whole)


def _number(value: Any, whole: bool) -> float:
    """A finite number; YAML 1.1 reads 1e-3 (no dot) as a text."""
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(value)
    return int(number) if whole and number.is_integer() else number
