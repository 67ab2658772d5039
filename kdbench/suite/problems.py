"""Problems of a suite file, from pydantic and from our own checks, each as a location and one sentence."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kdbench.errors import KdbenchError, UnknownNameError, nearest


class Contradiction(ValueError):
    """A problem found by a validator, with its location in the file."""

    def __init__(self, message: str, *location: Any) -> None:
        super().__init__(message)
        self.location = location


@contextlib.contextmanager
def at(*location: Any) -> Iterator[None]:
    """Add the location in the file to an error raised inside the block."""
    try:
        yield
    except KdbenchError as error:
        raise Contradiction(str(error), *location) from None


def find(kind: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        raise UnknownNameError(kind, name, valid)


def first_problem(error: ValidationError, root: type[BaseModel], content: Any) -> tuple[tuple[Any, ...], str]:
    """Location and sentence of the first problem of ``content``; for an unknown key, with the nearest valid one.

    Where a field may have one of several forms, the form that the content resembles most counts: its problem lies deepest.
    """
    problems = error.errors(include_url=False)
    first = _location(problems[0], content)
    problem = max(
        (each for each in problems if _location(each, content)[: len(first)] == first),
        key=lambda each: len(_location(each, content)),
    )
    location = _location(problem, content)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return location, str(cause)
    if problem["type"] == "extra_forbidden":
        return location, f"unknown key; {nearest(str(location[-1]), _valid_keys(root, location[:-1]))}"
    if problem["type"] == "missing":
        return location[:-1], f"{location[-1]} is missing"
    given = problem["input"]
    if problem["type"] == "string_type" and isinstance(given, (bool, int, float, datetime.date)):
        # what was written is lost where YAML reads a truth value (no, on, y) or a date
        quoted = f"write quotes: {str(given)!r}" if type(given) in (int, float) else "write it in quotes"
        kind = {bool: "truth value", int: "number", float: "number"}.get(type(given), "date")
        return location, f"YAML reads a {kind} where a text belongs; {quoted}"
    found = "" if isinstance(given, (dict, list, BaseModel)) else f" (found {given!r})"
    return location, problem["msg"][0].lower() + problem["msg"][1:] + found


def _location(problem: Any, content: Any) -> tuple[Any, ...]:
    """Keys and positions in the content, without the names that pydantic gives to the forms of a field."""
    location: list[Any] = []
    for place, key in enumerate(problem["loc"]):
        absent = place == len(problem["loc"]) - 1 and problem["type"] == "missing"
        if key == "[key]" or not (absent or _holds(content, key)):
            continue
        location.append(key)
        content = None if absent else content[key]
    cause = problem.get("ctx", {}).get("error")
    return (*location, *(cause.location if isinstance(cause, Contradiction) else ()))


def _holds(content: Any, key: Any) -> bool:
    if isinstance(content, Mapping):
        return key in content
    return isinstance(content, (list, tuple)) and isinstance(key, int) and key < len(content)


def _valid_keys(root: type[BaseModel], location: Sequence[Any]) -> list[str]:
    model: Any = root
    for key in location:
        fields = getattr(model, "model_fields", None)
        annotation = fields[key].annotation if fields and key in fields else model
        model = next((part for part in _models_in(annotation)), model)
    return list(getattr(model, "model_fields", {}))


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
