"""What an author chooses of a table: whose it is, what gains are counted from, order, names and figures. It changes no result."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from kdbench.errors import UnknownNameError
from kdbench.reporting.frame import Results


@dataclass(frozen=True)
class Choices:
    """An author's choices; by default none.

    Attributes:
        ours: a method that stands last, apart, compared with the best other one.
        baseline: what gains are counted from; empty: KD, else scratch.
        order: methods, names or globs, that stand first, in this order.
        names: name of a method, a net or a suite -> how the table calls it.
        decimals: of figures; gains have one more; None: the metric's.
        sd: whether standard deviations are shown.
        published: whether figures of papers stand beside.
        cite: whether LaTeX cites the papers of methods.
    """

    ours: str = ""
    baseline: str = ""
    order: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    decimals: int | None = None
    sd: bool = True
    published: bool = False
    cite: bool = False


def arranged(results: Results, choices: Choices) -> Results:
    """Results with methods in the order that was chosen, and the baseline of gains.

    Raises:
        UnknownNameError: for a method that the results do not hold.
    """
    names = [*results.methods.index]
    for chosen in (choices.ours, choices.baseline):
        if chosen and chosen not in names:
            raise UnknownNameError("method", chosen, names)
    first: list[str] = []
    for pattern in choices.order:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise UnknownNameError("method", pattern, names)
        first += [name for name in found if name not in first]
    order = [*first, *(name for name in names if name not in first)]
    order.sort(key=lambda name: name == choices.ours)
    return replace(results, methods=results.methods.loc[order], baseline=choices.baseline)


def renamed(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Rows whose methods and nets are called otherwise.

    Raises:
        UnknownNameError: for a name that is no method, net or suite of the frame.
    """
    known = {column: {*frame[column].unique()} for column in ("method", "teacher", "student", "suite")}
    for name in names:
        if not any(name in found for found in known.values()):
            raise UnknownNameError("method, net or suite", name, sorted(set().union(*known.values())))
    called = {column: frame[column].map(dict(names)) for column in ("method", "teacher", "student")}
    return frame.assign(
        **{f"{column}_display": new.where(new.notna(), frame[f"{column}_display"]) for column, new in called.items()}
    )
