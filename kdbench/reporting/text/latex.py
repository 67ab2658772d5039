"""Writes a ``Table`` as a LaTeX float that needs booktabs alone; with graphicx loaded, a wide one is scaled.

A table of many columns becomes several panels below each other, so that what is scaled to the line can still be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from kdbench.reporting.table import Cell, Header, Table
from kdbench.reporting.text.markup import (
    STYLES,
    Style,
    cell_markup,
    groups_of,
    note_lines,
    one_line,
    spans_of,
    title_lines,
    title_markup,
)

# A table wider than the line is scaled where graphicx is there to do it; without it, it is set as it is.
_FIT = r"\ifdim\wd2>\linewidth\ifdefined\resizebox\resizebox{\linewidth}{!}{\box2}\else\box2\fi\else\box2\fi"


#: Columns of one panel.
MAX_COLUMNS = 10
#: Lines of a float, caption and notes not counted: more do not fit on a page. Wide tables are set smaller.
MAX_LINES, MAX_LINES_WIDE = 40, 46
#: Lines of notes under a float; more stand in the text after it, where they may run over pages.
MAX_NOTE_LINES = 12
#: Characters of a line of long text in a cell.
_TEXT_WIDTH = 24
#: Wider tables span both columns of a two-column page (``table*``, which is a plain ``table`` where there is one column).
ONE_COLUMN = 6


def write_latex(table: Table) -> str:
    """A ``table`` environment; the command and the hash of the results are comments before it."""
    style = STYLES["latex"]
    comments = [
        f"% {one_line(table.command)}",
        f"% results {table.results_hash}; needs \\usepackage{{booktabs}}, and graphicx to fit wide tables to the line",
    ]
    if table.message:
        return "\n".join([*comments, rf"\emph{{{style.escape(table.message)}}}"]) + "\n"
    floats = _floats(table)
    lines = comments
    notes = note_lines(table, style)
    apart = sum(-(-len(note) // 90) for note in notes) > MAX_NOTE_LINES
    for number, parts in enumerate(floats):
        under = [] if apart or number < len(floats) - 1 else notes
        lines += _float(table, parts, style, number == 0, under)
    if apart:
        lines += [rf"\par\medskip{{\footnotesize\raggedright\noindent Notes to Table~\ref{{tab:{table.label}}}:\par"]
        lines += [*(f"{note}\\par" for note in notes), r"}\medskip"]
    return "\n".join(lines) + "\n"


def _float(whole: Table, parts: Sequence[Table], style: Style, first: bool, notes: Sequence[str]) -> list[str]:
    """One float; the caption and the label are on the first."""
    environment = "table" if len(whole.columns) <= ONE_COLUMN else "table*"
    caption = rf"\caption{{{style.escape(whole.caption)}}}\label{{tab:{whole.label}}}"
    if not first:
        caption = r"\addtocounter{table}{-1}\caption{Continued.}"
    lines = [
        rf"\begin{{{environment}}}[tbp]",
        r"\centering",
        r"\small" if len(whole.columns) <= ONE_COLUMN + 2 else r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"{caption}\par\medskip",
    ]
    for number, part in enumerate(parts):
        lines += [
            *([r"\par\medskip"] if number else []),
            rf"\setbox2=\hbox{{\begin{{tabular}}{{{''.join(_column_types(part))}}}",
            r"\toprule",
            *_head(part, style),
            *_body(part, style),
            r"\bottomrule",
            r"\end{tabular}}%",
            _FIT,
        ]
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\raggedright\footnotesize"]
        lines += [f"{note}\\par" for note in notes]
        lines.append(r"\end{minipage}")
    return [*lines, rf"\end{{{environment}}}"]


def _floats(table: Table) -> list[list[Table]]:
    """The panels of each float: all in one where a page holds them, else each panel alone, cut by rows where it is long."""
    heights = [max([1, *(-(-len(cell.text) // _TEXT_WIDTH) for cell in row)]) for row in table.cells]
    groups = sum(header.group != before.group for before, header in itertools.pairwise(table.rows)) + 1
    parts = panels(table)
    limit = MAX_LINES if len(table.columns) <= ONE_COLUMN + 2 else MAX_LINES_WIDE
    if (sum(heights) + groups + 3) * len(parts) <= limit:
        return [parts]
    edges, used = [0], 0
    for i, height in enumerate(heights):
        height += i == edges[-1] or table.rows[i].group != table.rows[i - 1].group
        if used + height > limit - 6:
            edges.append(i)
            used = 0
        used += height
    edges.append(len(heights))
    return [
        [replace(part, rows=part.rows[start:end], cells=part.cells[start:end])]
        for part in parts
        for start, end in itertools.pairwise(edges)
    ]


def panels(table: Table) -> list[Table]:
    """The table cut into parts of about equally many columns, at most ``MAX_COLUMNS`` each."""
    count = -(-len(table.columns) // MAX_COLUMNS)
    edges = [len(table.columns) * number // count for number in range(count + 1)]
    return [
        replace(
            table, columns=table.columns[start:end], cells=tuple(row[start:end] for row in table.cells)
        )
        for start, end in itertools.pairwise(edges)
    ]  # fmt: skip


def _head(table: Table, style: Style) -> list[str]:
    lines = []
    spans = spans_of(table.columns)
    if any(title for title, _ in spans):
        cells, rules, start = [], [], 2
        for title, length in spans:
            cells.append(rf"\multicolumn{{{length}}}{{c}}{{{style.escape(title)}}}")
            if title:
                rules.append(rf"\cmidrule(lr){{{start}-{start + length - 1}}}")
            start += length
        lines += [" & " + " & ".join(cells) + r" \\", " ".join(rules)]
    types = _column_types(table)[1:]
    titles = (_column_title(header, kind, style) for header, kind in zip(table.columns, types, strict=True))
    return [*lines, " & ".join([style.escape(table.corner), *titles]) + r" \\"]


def _body(table: Table, style: Style) -> list[str]:
    lines: list[str] = []
    types = _column_types(table)[1:]
    for group, rows in groups_of(table):
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{style.escape(group)}}}}} \\")
        for header, row in rows:
            cells = (_cell(cell, kind, style) for cell, kind in zip(row, types, strict=True))
            lines.append(" & ".join([title_markup(header, style), *cells]) + r" \\")
    return lines


def _column_types(table: Table) -> list[str]:
    """``r`` for numbers, ``l`` for text, a paragraph for long text."""
    types = ["l"]
    for i in range(len(table.columns)):
        longest = max((len(row[i].text) for row in table.cells), default=0)
        textual = any(row[i].kind == "text" for row in table.cells)
        types.append(r"p{0.3\linewidth}" if longest > 30 else "l" if textual else "r")
    return types


def _column_title(header: Header, kind: str, style: Style) -> str:
    """A column's title; on several lines where it is long (tabular in tabular, so that no package is needed)."""
    lines = [style.escape(line) for line in title_lines(header.title + (" (rec.)" if header.reconstruction else ""))]
    if len(lines) == 1:
        return lines[0]
    side = "r" if kind == "r" else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _cell(cell: Cell, kind: str, style: Style) -> str:
    text = cell_markup(cell, style)
    if kind.startswith("p") and text:
        return rf"{{\raggedright {text}\par}}"
    return text.replace("-", "$-$", 1) if cell.kind in ("value", "gain") and cell.value < 0 else text
