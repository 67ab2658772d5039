"""Problems of a suite file, from pydantic and from our own checks, each as a location and one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
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


def first_problem(error: ValidationError, root: type[BaseModel]) -> tuple[tuple[Any, ...], str]:
    """Location and sentence of the first problem; for an unknown key, with the nearest valid one."""
    problem = error.errors(include_url=False)[0]
    location = tuple(key for key in problem["loc"] if key != "[key]")  # pydantic's word for "the key itself"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return location + cause.location, str(cause)
    if problem["type"] == "extra_forbidden":
        return location, f"unknown key; {nearest(str(location[-1]), _valid_keys(root, location[:-1]))}"
    if problem["type"] == "missing":
        return location[:-1], f"{location[-1]} is missing"
    given = "" if isinstance(problem["input"], (dict, list, BaseModel)) else f" (found {problem['input']!r})"
    return location, problem["msg"][0].lower() + problem["msg"][1:] + given


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
