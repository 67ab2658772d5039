"""Values on the command line: each is parsed, or refused in one line that names what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click
import yaml

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.suite.types import MAX_SEED


class Value(click.ParamType):
    """What ``read`` makes of a text; where that raises ValueError, the text "is not" what was expected."""

    name = "value"

    def __init__(self, read: Callable[[str], Any], expected: str) -> None:
        self.read, self.expected = read, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self.read(value)
        except ValueError:
            raise KdbenchError(f"{_named(param)}: {value!r} is not {self.expected}") from None


class OneOf(click.Choice[str]):
    """One of some names, or refused with the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            raise UnknownNameError(_named(param), value, self.choices)
        return str(value)


def _named(param: click.Parameter | None) -> str:
    if isinstance(param, click.Argument) and param.metavar:
        return param.metavar.strip("[]").lower()
    return param.opts[0] if param else ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and low <= int(text) <= high):
        raise ValueError(text)
    return int(text)


def _number(text: str, low: float, high: float = 1e9) -> float:
    value = float(text)
    if not low <= value <= high:  # never true of NaN
        raise ValueError(text)
    return value


def _path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(text)
    return text


def _at_least(low: float, unit: str) -> Value:
    return Value(lambda text: _number(text, low), f"a number of {unit} ({low:g} or more)")


def _count(unit: str) -> Value:
    return Value(lambda text: _whole(text, 1, 10**9), f"a number of {unit} (1 or more)")


NAMES = Value(_names, "a list of names")
SEEDS = Value(
    lambda text: tuple(dict.fromkeys(_whole(seed, 0, MAX_SEED) for seed in _names(text))),
    f"a list of whole numbers from 0 to {MAX_SEED}",
)
PATH = Value(_path, "a path")
GIBIBYTES = Value(lambda text: _number(text, 1e-9), "a number of gibibytes above 0")
HOURS, MINUTES, SECONDS = _at_least(0, "hours"), _at_least(0, "minutes"), _at_least(0.1, "seconds")
POINTS = Value(lambda text: _number(text, 0, 100), "a number of points from 0 to 100")
PROCESSES, IMAGES, CLASSES, TRIALS = _count("processes"), _count("images"), _count("classes"), _count("trials")
STREAMS = Value(lambda text: _whole(text, 1, 16), "a number of streams from 1 to 16")
DECIMALS = Value(lambda text: _whole(text, 0, 6), "a number of decimals (0 to 6)")
LOADERS = Value(lambda text: _whole(text, 0, 1024), "a number of processes from 0 to 1024")
WHOLE_SEED = Value(lambda text: _whole(text, 0, MAX_SEED), f"a whole number from 0 to {MAX_SEED}")


def parse_set(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["ofa.eps=1.5"]`` to ``{"ofa": {"eps": 1.5}}``; values are YAML.

    Raises:
        KdbenchError: for another form, or a name that is given twice.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, separator, value = assignment.partition("=")
        method, dot, name = target.strip().partition(".")
        if not (separator and dot and method and name):
            raise KdbenchError(f"--set {assignment!r} is not of the form METHOD.NAME=VALUE")
        if name in parsed.setdefault(method, {}):
            raise KdbenchError(f"--set {method}.{name} is given twice")
        parsed[method][name] = _yaml(value, f"--set {assignment!r}")
    return parsed


def parse_variants(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["w1=ofa,ofa_weight=1"]`` to ``{"w1": {"method": "ofa", "set": {"ofa_weight": 1}}}``; values are YAML.

    Raises:
        KdbenchError: for another form, or a name that is given twice.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, *parts = (part.strip() for part in re.split(r"=|,(?=\s*\w+\s*=)", text))
        if not (name and parts and all(parts) and len(parts) % 2):
            raise KdbenchError(f"--variant {text!r} is not of the form NAME=METHOD,KEY=VALUE,...")
        if name in parsed:
            raise KdbenchError(f"--variant {name} is given twice")
        method, *rest = parts
        values = {key: _yaml(value, f"--variant {text!r}") for key, value in zip(rest[::2], rest[1::2], strict=True)}
        if 2 * len(values) < len(rest):
            raise KdbenchError(f"--variant {text!r} gives one name twice")
        parsed[name] = {"method": method, "set": values}
    return parsed


def _yaml(text: str, where: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise KdbenchError(f"{where}: the value does not parse as YAML") from None
    # YAML 1.1 reads 1e-3 (no dot) as a string.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
