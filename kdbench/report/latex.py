"""Writes a ``Table`` as a LaTeX float that needs booktabs alone; with graphicx loaded, a wide one is scaled."""

from __future__ import annotations

from kdbench.report.markup import (
    STYLES,
    Style,
    cell_markup,
    group_title,
    note_lines,
    one_line,
    spans_of,
    title_lines,
    title_markup,
)
from kdbench.report.table import Cell, Header, Table

# A table wider than the line is scaled where graphicx is there to do it; without it, it is set as it is.
_FIT = r"\ifdim\wd2>\linewidth\ifdefined\resizebox\resizebox{\linewidth}{!}{\box2}\else\box2\fi\else\box2\fi"


def write_latex(table: Table) -> str:
    """A ``table`` environment; the command and the hash of the results are comments before it."""
    style = STYLES["latex"]
    comments = [
        f"% {one_line(table.command)}",
        f"% results {table.results_hash}; needs \\usepackage{{booktabs}}, and graphicx to fit wide tables to the line",
    ]
    if table.message:
        return "\n".join([*comments, rf"\emph{{{style.escape(table.message)}}}"]) + "\n"
    width = len(table.columns) + 1
    lines = [
        *comments,
        r"\begin{table}[tbp]",
        r"\centering",
        r"\small" if width <= 9 else r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{style.escape(table.caption)}}}",
        rf"\label{{tab:{table.label}}}\par\medskip",
        rf"\setbox2=\hbox{{\begin{{tabular}}{{{''.join(_column_types(table))}}}",
        r"\toprule",
        *_head(table, style),
        *_body(table, style),
        r"\bottomrule",
        r"\end{tabular}}%",
        _FIT,
    ]
    if notes := note_lines(table, style):
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\raggedright\footnotesize"]
        lines += [f"{note}\\par" for note in notes]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _head(table: Table, style: Style) -> list[str]:
    lines = []
    spans = spans_of(table.columns)
    if any(group_title(group) for group, _ in spans):
        cells, rules, start = [], [], 2
        for group, length in spans:
            title = style.escape(group_title(group))
            cells.append(rf"\multicolumn{{{length}}}{{c}}{{{title}}}")
            if title:
                rules.append(rf"\cmidrule(lr){{{start}-{start + length - 1}}}")
            start += length
        lines += [" & " + " & ".join(cells) + r" \\", " ".join(rules)]
    types = _column_types(table)[1:]
    titles = (_column_title(header, kind, style) for header, kind in zip(table.columns, types, strict=True))
    return [*lines, " & ".join([style.escape(table.corner), *titles]) + r" \\"]


def _body(table: Table, style: Style) -> list[str]:
    lines: list[str] = []
    group = None
    types = _column_types(table)[1:]
    for header, row in zip(table.rows, table.cells, strict=True):
        if header.group != group or not lines:
            lines.append(r"\midrule")
            if title := style.escape(group_title(header.group)):
                lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{title}}}}} \\")
        group = header.group
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
