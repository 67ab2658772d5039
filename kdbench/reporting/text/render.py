"""Writes a ``Table`` as markdown, LaTeX, CSV, HTML or plain text: the table says what, this how it looks."""

from __future__ import annotations

from collections.abc import Callable

from kdbench.reporting.table import Table
from kdbench.reporting.text.latex import write_latex
from kdbench.reporting.text.markup import (
    STYLES,
    Style,
    cell_markup,
    comment_text,
    escape_markdown,
    group_title,
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
        format: ``"markdown"``, ``"latex"`` (needs booktabs alone), ``"csv"`` (tidy, plain numbers), ``"html"`` (a
            fragment) or ``"text"``.
    """
    return WRITERS[format](table)


def _body(table: Table, style: Style, group_row: Callable[[str], str]) -> list[list[str]]:
    """Rows as text; a group of rows begins with a row that holds its title alone."""
    rows: list[list[str]] = []
    group = None
    for header, cells in zip(table.rows, table.cells, strict=True):
        if header.group != group and group_title(header.group):
            rows.append([group_row(style.escape(group_title(header.group))), *[""] * len(table.columns)])
        group = header.group
        rows.append([title_markup(header, style), *(cell_markup(cell, style) for cell in cells)])
    return rows


def _alignment(table: Table) -> list[str]:
    """Left for text, right for numbers."""
    columns = zip(*table.cells, strict=True) if table.cells else ()
    return ["left", *("left" if any(c.kind == "text" for c in column) else "right" for column in columns)]


def _markdown(table: Table) -> str:
    from tabulate import tabulate

    comment = f"<!-- {comment_text(table).replace('-->', '-- >')} -->"
    if table.message:
        return f"{comment}\n\n{escape_markdown(table.message)}\n"
    style = STYLES["markdown"]
    headers = [style.escape(table.corner), *(title_markup(header, style) for header in table.columns)]
    body = tabulate(
        _body(table, style, "**{}**".format),
        headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=_alignment(table),
    )
    lines = [comment, "", body, "", escape_markdown(table.caption), ""]
    lines += [f"- {note}" for note in _column_groups(table, style) + note_lines(table, style)]
    return "\n".join(lines).rstrip() + "\n"


def _column_groups(table: Table, style: Style) -> list[str]:
    """Markdown cannot span columns, so their groups are said in a line."""
    groups: dict[str, list[str]] = {}
    for header in table.columns:
        if group_title(header.group):
            groups.setdefault(group_title(header.group), []).append(title_markup(header, style))
    return (
        ["Columns: " + "; ".join(f"{style.escape(g)}: {', '.join(names)}" for g, names in groups.items()) + "."]
        if groups
        else []
    )


def _text(table: Table) -> str:
    from tabulate import tabulate

    if table.message:
        return f"{one_line(table.message)}\n"
    style = STYLES["text"]
    tops = ["", *(group_title(header.group) for header in table.columns)]
    shown = [top if i == 0 or top != tops[i - 1] else "" for i, top in enumerate(tops)]
    titles = [[table.corner], *(title_lines(title_markup(header, style)) for header in table.columns)]
    height = max(map(len, titles))
    stacks = [[""] * (height - len(title)) + title for title in titles]
    if any(shown):
        stacks = [[top, *stack] for top, stack in zip(shown, stacks, strict=True)]
    headers = ["\n".join(stack) for stack in stacks]
    body = tabulate(
        _body(table, style, "{}:".format),
        headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=_alignment(table),
    )
    return "\n".join([body, "", one_line(table.caption), *note_lines(table, style)]).rstrip() + "\n"


def _html(table: Table) -> str:
    style = STYLES["html"]
    comment = f"<!-- {comment_text(table).replace('-->', '-- >')} -->"
    if table.message:
        return f'{comment}\n<p class="kdbench-empty">{style.escape(table.message)}</p>\n'
    lines = [comment, '<table class="kdbench-table">', f"<caption>{style.escape(table.caption)}</caption>", "<thead>"]
    spans = spans_of(table.columns)
    if any(group_title(group) for group, _ in spans):
        cells = "".join(f'<th scope="colgroup" colspan="{n}">{style.escape(group_title(g))}</th>' for g, n in spans)
        lines.append(f"<tr><td></td>{cells}</tr>")
    cells = "".join(f'<th scope="col">{title_markup(header, style)}</th>' for header in table.columns)
    lines += [f'<tr><th scope="col">{style.escape(table.corner)}</th>{cells}</tr>', "</thead>", "<tbody>"]
    group = None
    for header, row in zip(table.rows, table.cells, strict=True):
        if header.group != group and group_title(header.group):
            title = style.escape(group_title(header.group))
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(table.columns) + 1}">{title}</th></tr>')
        group = header.group
        cells = "".join(f'<td class="{cell.kind}">{cell_markup(cell, style)}</td>' for cell in row)
        lines.append(f'<tr class="{header.kind}"><th scope="row">{title_markup(header, style)}</th>{cells}</tr>')
    lines += ["</tbody>", "</table>"]
    notes = "".join(f"<li>{note}</li>" for note in note_lines(table, style))
    return "\n".join([*lines, f'<ul class="kdbench-notes">{notes}</ul>' if notes else ""]).rstrip() + "\n"


WRITERS: dict[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "latex": write_latex,
    "csv": lambda table: table.records.to_csv(index=False, lineterminator="\n"),
    "html": _html,
    "text": _text,
}
