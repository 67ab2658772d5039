"""What all renderers share: how a cell, a title and a note read, and how each format escapes and stresses."""

from __future__ import annotations

import functools
import html
import itertools
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdbench.reporting.grid import Cell, Header, Table
from kdbench.shown import printable

#: In LaTeX, words of more characters may be broken at slashes, colons and @.
_LONG_WORD = 30

#: What pylatexenc leaves as it is, or writes with commands that older LaTeX has in packages only.
_LATEX = {
    **{"_": r"\_\allowbreak{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{''}"},
    **{
        "`": r"{\char96}",
        "→": r"$\rightarrow$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "×": r"$\times$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "…": r"\ldots{}",
    },
    **{"*": r"{*}", "[": r"{[}", "]": r"{]}"},  # after \\ they would be read as its argument
    **{"–": "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''"},
}
#: What LaTeX cannot print with its own font encoding and no package, though pylatexenc knows a command for much of it: all but Latin
#: letters, Greek, and common signs; of the Latin ones those with an ogonek, and the Icelandic, Croatian and Sami ones.
_NO_LATEX = re.compile("[^\x20-\x7e\xa0-\u017fΑ-ω←↑→↓↔⇐⇒⇔∀∂∃∇∈∏∑−∓√∝∞∧∨∩∪∫≈≠≡≤≥≪≫⊂⊃⊆⊇⊕⊗⋅•™€‰]|[«»ÐÞðþĐđĄąĘęĮįŲųŉŊŋ]")


@dataclass(frozen=True)
class Style:
    """How one format writes the pieces of a cell."""

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    underline: Callable[[str], str]
    raised: Callable[[str], str]
    legend: str


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
    return re.sub(r"([\\`*_\[\]<>|$~&#])", r"\\\1", one_line(text))


def escape_latex(text: str) -> str:
    """Escape LaTeX's special characters; those that it cannot print become their number, ⟨U+4E2D⟩."""
    words = []
    for word in unicodedata.normalize("NFC", one_line(text)).split(" "):
        parts = re.split(r"(?<=[/:@])", word) if len(word) > _LONG_WORD else [word]
        words.append(r"\allowbreak{}".join(map(_latex_encoder().unicode_to_latex, parts)))
    return " ".join(words)


def _number(character: str) -> str:
    return rf"\ensuremath{{\langle}}\texttt{{U+{ord(character):04X}}}\ensuremath{{\rangle}}"


@functools.cache
def _latex_encoder() -> Any:
    from pylatexenc.latexencode import RULE_DICT, RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    # Two hyphens or two apostrophes in a name are no dash and no quotation mark.
    doubled = [(re.compile("-(?=-)"), "-{}"), (re.compile("'(?=')"), "'{}")]
    own = [
        UnicodeToLatexConversionRule(RULE_REGEX, doubled),
        UnicodeToLatexConversionRule(RULE_DICT, {ord(char): latex for char, latex in _LATEX.items()}),
        UnicodeToLatexConversionRule(RULE_REGEX, [(_NO_LATEX, lambda found: _number(found[0]))]),
    ]
    return UnicodeToLatexEncoder(
        conversion_rules=[*own, "defaults"],
        unknown_char_policy="unihex",
        unknown_char_warning=False,
        replacement_latex_protection="braces-after-macro",
    )


def html_comment(command: str, results_hash: str = "") -> str:
    """The command that makes a table or figures, and the hash of the results it used."""
    said = re.sub("--(?=!?>)", "-- ", one_line(command))  # both end a comment
    return f"<!-- {said}{results_hash and f' (results {results_hash})'} -->"


def one_line(text: str) -> str:
    """On one line, and printable: what every format writes passes through here."""
    return printable(" ".join(str(text).split()))


_RANKED = "Best in bold, second underlined"
STYLES = {
    "markdown": Style(escape_markdown, "**{}**".format, "<ins>{}</ins>".format, "<sup>{}</sup>".format, _RANKED),
    "latex": Style(
        escape_latex, r"\textbf{{{}}}".format, r"\underline{{{}}}".format, r"\textsuperscript{{{}}}".format, _RANKED
    ),
    "html": Style(
        lambda text: html.escape(one_line(text)),
        "<b>{}</b>".format,
        "<u>{}</u>".format,
        "<sup>{}</sup>".format,
        _RANKED,
    ),
    "text": Style(one_line, "**{}**".format, "_{}_".format, "[{}]".format, "**best**, _second_"),
}


def cell_markup(cell: Cell, style: Style) -> str:
    """The best with its spread in bold; of the second the mean alone is underlined, clear of the row below."""
    plain = plain_cell(cell)
    mean, between, spread = plain.partition(" ± ")
    if cell.best == 1:
        text = style.bold(style.escape(plain))
    elif cell.best:
        text = style.underline(style.escape(mean)) + (f" {style.escape(f'± {spread}')}" if between else "")
    else:
        text = plain if plain == "--" else style.escape(plain)
    marks = ",".join(style.escape(mark) for mark in cell.marks)
    if cell.kind == "failed":
        return marks
    return text + (style.raised(marks) if marks else "")


def title_markup(header: Header, style: Style) -> str:
    """A title with its marks, ``(rec.)`` and arrow."""
    marks = style.raised(",".join(style.escape(mark) for mark in header.marks)) if header.marks else ""
    arrow = f" {style.escape(header.better)}" if header.better else ""
    return style.escape(header.title) + marks + (" (rec.)" if header.reconstruction else "") + arrow


def title_lines(title: str, width: int = 12) -> list[str]:
    """A column's title on lines of about ``width`` characters, so that a column is not wider than its figures need."""
    teacher, arrow, student = one_line(title).partition(" → ")
    if arrow:
        return [f"{teacher} →", student]
    return textwrap.wrap(teacher, width, break_long_words=False, break_on_hyphens=False) or [""]


def cut(table: Table, widths: Sequence[float], line: float) -> list[Table]:
    """The table in panels of about equal width, each no wider than a line; the first of ``widths`` is that of the titles of rows.

    A cut within two columns of a group's border moves there, where that fits.
    """
    first, *columns = widths
    room = max(line - first, *columns) if columns else line
    edges = [0, len(columns)]
    for count in range(1, len(columns) + 1):
        middles = [sum(columns[:i]) + columns[i] / 2 for i in range(len(columns))]
        places = [min(count - 1, int(middle / sum(columns) * count)) for middle in middles]
        edges = [0, *(i for i in range(1, len(columns)) if places[i] != places[i - 1]), len(columns)]
        if all(sum(columns[a:b]) <= room for a, b in itertools.pairwise(edges)):
            break
    for number in range(1, len(edges) - 1):
        for place in (edges[number] + step for step in (0, -1, 1, -2, 2)):
            low, high = edges[number - 1], edges[number + 1]
            if low < place < high and table.columns[place].group != table.columns[place - 1].group:
                if sum(columns[low:place]) <= room and sum(columns[place:high]) <= room:
                    edges[number] = place
                break
    return [
        replace(table, columns=table.columns[a:b], cells=tuple(row[a:b] for row in table.cells))
        for a, b in itertools.pairwise(edges)
    ]


def note_lines(table: Table, style: Style) -> list[str]:
    """The legend, then the table's notes."""
    absent = any(cell.kind == "absent" for row in table.cells for cell in row)
    legend = [f"{style.legend}; teacher and baselines take no part."] * table.ranked + ["--: no result (yet)."] * absent
    notes = [style.escape(" ".join(legend))] if legend else []
    for note in table.notes:
        mark = style.raised(style.escape(note.mark)) + " " if note.mark else ""
        notes.append(mark + style.escape(note.text))
    return notes


def spans_of(headers: Sequence[Header]) -> list[tuple[str, int]]:
    """Runs of the same group: (title of the group, length)."""
    return [(group_title(group), len([*run])) for group, run in itertools.groupby(headers, lambda header: header.group)]


def groups_of(table: Table) -> Iterator[tuple[str, list[tuple[Header, tuple[Cell, ...]]]]]:
    """Rows by group: (title of the group, its rows)."""
    rows = zip(table.rows, table.cells, strict=True)
    for group, run in itertools.groupby(rows, lambda row: row[0].group):
        yield group_title(group), [*run]


def group_title(group: str) -> str:
    return "baselines" if group == "baseline" else group
