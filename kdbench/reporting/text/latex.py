"""Writes a ``Table`` as LaTeX that needs booktabs alone, and longtable where it is broken over pages.

Everything is set in ``\footnotesize``, 8 pt in an article of 10 pt. A table wider than a line of 380 pt, as conferences of one
column have, becomes panels below each other; in a narrower layout, or for long names, it is scaled where graphicx is there to do it.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import replace

from kdbench.reporting.grid import Cell, Header, Table
from kdbench.reporting.text.markup import (
    STYLES,
    Style,
    cell_markup,
    cut,
    groups_of,
    note_lines,
    one_line,
    plain_cell,
    spans_of,
    title_lines,
    title_markup,
)

# A table wider than the line is scaled where graphicx is there to do it; without it, it is set as it is.
_FIT = r"\leavevmode\ifdim\wd2>\linewidth\ifdefined\resizebox\resizebox{\linewidth}{!}{\box2}\else\box2\fi\else\box2\fi"

#: Points of a line, and of one of two columns.
LINE, COLUMN = 380, 200
#: Rows of 10.5 pt on a page of the standard article, what stands around a float left out.
PAGE = 49
#: Lines of notes under a float; more stand in the text after it, where they may run over pages.
MAX_NOTE_LINES = 12
#: Points between columns; of text that is long, and of the narrowest column that it is broken to.
_GAP, _NARROW, _NARROWEST = 6, 60, 50
#: Characters of text in a cell that may not be broken, and of a line of long text.
_SHORT, _TEXT_WIDTH = 18, 24
#: Characters of a line of a column's title.
_TITLE = 9
#: Points of characters at 8 pt; of all others 4.25.
_POINTS = {
    **dict.fromkeys(string.ascii_uppercase, 6.0),
    **dict.fromkeys(".,:;'|ijl()[]", 2.6),
    **dict.fromkeys("frstI", 3.3),
    **dict.fromkeys("±+-–→↑↓×MWmw%", 7.0),
    " ": 2.9,
}
_COMMAND = re.compile(r"\\\w+|[{}$]")
_SPACING = r"\setlength{\tabcolsep}{3pt}\renewcommand{\arraystretch}{1.1}"
# In a paragraph; the end of the row stays what it is.
_RAGGED = r"\raggedright\let\\\tabularnewline "
# longtable is for one column alone.
_ONE_COLUMN = (
    r"\csname if@twocolumn\endcsname\onecolumn\def\kdbenchcolumns{\twocolumn}\else\let\kdbenchcolumns\relax\fi"
)


def write_latex(table: Table) -> str:
    """A float, or a ``longtable``; the command and the hash of the results are comments before it."""
    style = STYLES["latex"]
    needs = "booktabs and longtable" if table.long else "booktabs, and graphicx to fit what is too wide"
    comments = [f"% {one_line(table.command)}", f"% results {table.results_hash}; needs {needs}"]
    if table.message:
        return "\n".join([*comments, rf"\emph{{{style.escape(table.message)}}}"]) + "\n"
    papers = _papers(table, style)
    table = _uncited(table)
    notes = [*note_lines(table, style), *([papers] if papers else [])]
    if table.long:
        lines = _long(table, style, notes)
    elif table.bare:
        lines = [f"% {papers}"] * bool(papers) + _tabular(table, style)
    else:
        lines = _floated(table, style, notes)
    if any(r"\cite{" in line for line in lines):
        comments.append("% cites papers: --bib FILE writes their entries")
    return "\n".join([*comments, *lines]) + "\n"


def _floated(table: Table, style: Style, notes: list[str]) -> list[str]:
    of_notes = sum(-(-len(_COMMAND.sub("", note)) // 90) for note in notes)
    apart = of_notes > MAX_NOTE_LINES
    floats = _floats(table, PAGE - 1.2 * -(-len(table.caption) // 85) - (0 if apart else of_notes))
    lines = []
    for number, parts in enumerate(floats):
        under = [] if apart or number < len(floats) - 1 else notes
        lines += _float(table, parts, style, number == 0, under)
    if apart:
        of = rf"Notes to Table~\ref{{tab:{table.label}}}:" if table.caption else "Notes to the table above:"
        lines += [rf"\par\medskip{{\footnotesize\raggedright\noindent {of}\par"]
        lines += [*(f"{note}\\par" for note in notes), r"}\medskip"]
    return lines


def _float(whole: Table, parts: Sequence[Table], style: Style, first: bool, notes: Sequence[str]) -> list[str]:
    """One float; the caption and the label are on the first."""
    environment = "table" if len(parts) == 1 and sum(_widths(parts[0])) <= COLUMN else "table*"
    caption = rf"\caption{{{style.escape(whole.caption)}}}\label{{tab:{whole.label}}}"
    if not first:
        caption = r"\addtocounter{table}{-1}\caption{Continued.}"
    lines = [
        rf"\begin{{{environment}}}[tbp]",
        r"\centering",
        r"\footnotesize",
        _SPACING,
        *([rf"{caption}\par\medskip"] if whole.caption else []),
    ]
    for number, part in enumerate(parts):
        tabular = _tabular(part, style)
        lines += [*([r"\par\medskip"] if number else []), rf"\setbox2=\hbox{{{tabular[0]}", *tabular[1:-1]]
        lines += [rf"{tabular[-1]}}}%", _FIT]
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\raggedright\footnotesize"]
        lines += [f"{note}\\par" for note in notes]
        lines.append(r"\end{minipage}")
    return [*lines, rf"\end{{{environment}}}"]


def _tabular(table: Table, style: Style) -> list[str]:
    types = _column_types(table)
    return [
        rf"\begin{{tabular}}{{{''.join(types)}}}",
        r"\toprule",
        *_head(table, types, style),
        *_body(table, types, style),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _long(table: Table, style: Style, notes: Sequence[str]) -> list[str]:
    types = _column_types(table)
    head = [r"\toprule", *_head(table, types, style), r"\midrule"]
    caption = rf"\caption{{{style.escape(table.caption)}}}\label{{tab:{table.label}}}\\"
    shown = bool(table.caption) and not table.bare
    body = _body(table, types, style)[1:]  # the first rule is the head's
    below = [] if table.bare else [r"\par\noindent\raggedright", *(f"{note}\\par" for note in notes)]
    return [
        _ONE_COLUMN,
        rf"{{\footnotesize{_SPACING}\setlength{{\LTcapwidth}}{{\linewidth}}",
        rf"\begin{{longtable}}{{{''.join(types)}}}",
        *([caption] if shown else []),
        *head,
        r"\endfirsthead",
        *([r"\caption[]{Continued.}\\"] if shown else []),
        *head,
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *body,
        r"\end{longtable}",
        *below,
        r"}\kdbenchcolumns",
    ]


def _floats(table: Table, room: float) -> list[list[Table]]:
    """The panels of each float: as many as ``room``, in lines, holds; one that is longer is cut by rows."""
    heights = [max([1, *(-(-len(cell.text) // _TEXT_WIDTH) for cell in row)]) for row in table.cells]
    groups = sum(header.group != before.group for before, header in itertools.pairwise(table.rows)) + 1
    head = max((len(title_lines(_said(header), _TITLE)) for header in table.columns), default=1)
    head += any(header.group for header in table.columns) + 2  # two for rules and the space between panels
    parts = panels(table)
    if (together := int(room / (sum(heights) + 1.5 * groups + head))) > 0:
        return [parts[i : i + together] for i in range(0, len(parts), together)]
    edges, used = [0], float(head)
    for i, height in enumerate(heights):
        rows = height + 1.5 * (i == edges[-1] or table.rows[i].group != table.rows[i - 1].group)
        if used + rows > room:
            edges.append(i)
            used = float(head)
        used += rows
    edges.append(len(heights))
    return [
        [replace(part, rows=part.rows[start:end], cells=part.cells[start:end])]
        for part in parts
        for start, end in itertools.pairwise(edges)
    ]


def panels(table: Table) -> list[Table]:
    """The table cut into parts that fit on a line."""
    return cut(table, _widths(table), LINE)


def _papers(table: Table, style: Style) -> str:
    """Who is cited for which title. In a note, since the names of authors, which natbib prints, would widen rows and columns."""
    keys = _keys(table)
    cited: dict[str, list[str]] = {}
    for header in (*table.rows, *table.columns):
        own = replace(header, marks=tuple(mark for mark in header.marks if mark not in keys), better="")
        found = [header.cites, *(keys[mark] for mark in header.marks if mark in keys)]
        cited.setdefault(title_markup(own, style), []).extend(filter(None, found))
    said = [rf"{title}~\cite{{{','.join(dict.fromkeys(found))}}}" for title, found in cited.items() if found]
    return f"Papers: {'; '.join(said)}." if said else ""


def _uncited(table: Table) -> Table:
    """The table without what ``_papers`` says; cells that name papers cite them."""
    keys = _keys(table)

    def header(of: Header) -> Header:
        return replace(of, marks=tuple(mark for mark in of.marks if mark not in keys), cites="")

    def cell(of: Cell) -> Cell:
        found = [keys[mark] for mark in of.marks if mark in keys]
        return replace(of, marks=(), text="", cites=",".join(found)) if found and of.kind == "source" else of

    return replace(
        table,
        rows=tuple(map(header, table.rows)),
        columns=tuple(map(header, table.columns)),
        cells=tuple(tuple(map(cell, row)) for row in table.cells),
        notes=tuple(note for note in table.notes if not note.cites),
    )


def _keys(table: Table) -> dict[str, str]:
    """BibTeX keys by the mark of the note that they stand for."""
    return {note.mark: note.cites for note in table.notes if note.cites}


def _head(table: Table, types: Sequence[str], style: Style) -> list[str]:
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
    titles = (_column_title(header, kind, style) for header, kind in zip(table.columns, types[1:], strict=True))
    return [*lines, " & ".join([style.escape(table.corner), *titles]) + r" \\"]


def _body(table: Table, types: Sequence[str], style: Style) -> list[str]:
    lines: list[str] = []
    for group, rows in groups_of(table):
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{style.escape(group)}}}}} \\*")
        for header, row in rows:
            cells = (_cell(cell, kind, style) for cell, kind in zip(row, types[1:], strict=True))
            title = title_markup(header, style)
            if types[0] != "l":
                title = _RAGGED + title
            lines.append(" & ".join([title, *cells]) + r" \\")
    return lines


def _column_types(table: Table) -> list[str]:
    """``r`` for numbers, ``l`` for text, a paragraph for long text: these share what the others leave of the line."""
    widths = _widths(table)
    textual = [True, *_texts(table)]
    citing = [False, *(any(row[i].cites for row in table.cells) for i in range(len(table.columns)))]
    long = [
        text and (width >= _NARROW or cites)
        for width, text, cites in zip(_lengths(table), textual, citing, strict=True)
    ]
    if not table.long:
        long[0] = False
    rest = LINE - sum(width for width, broken in zip(widths, long, strict=True) if not broken)
    share = max(rest / max(sum(long), 1) - _GAP, _NARROWEST) / LINE
    return [
        rf"p{{{share:.3f}\linewidth}}" if broken else "l" if text else "r"
        for broken, text in zip(long, textual, strict=True)
    ]


def _texts(table: Table) -> list[bool]:
    """Of each column: whether it holds text."""
    return [any(row[i].kind in ("text", "source") for row in table.cells) for i in range(len(table.columns))]


def _lengths(table: Table) -> list[float]:
    """Points of the longest content of each column, unbroken; the first is that of the titles of rows."""
    titles = max((_points(_said(header)) for header in table.rows), default=0.0)
    return [
        max(titles, _points(table.corner)),
        *(max((_points(plain_cell(row[i])) + 3 * len(row[i].marks) for row in table.cells), default=0.0)
          for i in range(len(table.columns))),
    ]  # fmt: skip


def _widths(table: Table) -> list[float]:
    """Points that each column takes at 8 pt, with the gap beside it; long text is broken."""
    first, *lengths = _lengths(table)
    return [
        first + _GAP,
        *(
            max([min(length, _NARROW) if text else length, *map(_points, title_lines(_said(header), _TITLE))]) + _GAP
            for header, length, text in zip(table.columns, lengths, _texts(table), strict=True)
        ),
    ]


def _points(text: str) -> float:
    return sum(_POINTS.get(char, 4.25) for char in text)


def _said(header: Header) -> str:
    """A title as wide as it is printed."""
    return title_markup(replace(header, marks=()), STYLES["text"]) + "*" * len(header.marks)


def _column_title(header: Header, kind: str, style: Style) -> str:
    """A column's title; on several lines where it is long (tabular in tabular, so that no package is needed)."""
    plain = replace(header, marks=())
    lines = [style.escape(line) for line in title_lines(title_markup(plain, STYLES["text"]), _TITLE)]
    if header.marks:
        lines[-1] += style.raised(",".join(map(style.escape, header.marks)))
    if len(lines) == 1:
        return lines[0]
    side = "r" if kind == "r" else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _cell(cell: Cell, kind: str, style: Style) -> str:
    text = cell_markup(cell, style)
    if cell.cites:
        text = (text + "~" if text else "") + rf"\cite{{{cell.cites}}}"
    if kind.startswith("p") and text:
        return _RAGGED + text
    return text.replace("-", "$-$", 1) if cell.kind in ("value", "gain") and cell.value < 0 else text
