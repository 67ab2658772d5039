"""Tables of several suites as one: a group of columns, or of rows, for each. Nothing is pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from kdbench.reporting.grid import Cell, Header, Note, Table, letter

_KINDS = ("baseline", "method", "published", "ours", "text")
#: Rows below the pairs that a table of several suites does without.
_LEFT_OUT = ("average rank", "pairs harmed")


def join_tables(tables: Sequence[Table], titles: Sequence[str], layout: str) -> Table:
    """One table of several in the layout ``pairs``, each with its own pairs, averages and notes.

    Args:
        tables: of one suite, protocol and split each.
        titles: what each is called.
        layout: ``"methods"``: suites are groups of columns; ``"pairs"``: of rows.
    """
    shown = [(table, title) for table, title in zip(tables, titles, strict=True) if not table.message]
    missing = [
        Note("", f"{title}: {table.message}") for table, title in zip(tables, titles, strict=True) if table.message
    ]
    if not shown:
        return replace(tables[0], message=" ".join(table.message for table in tables))
    marked = [_marked(table, title, number) for number, (table, title) in enumerate(shown)]
    columns: dict[tuple[str, str], Header] = {}
    for table in marked:
        for header in table.columns:
            before = columns.setdefault((header.kind, header.title), header)
            marks = tuple(dict.fromkeys((*before.marks, *header.marks)))
            group = "methods" if header.kind == "method" else before.group  # families would take a line each
            columns[header.kind, header.title] = replace(before, marks=marks, group=group)
    order = sorted(columns, key=lambda key: _KINDS.index(key[0]))
    rows: list[Header] = []
    cells: list[tuple[Cell, ...]] = []
    for table, (_, title) in zip(marked, shown, strict=True):
        places = {(header.kind, header.title): i for i, header in enumerate(table.columns)}
        for header, row in zip(table.rows, table.cells, strict=True):
            if header.title.startswith(_LEFT_OUT):
                continue
            absent = Cell("empty" if header.kind == "summary" else "absent")
            rows.append(replace(header, group=title))
            cells.append(tuple(row[places[key]] if key in places else absent for key in order))
    notes = [note for table in marked for note in table.notes if not note.text.startswith("Pairs harmed")]
    general = [note for note in notes if not note.mark]
    whole = replace(
        shown[0][0],
        results_hash="+".join(table.results_hash for table, _ in shown),
        label="-".join(["kdbench", *(table.label.removeprefix("kdbench-") for table, _ in shown)]),
        rows=tuple(rows),
        columns=tuple(columns[key] for key in order),
        cells=tuple(cells),
        caption=" ".join(f"{title}: {table.caption}" for table, title in shown),
        short=" ".join(dict.fromkeys(table.short for table, _ in shown)),
        notes=tuple(dict.fromkeys([*(note for note in notes if note.mark), *general, *missing])),
        ranked=any(table.ranked for table, _ in shown),
        citations=tuple({c["key"]: c for table, _ in shown for c in table.citations}.values()),
        records=pd.concat([table.records for table in tables], ignore_index=True),
    )
    return whole if layout == "pairs" else whole.transposed()


def _marked(table: Table, title: str, number: int) -> Table:
    """The table with marks that no other one has, where they say something of this one, and notes that name it."""
    own = {note.mark for note in table.notes if note.mark.isalnum()}
    known = {mark: f"{mark}{letter(number)}" if mark.isdigit() else f"{letter(number)}-{mark}" for mark in own}

    def marks(of: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known.get(mark, mark) for mark in of)

    return replace(
        table,
        columns=tuple(replace(header, marks=marks(header.marks)) for header in table.columns),
        cells=tuple(tuple(replace(cell, marks=marks(cell.marks)) for cell in row) for row in table.cells),
        notes=tuple(
            replace(note, mark=known.get(note.mark, note.mark), text=_named(note, title)) for note in table.notes
        ),
    )


def _named(note: Note, title: str) -> str:
    """What holds of every table alike, or names its source, needs no name of a suite."""
    return note.text if note.text.startswith(("(rec.)", "published:", "Over best other")) else f"{title}: {note.text}"
