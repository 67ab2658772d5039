"""Values on the command line: each is parsed, or refused in one line that names what is expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import yaml

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.suite.types import MAX_SEED


class Value(click.ParamType):
    """A value that ``read`` makes of a text, or None where it is not ``expected``."""

    def __init__(self, name: str, read: Callable[[str], Any], expected: str) -> None:
        self.name, self.read, self.expected = name, read, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self.read(value)
        except ValueError:
            raise KdbenchError(f"{_named(param)}: {value!r} is {self.expected}") from None


class OneOf(click.Choice[str]):
    """One of some names, or refused with the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            raise UnknownNameError(_named(param), value, self.choices)
        return str(value)


def _named(param: click.Parameter | None) -> str:
    return param.opts[0] if param else ""


def names(text: str) -> tuple[str, ...]:
    """A list separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def number(low: float, high: float = 1e9, above: bool = False) -> Callable[[str], float]:
    """A number from ``low``, or above it, to ``high``."""

    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high or (above and value == low):
            raise ValueError(text)
        return value

    return read


def whole(text: str) -> int:
    """A whole number from 1."""
    if not (text.isdecimal() and text.isascii() and len(text) < 10 and int(text) >= 1):
        raise ValueError(text)
    return int(text)


def _seed(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 11 and int(text) <= MAX_SEED):
        raise KdbenchError(f"--seeds: {text!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


def _path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(text)
    return text


NAMES = Value("names", names, "")
SEEDS = Value("seeds", lambda text: tuple(dict.fromkeys(map(_seed, names(text)))), "")
PATH = Value("path", _path, "no path")
GIBIBYTES = Value("gibibytes", number(0, above=True), "not a number of gibibytes above 0")
GIGABYTES = Value("gigabytes", number(0, above=True), "not a number of gigabytes above 0")
HOURS = Value("hours", number(0), "not a number of hours (0 or more)")
MINUTES = Value("minutes", number(0), "not a number of minutes (0 or more)")
SECONDS = Value("seconds", number(0.1), "not a number of seconds (0.1 or more)")
POINTS = Value("points", number(0, 100), "not a number of points from 0 to 100")
PROCESSES = Value("processes", whole, "not a number of processes (1 or more)")
IMAGES = Value("images", whole, "not a number of images (1 or more)")
CLASSES = Value("classes", whole, "not a number of classes (1 or more)")


def parse_set(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["ofa.eps=1.5"]`` to ``{"ofa": {"eps": 1.5}}``; values are YAML.

    Raises:
        KdbenchError: for another form.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, separator, value = assignment.partition("=")
        method, dot, name = target.strip().partition(".")
        if not (separator and dot and method and name):
            raise KdbenchError(f"--set {assignment!r} is not of the form METHOD.NAME=VALUE")
        try:
            parsed.setdefault(method, {})[name] = _number_or(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise KdbenchError(f"--set {assignment!r}: the value does not parse as YAML") from None
    return parsed


def _number_or(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as a string.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
