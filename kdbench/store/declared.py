"""Hypotheses that were declared before their results: a file beside the cells of a suite and protocol, written once for each method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.opening import RefusedFileError, inside
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.layout import cell_name, cell_paths, declaration_file
from kdbench.store.result import MOST, Record, read_record, timestamp, write_record
from kdbench.suite.types import Name


class Hypothesis(Record):
    """That a method differs from another one; ``declared``: when that was said, in UTC."""

    method: Name
    against: Name
    split: Name
    declared: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]

    @property
    def what(self) -> tuple[str, str, str]:
        return self.method, self.against, self.split


Hypotheses = Annotated[tuple[Hypothesis, ...], Field(max_length=MOST)]
#: Of a column of a table: see ``as_text``.
_LIST = TypeAdapter(Hypotheses)


class Declaration(Record):
    """What the file holds."""

    version: Literal[1] = 1
    kind: Literal["declaration"] = "declaration"
    hypotheses: Hypotheses


def read_declared(root: Path, suite: str, protocol: str) -> tuple[Hypothesis, ...]:
    """The hypotheses of a suite and protocol, of all splits.

    Raises:
        DamagedFileError: if the file is damaged, a link, or no file.
    """
    try:
        return read_record(inside(root, declaration_file(suite, protocol)), Declaration).hypotheses
    except FileNotFoundError:
        return ()
    except RefusedFileError as error:
        raise DamagedFileError(error.path, f"it {error.reason}") from None


def write_declared(root: Path, suite: str, protocol: str, hypotheses: Sequence[Hypothesis]) -> None:
    write_record(inside(root, declaration_file(suite, protocol)), Declaration(hypotheses=tuple(hypotheses)))


def hypotheses_of(
    root: Path, suite: str, protocol: str, split: str, methods: Sequence[str], planned: Sequence[str], now: str = ""
) -> list[Hypothesis]:
    """What ``--confirm`` of these methods adds to what is declared: a gain over KD, or over scratch where KD is not planned.

    Args:
        planned: the methods of the plan.
        now: the time; by default the present one.

    Raises:
        UnknownNameError: for a method that is not planned.
        KdbenchError: if results of a method are there already, or there is nothing to compare with.
    """
    there = [*cell_paths(root, suite, protocol)] if methods else []
    compared = {*planned, *(cell_name(path)["method"] for path in there)}
    against = next((name for name in ("kd", "scratch") if name in compared), "")
    known = {each.what for each in read_declared(root, suite, protocol)} if methods else set()
    added = []
    for method in dict.fromkeys(methods):
        if method not in planned:
            raise UnknownNameError("method", method, planned, "--confirm: the plan")
        if not against:
            raise KdbenchError(f"--confirm {method}: a gain over kd or scratch is declared, and neither is planned")
        if method == against:
            raise KdbenchError(
                f"--confirm {method}: that is what gains are counted from; name methods that are compared with it"
            )
        new = Hypothesis(
            method=method,
            against=against,
            split=split,
            declared=now or timestamp(),
        )
        if new.what in known:
            continue
        begun = sum(cell_name(path)["method"] == method and _split(root, path) in (split, "") for path in there)
        if begun:
            raise KdbenchError(
                f"--confirm {method}: {counted(begun, 'cell')} of it are in {root} already, and what is declared afterwards is no "
                "declaration; without --confirm its results are exploratory"
            )
        added.append(new)
    return added


def joined(found: Iterable[Hypothesis]) -> tuple[Hypothesis, ...]:
    """Each hypothesis once, with the date of its first declaration, in the order of method and split."""
    first: dict[tuple[str, str, str], Hypothesis] = {}
    for each in sorted(found, key=lambda each: (each.what, each.declared)):
        first.setdefault(each.what, each)
    return tuple(first.values())


def as_text(hypotheses: Sequence[Hypothesis]) -> str:
    """For a column of a table; empty without any."""
    return _LIST.dump_json(tuple(hypotheses)).decode() if hypotheses else ""


def of_text(texts: Iterable[str]) -> tuple[Hypothesis, ...]:
    """What the texts of a column hold together."""
    return joined(each for text in {*texts} if text for each in _LIST.validate_json(text))


def _split(root: Path, path: str) -> str:
    """What a cell is measured on; empty where that cannot be read."""
    try:
        return str(read_json(inside(root, f"{path}/config.json"))["config"]["split"])
    except (OSError, KdbenchError, KeyError, TypeError):
        return ""
