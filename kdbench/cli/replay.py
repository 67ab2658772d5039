"""Requests as commands: the one that trains a cell again alone, and the one that was given."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.cli.options import FIELDS, PARAMETERS
from kdbench.matrix.cells import Cell
from kdbench.matrix.request import Request


def command_of(request: Request) -> str:
    """The shell command ``kdbench run`` that makes this request."""
    changed = {name: getattr(request, name) for name in FIELDS}
    changed = {name: value for name, value in changed.items() if value not in (FIELDS[name].default, (), {})}
    return shlex.join(["kdbench", "run", *words_of({**changed, "suite": request.suite})])


def words_of(fields: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these fields of a request."""
    words = [str(fields["suite"])] if "suite" in fields else []
    return words + [word for name, value in fields.items() if name != "suite" for word in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    parameter = PARAMETERS[name]
    option = parameter.opts[0]
    if isinstance(value, bool):
        return [option] if value != FIELDS[name].default else []
    if name == "set":
        value = [f"{method}.{text}" for method, values in value.items() for text in _assignments(values)]
    if name == "variants":
        value = [",".join((f"{row}={it['method']}", *_assignments(it["set"]))) for row, it in value.items()]
    if parameter.multiple:
        return [word for item in value for word in (option, item)]
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return [option, str(value)]


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def replay_command(cell: Cell, request: Request) -> str:
    """The command that trains one cell of a request again, alone, from any folder."""
    alone = replace(
        request.absolute(),
        protocol=cell.protocol,
        pairs=(cell.pair,),
        methods=(cell.method,),
        seeds=(cell.seed,),
        set={name: values for name, values in request.set.items() if name in (cell.method, cell.facts["variant_of"])},
        variants={name: variant for name, variant in request.variants.items() if name == cell.method},
        confirm=(),
        solo=True,
        retry_failed=True,
    )
    return command_of(alone)


#: The words of the command that does what was called from Python; None on the command line.
CALLED: ContextVar[Sequence[str] | None] = ContextVar("CALLED", default=None)


def _words_given() -> Sequence[str]:
    called = CALLED.get()
    return sys.argv[1:] if called is None else called


def command_given() -> str:
    """The command that was given."""
    return shlex.join(["kdbench", *_words_given()])


def command_published() -> str:
    """The command that was given, for what is published: names of files and folders elsewhere without the way to them."""
    return shlex.join(["kdbench", *map(_published, _words_given())])


def _published(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        here = Path.cwd()
        path = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
    return f"{option}{equals}{path if '/' in value else value}"
