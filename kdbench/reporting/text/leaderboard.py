"""A leaderboard as plain text, markdown, and a table of rich for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.reporting.caption import label_of
from kdbench.reporting.costs import count_text
from kdbench.reporting.grid import Cell, Header, Note, Table
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.published import PUBLISHED
from kdbench.reporting.text.markup import escape_markdown, html_comment
from kdbench.reporting.text.render import render

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: Narrower terminals than this do without the columns that are not essential, or without those of cost.
FULL_WIDTH, COST_WIDTH = 120, 160


@dataclass(frozen=True)
class Column:
    """A column of the ranking.

    Attributes:
        value: what a page sorts by; None or NaN where there is nothing.
        says: the text, where there is something.
        left: whether it is text.
        essential: whether a narrow terminal shows it too.
    """

    title: str
    value: Callable[[Standing], float | None]
    says: Callable[[Standing], str]
    left: bool = False
    essential: bool = True

    def key(self, standing: Standing) -> float | None:
        value = self.value(standing)
        return None if value is None or math.isnan(value) else value

    def text(self, standing: Standing) -> str:
        return self.says(standing) if self.left or self.key(standing) is not None else ""


_NAME = Column("method", lambda s: None, lambda s: s.display + (" (rec.)" if s.reconstruction else ""), left=True)


#: Columns of the tidy form.
_RECORDS = (
    *("method", "display", "family", "reconstruction", "rank", "mean", "gain", "low", "high", "all_low", "all_high"),
    *("shrunken", "chances", "improvement", "iqm", "equal_hours", "equal_hours_pairs", "average_rank"),
    *("wins", "ties", "losses", "p", "p_holm", "smallest_p", "hypothesis"),
    *("gain_over_scratch", "left_out_low", "left_out_high"),
    *("step_ratio", "extra_parameters", "inference_parameters", "hours", "peak_memory", "pairs"),
)


def render_leaderboard(board: Leaderboard, form: str) -> str:
    """The ranking in a format of ``render``."""
    if form == "text":
        return leaderboard_text(board)
    return leaderboard_markdown(board) if form == "markdown" else render(leaderboard_table(board), form)


def leaderboard_table(board: Leaderboard) -> Table:
    """The ranking and the cost as one table, whose records are plain numbers."""
    shared: dict[str, Any] = {
        "command": board.command,
        "results_hash": board.results_hash,
        "label": label_of(board.results, board.metric.name, "leaderboard"),
        "records": pd.DataFrame(
            [{name: getattr(s, name) for name in _RECORDS} for s in _shown(board)], columns=[*_RECORDS]
        ),
    }
    if board.message:
        return Table(message=board.message, **shared)
    columns = [column for column in (*ranking_columns(board), *cost_columns(board)) if column is not _NAME]
    return Table(
        corner="method",
        rows=(
            *(Header(s.display, "method", reconstruction=s.reconstruction) for s in board.standings),
            *(header for _, header in board.published),
        ),
        columns=tuple(Header(column.title, "text") for column in columns),
        cells=tuple(tuple(Cell("text", text=column.text(s)) for column in columns) for s in _shown(board)),
        caption=board.caption,
        notes=(*board.sources, *(Note("", note) for note in board.notes)),
        ranked=False,
        **shared,
    )


def _shown(board: Leaderboard) -> list[Standing]:
    """The ranking, and below it what was published."""
    return [*board.standings, *(standing for standing, _ in board.published)]


def _sources(board: Leaderboard) -> list[str]:
    return [f"{note.mark}: {note.text}" for note in board.sources]


def leaderboard_text(leaderboard: Leaderboard) -> str:
    """The ranking as plain text, with its caption and notes."""
    if leaderboard.message:
        return f"{leaderboard.message}\n"
    bodies = _tabulated(leaderboard, "simple", str, _two_lines)
    return "\n".join([leaderboard.caption, "", *bodies, *leaderboard.notes, *_sources(leaderboard)]) + "\n"


def leaderboard_markdown(leaderboard: Leaderboard) -> str:
    """The ranking as a GitHub table; a comment holds the command and the hash of the results."""
    comment = html_comment(leaderboard.command, leaderboard.results_hash)
    if leaderboard.message:
        return f"{comment}\n\n{escape_markdown(leaderboard.message)}\n"
    bodies = _tabulated(leaderboard, "pipe", escape_markdown, escape_markdown)
    notes = [f"- {escape_markdown(note)}" for note in (*leaderboard.notes, *_sources(leaderboard))]
    return "\n".join([comment, "", *bodies, escape_markdown(leaderboard.caption), "", *notes]) + "\n"


def _tabulated(board: Leaderboard, form: str, escape: Callable[[str], str], title: Callable[[str], str]) -> list[str]:
    """The ranking, and under it the cost, which would make it too wide to read; each followed by an empty line."""
    from tabulate import tabulate

    costs = cost_columns(board)
    bodies = []
    marks = {id(standing): " " + ",".join(header.marks) for standing, header in board.published}
    for columns in [ranking_columns(board), *([[_NAME, *costs]] if costs else [])]:
        rows = [
            [escape(column.text(s) + (marks.get(id(s), "") if column is _NAME else "")) for column in columns]
            for s in (board.standings if columns[1:] == costs else _shown(board))
        ]
        aligned = ["left" if column.left else "right" for column in columns]
        titles = [title(column.title) for column in columns]
        bodies += [tabulate(rows, titles, tablefmt=form, disable_numparse=True, colalign=aligned), ""]
    return bodies


def leaderboard_rich(leaderboard: Leaderboard, width: int | None = None) -> RichTable:
    """The ranking for the terminal.

    Args:
        leaderboard: from ``build_leaderboard``.
        width: columns of the terminal; below ``FULL_WIDTH`` the less important columns are left out.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left"
    )
    if leaderboard.message:
        table.add_column(Text(leaderboard.message))
        return table
    identity = leaderboard.results.identity()
    where = f"{identity['suite']}, protocol {identity['protocol']}, {identity['dataset']}"
    table.title = Text(f"{where}: {leaderboard.metric.name}, {leaderboard.results.select} epoch")
    table.caption = Text("\n".join([leaderboard.caption, *leaderboard.notes, *_sources(leaderboard)]))
    narrow = width is not None and width < FULL_WIDTH
    columns = [column for column in ranking_columns(leaderboard) if column.essential or not narrow]
    if width is None or width >= COST_WIDTH:
        columns += cost_columns(leaderboard)
    for column in columns:
        # The name takes what is left; figures are never cut.
        title = Text(_two_lines(column.title))
        if column.left:
            table.add_column(title, justify="left", min_width=8, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for standing in _shown(leaderboard):
        style = "dim" if standing.rank is None else "bold" if standing.rank == 1 else ""
        mark = f" {PUBLISHED}" if standing.family == "published" else ""
        table.add_row(
            *(Text(column.text(standing) + (mark if column is _NAME else "")) for column in columns), style=style
        )
    return table


def ranking_columns(board: Leaderboard) -> list[Column]:
    """Who stands where, and how sure that is."""

    def signed(value: float) -> str:
        return signed_text(value, board.decimals)

    def span(low: float, high: float) -> str:
        return f"[{signed(low)}, {signed(high)}]"

    columns = [Column("#", lambda s: s.rank, lambda s: str(s.rank)), _NAME]
    if board.published and board.reference:
        columns.append(Column(f"mean {board.metric.name}", lambda s: s.mean, lambda s: f"{s.mean:.{board.decimals}f}"))
    if board.reference:
        columns += [
            Column(f"gain over {board.reference_display}", lambda s: s.gain, lambda s: signed(s.gain)),
            *_where_known(board, Column("95 % interval", lambda s: s.low, lambda s: span(s.low, s.high))),
            *_where_known(
                board, Column("shrunken gain", lambda s: s.shrunken, lambda s: signed(s.shrunken), essential=False)
            ),
            Column(
                "left out", lambda s: s.left_out_low, lambda s: span(s.left_out_low, s.left_out_high), essential=False
            ),
        ]
    else:
        columns.append(Column(f"mean {board.metric.name}", lambda s: s.mean, lambda s: f"{s.mean:.{board.decimals}f}"))
    columns.append(Column("average rank", lambda s: s.average_rank, lambda s: f"{s.average_rank:.2f}"))
    if board.reference:
        columns += [
            Column(
                "win/tie/loss",
                lambda s: None if s.wins is None else s.wins - (s.losses or 0),
                lambda s: f"{s.wins}/{s.ties}/{s.losses}",
            ),
            Column("p (Holm)", lambda s: s.p_holm, lambda s: p_text(s.p_holm or 0.0) if s.attainable else "n.a."),
            *([Column("hypothesis", lambda s: None, lambda s: s.hypothesis, left=True)] if board.declared else []),
            *_where_known(
                board,
                Column(
                    "better/equal/worse",
                    lambda s: s.chances and s.chances[0],
                    lambda s: "/".join(f"{100 * chance:.0f}" for chance in s.chances or ()),
                    essential=False,
                ),
            ),
        ]
    if any(s.harmed for s in board.standings):
        if board.reference != "scratch":
            over = Column(
                "over scratch", lambda s: s.gain_over_scratch, lambda s: signed(s.gain_over_scratch), essential=False
            )
            columns.append(over)
        columns.append(
            Column(
                "pairs harmed",
                lambda s: s.harmed and s.harmed[0] / s.harmed[1],
                lambda s: "{}/{}".format(*s.harmed or ()),
            )
        )
    return [
        *columns,
        Column("step time", lambda s: s.step_ratio, lambda s: f"{s.step_ratio:.2f}×", essential=False),
        Column("pairs", lambda s: s.pairs, lambda s: f"{s.pairs}/{board.pairs}", essential=False),
    ]


def _where_known(board: Leaderboard, column: Column) -> list[Column]:
    """The column, if anybody has something in it."""
    return [column] if any(column.key(standing) is not None for standing in board.standings) else []


def _two_lines(title: str) -> str:
    """Broken before its last word."""
    return "\n".join(title.rsplit(" ", 1))


def cost_columns(board: Leaderboard) -> list[Column]:
    """What methods cost, as far as it is known of any."""
    columns = [
        Column("training hours", lambda s: s.hours, lambda s: f"{s.hours:.3g}", essential=False),
        Column(
            "peak memory (MiB)", lambda s: s.peak_memory, lambda s: f"{s.peak_memory / 2**20:,.0f}", essential=False
        ),
        Column(
            "extra parameters", lambda s: s.extra_parameters, lambda s: count_text(s.extra_parameters), essential=False
        ),
    ]
    known = [column for column in columns if any(column.key(s) is not None for s in board.standings)]
    if any(s.inference_parameters > 0 for s in board.standings):
        known.append(
            Column("kept at inference", lambda s: s.inference_parameters, lambda s: count_text(s.inference_parameters))
        )
    return known


def extended_columns(board: Leaderboard) -> list[Column]:
    """Aggregates over pairs and seeds, and the gain at equal hours: on the page, in CSV and in JSON, not in a text table."""
    if not board.reference:
        return []

    def signed(value: float) -> str:
        return signed_text(value, board.decimals)

    columns = [
        Column("P(improvement)", lambda s: s.improvement, lambda s: f"{s.improvement:.2f}"),
        Column("IQM of gains", lambda s: s.iqm, lambda s: signed(s.iqm)),
        Column(
            "gain at equal hours",
            lambda s: s.equal_hours,
            lambda s: (
                f"{signed(s.equal_hours)}{'' if s.equal_hours_pairs == s.pairs else f' ({s.equal_hours_pairs}/{s.pairs})'}"
            ),
        ),
    ]
    return [column for column in columns if _where_known(board, column)]


#: What must be said of ``extended_columns``.
EXTENDED_NOTE = (
    "P(improvement): how often one of its runs beats one of the reference on the same pair, over all two-sets of seeds; IQM of gains: mean "
    "of the middle half over all pairs and seeds (Agarwal et al. 2021). Gain at equal hours: of its last epoch within the hours that the "
    "reference takes in all on the same pair, seed and device, the teacher's share included; schedules were not shortened to that, so that "
    "a slower method could do better. None of the three has an interval."
)


def signed_text(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
