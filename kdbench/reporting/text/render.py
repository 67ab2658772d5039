"""Writes a ``Table`` as markdown, LaTeX, CSV, HTML or plain text: the table says what, this how it looks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from kdbench.reporting.grid import Table
from kdbench.reporting.text.latex import write_latex
from kdbench.reporting.text.markup import (
    STYLES,
    Style,
    cell_markup,
    cut,
    escape_markdown,
    group_title,
    groups_of,
    html_comment,
    note_lines,
    one_line,
    spans_of,
    title_lines,
    title_markup,
)


def render(table: Table, format: str) -> str:
    """Write a table.

    Args:
        table: from ``build_table`` or ``published_ledger``.
        format: ``"markdown"``, ``"latex"`` (needs booktabs alone), ``"csv"`` (tidy, plain numbers), ``"json"`` (the same, with
            caption and notes), ``"html"`` (a fragment) or ``"text"``.
    """
    return WRITERS[format](table)


def _tabulated(table: Table, style: Style, headers: list[str], form: str, group_row: Callable[[str], str]) -> str:
    """The body in a format of tabulate; a group of rows begins with a row that holds its title alone."""
    from tabulate import tabulate

    body: list[list[str]] = []
    for group, rows in groups_of(table):
        if group:
            body.append([group_row(style.escape(group)), *[""] * len(table.columns)])
        body += [[title_markup(header, style), *(cell_markup(cell, style) for cell in row)] for header, row in rows]
    columns = zip(*table.cells, strict=True) if table.cells else ()
    aligned = ["left", *("left" if any(c.kind == "text" for c in column) else "right" for column in columns)]
    return tabulate(body, headers, tablefmt=form, disable_numparse=True, colalign=aligned)


def _markdown(table: Table) -> str:
    comment = html_comment(table.command, table.results_hash)
    if table.message:
        return f"{comment}\n\n{escape_markdown(table.message)}\n"
    style = STYLES["markdown"]
    bodies: list[str] = []
    for part in cut(table, _widths(table, style), MARKDOWN_WIDTH):
        headers = [style.escape(part.corner), *(title_markup(header, style) for header in part.columns)]
        bodies += [_tabulated(part, style, headers, "pipe", "**{}**".format), ""]
    notes = [] if table.bare else _column_groups(table, style) + note_lines(table, style)
    caption = [escape_markdown(table.caption), ""] if table.caption and not table.bare else []
    return "\n".join([comment, "", *bodies, *caption, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _widths(table: Table, style: Style) -> list[float]:
    """Characters of each column as GitHub shows them, the titles of rows first, with what stands between two."""

    def shown(text: str) -> int:
        return len(re.sub(r"</?\w+>|\*\*|\\", "", text)) + 3

    titles = [shown(title_markup(header, style)) for header in table.rows]
    return [
        float(max([*titles, shown(table.corner)])),
        *(
            float(
                max([shown(title_markup(header, style)), *(shown(cell_markup(row[i], style)) for row in table.cells)])
            )
            for i, header in enumerate(table.columns)
        ),
    ]


def _column_groups(table: Table, style: Style) -> list[str]:
    """Markdown cannot span columns, so their groups are said in a line."""
    groups: dict[str, list[str]] = {}
    for header in table.columns:
        if group := group_title(header.group):
            groups.setdefault(style.escape(group), []).append(title_markup(header, style))
    said = "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items())
    return [f"Columns: {said}."] if groups else []


def _text(table: Table) -> str:
    if table.message:
        return f"{one_line(table.message)}\n"
    style = STYLES["text"]
    tops = ["", *(top if i == 0 else "" for top, length in spans_of(table.columns) for i in range(length))]
    titles = [[table.corner], *(title_lines(title_markup(header, style)) for header in table.columns)]
    height = max(map(len, titles))
    stacks = [[""] * (height - len(title)) + title for title in titles]
    if any(tops):
        stacks = [[top, *stack] for top, stack in zip(tops, stacks, strict=True)]
    body = _tabulated(table, style, ["\n".join(stack) for stack in stacks], "simple", "{}:".format)
    below = [] if table.bare else [one_line(table.caption), *note_lines(table, style)]
    return "\n".join([body, "", *below]).rstrip() + "\n"


def _html(table: Table) -> str:
    style = STYLES["html"]
    comment = html_comment(table.command, table.results_hash)
    if table.message:
        return f'{comment}\n<p class="kdbench-empty">{style.escape(table.message)}</p>\n'
    caption = [f"<caption>{style.escape(table.caption)}</caption>"] if table.caption and not table.bare else []
    lines = [comment, '<table class="kdbench-table">', *caption, "<thead>"]
    spans = spans_of(table.columns)
    if any(title for title, _ in spans):
        cells = "".join(f'<th scope="colgroup" colspan="{n}">{style.escape(title)}</th>' for title, n in spans)
        lines.append(f"<tr><td></td>{cells}</tr>")
    cells = "".join(f'<th scope="col">{title_markup(header, style)}</th>' for header in table.columns)
    lines += [f'<tr><th scope="col">{style.escape(table.corner)}</th>{cells}</tr>', "</thead>", "<tbody>"]
    for group, rows in groups_of(table):
        if group:
            span = f'colspan="{len(table.columns) + 1}"'
            lines.append(f'<tr class="group"><th scope="rowgroup" {span}>{style.escape(group)}</th></tr>')
        for header, row in rows:
            cells = "".join(f'<td class="{cell.kind}">{cell_markup(cell, style)}</td>' for cell in row)
            lines.append(f'<tr class="{header.kind}"><th scope="row">{title_markup(header, style)}</th>{cells}</tr>')
    lines += ["</tbody>", "</table>"]
    notes = "" if table.bare else "".join(f"<li>{note}</li>" for note in note_lines(table, style))
    return "\n".join([*lines, f'<ul class="kdbench-notes">{notes}</ul>' if notes else ""]).rstrip() + "\n"


def _json(table: Table) -> str:
    records = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in table.records.to_dict("records")
    ]
    about = {"command": table.command, "results_hash": table.results_hash, "caption": table.caption or table.message}
    return (
        json.dumps({**about, "notes": [note.text for note in table.notes], "rows": records}, indent=1, default=str)
        + "\n"
    )


def _csv(table: Table) -> str:
    """Tidy rows. A text that a spreadsheet would take for a formula begins with an apostrophe there."""
    from pandas.api.types import is_numeric_dtype

    records = table.records.copy()
    for name in records:
        if not is_numeric_dtype(records[name]):
            records[name] = records[name].map(_csv_text)
    return records.to_csv(index=False, lineterminator="\n")


def _csv_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


#: Characters of a line on GitHub's pages, about.
MARKDOWN_WIDTH = 130

WRITERS: dict[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "latex": write_latex,
    "csv": _csv,
    "json": _json,
    "html": _html,
    "text": _text,
}
