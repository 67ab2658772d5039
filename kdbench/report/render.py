"""Writes a ``Table`` as markdown, LaTeX, CSV, HTML or plain text: the table says what, this how it looks."""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdbench.errors import UnknownNameError
from kdbench.report.table import Cell, Header, Table

FORMATS = ("markdown", "latex", "csv", "html", "text")

_GROUP_TITLES = {"baseline": "baselines"}

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{''}",
    # After \\ a star or a bracket would be read as its argument.
    "*": r"{*}",
    "[": r"{[}",
    "]": r"{]}",
    "`": r"\textasciigrave{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "†": r"\textdagger{}",
    "–": "--",
    "—": "---",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
}


@dataclass(frozen=True)
class _Style:
    """How one format writes the pieces of a cell."""

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    underline: Callable[[str], str]
    raised: Callable[[str], str]
    legend: str


def render(table: Table, format: str) -> str:
    """Write a table.

    Args:
        table: from ``build_table`` or ``published_ledger``.
        format: ``"markdown"``, ``"latex"`` (needs booktabs alone), ``"csv"`` (tidy, plain numbers), ``"html"`` (a
            fragment) or ``"text"``.

    Raises:
        UnknownNameError: for another format.
    """
    writers = {"markdown": _markdown, "latex": _latex, "csv": _csv, "html": _html, "text": _text}
    if format not in writers:
        raise UnknownNameError("format", format, FORMATS)
    return writers[format](table)


def plain_cell(cell: Cell) -> str:
    """What a cell says, without emphasis, marks and escapes."""
    if cell.kind in ("value", "gain", "rank"):
        number = f"{cell.value:.{cell.decimals}f}"
        if float(number) == 0:
            number = number.lstrip("-")
        elif cell.kind == "gain" and cell.value > 0:
            number = "+" + number
        if cell.kind == "value" and cell.sd == cell.sd:
            number += f" ± {cell.sd:.{cell.decimals}f}"
        return number + (f" ({cell.coverage[0]}/{cell.coverage[1]})" if cell.coverage else "")
    if cell.kind == "count" and cell.coverage:
        return f"{cell.coverage[0]}/{cell.coverage[1]}"
    return {"absent": "--", "unsupported": "n/a", "failed": "", "empty": ""}.get(cell.kind, cell.text)


def escape_markdown(text: str) -> str:
    """Escape what GitHub's Markdown would read as markup, cell borders included; on one line."""
    return re.sub(r"([\\`*_\[\]<>|$~&#])", r"\\\1", _one_line(text))


def escape_latex(text: str) -> str:
    """Escape LaTeX's special characters; what pdflatex's default fonts lack becomes a question mark."""
    return "".join(_LATEX.get(char) or _latex_letter(char) for char in _one_line(text))


def comment_text(table: Table) -> str:
    """The command that makes the table and the hash of the results it used, on one line."""
    return _one_line(f"{table.command} (results {table.results_hash})")


def _latex_letter(char: str) -> str:
    base = unicodedata.normalize("NFKD", char)
    return char if base.isascii() or (len(base) == 2 and base[0].isascii() and base[0].isalpha()) else "?"


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


_RANKED = "Best in bold, second underlined"
_STYLES = {
    "markdown": _Style(escape_markdown, "**{}**".format, "<ins>{}</ins>".format, "<sup>{}</sup>".format, _RANKED),
    "latex": _Style(
        escape_latex, r"\textbf{{{}}}".format, r"\underline{{{}}}".format, r"\textsuperscript{{{}}}".format, _RANKED
    ),
    "html": _Style(
        lambda text: html.escape(_one_line(text)),
        "<b>{}</b>".format,
        "<u>{}</u>".format,
        "<sup>{}</sup>".format,
        _RANKED,
    ),
    "text": _Style(_one_line, "**{}**".format, "_{}_".format, "[{}]".format, "**best**, _second_"),
}


def _cell(cell: Cell, style: _Style) -> str:
    text = style.escape(plain_cell(cell)) if plain_cell(cell) != "--" else "--"
    if cell.best:
        text = (style.bold if cell.best == 1 else style.underline)(text)
    marks = ",".join(style.escape(mark) for mark in cell.marks)
    if cell.kind == "failed":
        return marks
    return text + (style.raised(marks) if marks else "")


def _title(header: Header, style: _Style) -> str:
    return style.escape(header.title) + (" (rec.)" if header.reconstruction else "")


def _lines(title: str, width: int = 12) -> list[str]:
    """A column's title on lines of about ``width`` characters, so that a column is not wider than its figures need."""
    teacher, arrow, student = _one_line(title).partition(" → ")
    if arrow:
        return [f"{teacher} →", student]
    return textwrap.wrap(teacher, width, break_long_words=False, break_on_hyphens=False) or [""]


def _legend(table: Table, style: _Style) -> list[str]:
    kinds = {cell.kind for row in table.cells for cell in row}
    ranked = f"{style.legend}; teacher and baselines take no part." if table.ranked else ""
    absent = "--: no result (yet)." if "absent" in kinds else ""
    return [text for text in (" ".join(part for part in (ranked, absent) if part),) if text]


def _notes(table: Table, style: _Style) -> list[str]:
    notes = [style.escape(text) for text in _legend(table, style)]
    for note in table.notes:
        mark = style.raised(style.escape(note.mark)) + " " if note.mark else ""
        notes.append(mark + style.escape(note.text))
    return notes


def _spans(headers: Sequence[Header]) -> list[tuple[str, int]]:
    """Runs of the same group: (group, length)."""
    spans: list[tuple[str, int]] = []
    for header in headers:
        if spans and spans[-1][0] == header.group:
            spans[-1] = (header.group, spans[-1][1] + 1)
        else:
            spans.append((header.group, 1))
    return spans


def _group_title(group: str) -> str:
    return _GROUP_TITLES.get(group, group)


def _body(table: Table, style: _Style, group_row: Callable[[str], str]) -> list[list[str]]:
    """Rows as text; a group of rows begins with a row that holds its title alone."""
    rows: list[list[str]] = []
    group = None
    for header, cells in zip(table.rows, table.cells, strict=True):
        if header.group != group and _group_title(header.group):
            rows.append([group_row(style.escape(_group_title(header.group))), *[""] * len(table.columns)])
        group = header.group
        rows.append([_title(header, style), *(_cell(cell, style) for cell in cells)])
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
    style = _STYLES["markdown"]
    headers = [style.escape(table.corner), *(_title(header, style) for header in table.columns)]
    body = tabulate(
        _body(table, style, "**{}**".format),
        headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=_alignment(table),
    )
    lines = [comment, "", body, "", escape_markdown(table.caption), ""]
    lines += [f"- {note}" for note in _column_groups(table, style) + _notes(table, style)]
    return "\n".join(lines).rstrip() + "\n"


def _column_groups(table: Table, style: _Style) -> list[str]:
    """Markdown cannot span columns, so their groups are said in a line."""
    groups: dict[str, list[str]] = {}
    for header in table.columns:
        if _group_title(header.group):
            groups.setdefault(_group_title(header.group), []).append(_title(header, style))
    return (
        ["Columns: " + "; ".join(f"{style.escape(g)}: {', '.join(names)}" for g, names in groups.items()) + "."]
        if groups
        else []
    )


def _text(table: Table) -> str:
    from tabulate import tabulate

    if table.message:
        return f"{_one_line(table.message)}\n"
    style = _STYLES["text"]
    tops = ["", *(_group_title(header.group) for header in table.columns)]
    shown = [top if i == 0 or top != tops[i - 1] else "" for i, top in enumerate(tops)]
    titles = [[table.corner], *(_lines(_title(header, style)) for header in table.columns)]
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
    return "\n".join([body, "", _one_line(table.caption), *_notes(table, style)]).rstrip() + "\n"


def _html(table: Table) -> str:
    style = _STYLES["html"]
    comment = f"<!-- {comment_text(table).replace('-->', '-- >')} -->"
    if table.message:
        return f'{comment}\n<p class="kdbench-empty">{style.escape(table.message)}</p>\n'
    lines = [comment, '<table class="kdbench-table">', f"<caption>{style.escape(table.caption)}</caption>", "<thead>"]
    spans = _spans(table.columns)
    if any(_group_title(group) for group, _ in spans):
        cells = "".join(f'<th scope="colgroup" colspan="{n}">{style.escape(_group_title(g))}</th>' for g, n in spans)
        lines.append(f"<tr><td></td>{cells}</tr>")
    cells = "".join(f'<th scope="col">{_title(header, style)}</th>' for header in table.columns)
    lines += [f'<tr><th scope="col">{style.escape(table.corner)}</th>{cells}</tr>', "</thead>", "<tbody>"]
    group = None
    for header, row in zip(table.rows, table.cells, strict=True):
        if header.group != group and _group_title(header.group):
            title = style.escape(_group_title(header.group))
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(table.columns) + 1}">{title}</th></tr>')
        group = header.group
        cells = "".join(f'<td class="{cell.kind}">{_cell(cell, style)}</td>' for cell in row)
        lines.append(f'<tr class="{header.kind}"><th scope="row">{_title(header, style)}</th>{cells}</tr>')
    lines += ["</tbody>", "</table>"]
    notes = "".join(f"<li>{note}</li>" for note in _notes(table, style))
    return "\n".join([*lines, f'<ul class="kdbench-notes">{notes}</ul>' if notes else ""]).rstrip() + "\n"


def _latex(table: Table) -> str:
    style = _STYLES["latex"]
    comments = [f"% {_one_line(table.command)}", f"% results {table.results_hash}; needs \\usepackage{{booktabs}}"]
    if table.message:
        return "\n".join([*comments, rf"\emph{{{style.escape(table.message)}}}"]) + "\n"
    width = len(table.columns) + 1
    size = r"\small" if width <= 9 else r"\footnotesize" if width <= 13 else r"\scriptsize"
    lines = [
        *comments,
        r"\begin{table}[tbp]",
        r"\centering",
        size,
        rf"\setlength{{\tabcolsep}}{{{4 if width <= 9 else 2}pt}}",
    ]
    lines += [rf"\caption{{{style.escape(table.caption)}}}", rf"\label{{tab:{table.label}}}"]
    aligned = ["l" if side == "left" else "r" for side in _alignment(table)]
    lines += [rf"\begin{{tabular}}{{{''.join(_latex_columns(table, aligned))}}}", r"\toprule"]
    spans = _spans(table.columns)
    if any(_group_title(group) for group, _ in spans):
        lines += _latex_groups(spans, style)
    lines.append(
        " & ".join([style.escape(table.corner), *(_title(header, style) for header in table.columns)]) + r" \\"
    )
    group = None
    for header, row in zip(table.rows, table.cells, strict=True):
        if header.group != group:
            lines.append(r"\midrule")
            if _group_title(header.group):
                lines.append(
                    rf"\multicolumn{{{width}}}{{l}}{{\textit{{{style.escape(_group_title(header.group))}}}}} \\"
                )
        elif header is table.rows[0]:
            lines.append(r"\midrule")
        group = header.group
        lines.append(" & ".join([_title(header, style), *(_latex_cell(cell, style) for cell in row)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes := _notes(table, style):
        lines += [
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\raggedright\footnotesize",
            r"\\ ".join(notes) + r"\end{minipage}",
        ]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_columns(table: Table, aligned: Sequence[str]) -> list[str]:
    """Column types; columns of long text become paragraphs."""
    longest = [max((len(row[i].text) for row in table.cells), default=0) for i in range(len(table.columns))]
    return [
        aligned[0],
        *(r"p{0.2\linewidth}" if n > 30 else side for n, side in zip(longest, aligned[1:], strict=True)),
    ]


def _latex_title(header: Header, side: str, style: _Style) -> str:
    """A column's title; on several lines where it is long (tabular in tabular, so that no package is needed)."""
    lines = [style.escape(line) for line in _lines(header.title + (" (rec.)" if header.reconstruction else ""))]
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_cell(cell: Cell, style: _Style) -> str:
    text = _cell(cell, style)
    return text.replace("-", "$-$", 1) if cell.kind in ("value", "gain") and cell.value < 0 else text


def _latex_groups(spans: Sequence[tuple[str, int]], style: _Style) -> list[str]:
    cells, rules, start = [], [], 2
    for group, length in spans:
        title = style.escape(_group_title(group))
        cells.append(rf"\multicolumn{{{length}}}{{c}}{{{title}}}")
        if title:
            rules.append(rf"\cmidrule(lr){{{start}-{start + length - 1}}}")
        start += length
    return [" & " + " & ".join(cells) + r" \\", " ".join(rules)]


def _csv(table: Table) -> str:
    return table.records.to_csv(index=False, lineterminator="\n")
