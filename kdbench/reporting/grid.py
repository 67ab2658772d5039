"""What a table is made of: cells, titles and notes, before formatting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        kind: ``value`` (mean, sd), ``gain`` (signed), ``rank``, ``count`` (``coverage`` = k of n), ``text``,
            ``absent`` (not run), ``unsupported``, ``failed``, ``range`` (its text), ``source`` (text that LaTeX cites), or ``empty``
            (nothing belongs here).
        best: 1 for the best of its comparison, 2 for the second, 0 otherwise.
        marks: keys of the table's notes.
        cites: keys of BibTeX, with commas, that LaTeX cites.
        coverage: for a summary over fewer pairs than its row says: (pairs used, pairs there are).
    """

    kind: str
    value: float = np.nan
    sd: float = np.nan
    decimals: int = 1
    best: int = 0
    marks: tuple[str, ...] = ()
    coverage: tuple[int, int] | None = None
    text: str = ""
    cites: str = ""


@dataclass(frozen=True)
class Header:
    """Title of a row or column.

    Attributes:
        kind: ``baseline``, ``method``, ``published``, ``ours``, ``pair``, ``summary`` or ``text``.
        better: an arrow, where one direction is.
        marks: keys of the table's notes.
        cites: keys of BibTeX, with commas, that LaTeX cites.
    """

    title: str
    kind: str
    group: str = ""
    reconstruction: bool = False
    better: str = ""
    marks: tuple[str, ...] = ()
    cites: str = ""


@dataclass(frozen=True)
class Note:
    """A footnote; ``mark`` is empty for a general one. LaTeX cites ``cites`` (keys, with commas) in its place."""

    mark: str
    text: str
    cites: str = ""


@dataclass(frozen=True)
class Table:
    """A table before formatting; ``render.render`` writes it.

    ``cells[row][column]``; ``records`` is the tidy form for CSV; ``message`` replaces a table without figures; ``short`` is a short
    caption. ``bare``: nothing but rows and columns is written. ``long``: LaTeX breaks it over pages. ``citations``: what a .bib needs.
    """

    command: str
    results_hash: str
    label: str
    corner: str = ""
    rows: tuple[Header, ...] = ()
    columns: tuple[Header, ...] = ()
    cells: tuple[tuple[Cell, ...], ...] = ()
    caption: str = ""
    notes: tuple[Note, ...] = ()
    message: str = ""
    ranked: bool = True
    short: str = ""
    bare: bool = False
    long: bool = False
    citations: tuple[Mapping[str, Any], ...] = ()
    records: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)

    def transposed(self) -> Table:
        """The same table with rows and columns exchanged."""
        cells = tuple(zip(*self.cells, strict=True)) if self.cells else ()
        corner = {"teacher → student": "method"}.get(self.corner, self.corner)
        return replace(self, corner=corner, rows=self.columns, columns=self.rows, cells=cells)


def mark_best(row: Sequence[Cell], ranked: Sequence[bool], higher_is_better: bool = True) -> list[Cell]:
    """Mark best and second of the ``ranked`` cells, at printed precision; nothing where fewer than two are ranked."""
    printed = {i: float(f"{cell.value:.{cell.decimals}f}") for i, cell in enumerate(row) if ranked[i]}
    if len(printed) < 2:
        return list(row)
    first = sorted(set(printed.values()), reverse=higher_is_better)[:2]
    return [
        replace(cell, best=1 + first.index(printed[i])) if printed.get(i) in first else cell
        for i, cell in enumerate(row)
    ]


def letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
