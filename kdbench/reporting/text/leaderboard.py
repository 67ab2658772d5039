"""A leaderboard as plain text, markdown, and a table of rich for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.reporting.costs import count_text
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.text.markup import escape_markdown

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: Narrower terminals than this do without the columns that are not essential, or without those of cost.
FULL_WIDTH, COST_WIDTH = 120, 160


@dataclass(frozen=True)
class _Column:
    title: str
    text: Callable[[Standing], str]
    left: bool = False
    essential: bool = True
    key: Callable[[Standing], float | str | None] | None = None  # what a page sorts by


def leaderboard_text(leaderboard: Leaderboard) -> str:
    """The ranking as plain text, with its caption and notes."""
    from tabulate import tabulate

    if leaderboard.message:
        return f"{leaderboard.message}\n"
    bodies = []
    for columns in _blocks(leaderboard):
        rows = [[column.text(standing) for column in columns] for standing in leaderboard.standings]
        titles = [_two_lines(column.title) for column in columns]
        aligned = ["left" if column.left else "right" for column in columns]
        bodies += [tabulate(rows, titles, tablefmt="simple", disable_numparse=True, colalign=aligned), ""]
    return "\n".join([leaderboard.caption, "", *bodies, *leaderboard.notes]) + "\n"


def leaderboard_markdown(leaderboard: Leaderboard) -> str:
    """The ranking as a GitHub table; a comment holds the command and the hash of the results."""
    from tabulate import tabulate

    command = " ".join(leaderboard.command.split()).replace("-->", "-- >")
    comment = f"<!-- {command} (results {leaderboard.results_hash}) -->"
    if leaderboard.message:
        return f"{comment}\n\n{escape_markdown(leaderboard.message)}\n"
    bodies = []
    for columns in _blocks(leaderboard):
        rows = [[escape_markdown(column.text(standing)) for column in columns] for standing in leaderboard.standings]
        titles = [escape_markdown(column.title) for column in columns]
        aligned = ["left" if column.left else "right" for column in columns]
        bodies += [tabulate(rows, titles, tablefmt="pipe", disable_numparse=True, colalign=aligned), ""]
    notes = [f"- {escape_markdown(note)}" for note in leaderboard.notes]
    return "\n".join([comment, "", *bodies, escape_markdown(leaderboard.caption), "", *notes]) + "\n"


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
    where = f"{leaderboard.suite}, protocol {leaderboard.protocol}, {leaderboard.dataset}"
    table.title = Text(f"{where}: {leaderboard.metric.name}, {leaderboard.select} epoch")
    table.caption = Text("\n".join([leaderboard.caption, *leaderboard.notes]))
    narrow = width is not None and width < FULL_WIDTH
    columns = [column for column in _columns(leaderboard) if column.essential or not narrow]
    if width is None or width >= COST_WIDTH:
        columns += _cost_columns(leaderboard)
    for column in columns:
        # The name takes what is left; figures are never cut.
        title = Text(_two_lines(column.title))
        if column.left:
            table.add_column(title, justify="left", min_width=8, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for standing in leaderboard.standings:
        style = "dim" if standing.rank is None else "bold" if standing.rank == 1 else ""
        table.add_row(*(Text(column.text(standing)) for column in columns), style=style)
    return table


def leaderboard_columns(board: Leaderboard) -> list[tuple[str, bool, list[tuple[str, float | str | None]]]]:
    """The columns for a page: (title, whether it is text, per standing what it says and what it is sorted by)."""
    columns = []
    for column in [*_columns(board), *_cost_columns(board)]:
        keys = [column.key(s) if column.key else column.text(s) for s in board.standings]
        finite = [None if isinstance(key, float) and math.isnan(key) else key for key in keys]
        texts = [column.text(s) for s in board.standings]
        columns.append((column.title, column.left, list(zip(texts, finite, strict=True))))
    return columns


def _columns(board: Leaderboard) -> list[_Column]:
    decimals = board.decimals

    def signed(value: float) -> str:
        return "" if math.isnan(value) else signed_text(value, decimals)

    def span(low: float, high: float) -> str:
        return "" if math.isnan(low) else f"[{signed_text(low, decimals)}, {signed_text(high, decimals)}]"

    columns = [
        _Column("#", lambda s: "" if s.rank is None else str(s.rank), key=lambda s: s.rank),
        _Column("method", _name, left=True),
    ]
    if board.reference:
        columns += [
            _Column(f"gain over {board.reference_display}", lambda s: signed(s.gain), key=lambda s: s.gain),
            _Column("95 % interval", lambda s: span(s.low, s.high), key=lambda s: s.low),
            _Column(
                "left out",
                lambda s: span(s.left_out_low, s.left_out_high),
                essential=False,
                key=lambda s: s.left_out_low,
            ),
        ]
    else:
        columns.append(
            _Column(
                f"mean {board.metric.name}",
                lambda s: "" if math.isnan(s.mean) else f"{s.mean:.{decimals}f}",
                key=lambda s: s.mean,
            )
        )
    columns.append(
        _Column(
            "average rank",
            lambda s: "" if math.isnan(s.average_rank) else f"{s.average_rank:.2f}",
            key=lambda s: s.average_rank,
        )
    )
    if board.reference:
        columns += [
            _Column(
                "win/tie/loss",
                lambda s: "" if s.wins is None else f"{s.wins}/{s.ties}/{s.losses}",
                key=lambda s: None if s.wins is None else s.wins - (s.losses or 0),
            ),
            _Column("p (Holm)", p_text, key=lambda s: s.p_holm),
        ]
    if board.reference != "scratch" and any(s.harmed for s in board.standings):
        columns.append(
            _Column(
                "over scratch",
                lambda s: signed(s.gain_over_scratch),
                essential=False,
                key=lambda s: s.gain_over_scratch,
            )
        )
    if any(s.harmed for s in board.standings):
        columns.append(
            _Column(
                "pairs harmed",
                lambda s: f"{s.harmed[0]}/{s.harmed[1]}" if s.harmed else "",
                key=lambda s: s.harmed[0] / s.harmed[1] if s.harmed else None,
            )
        )
    return [
        *columns,
        _Column(
            "step time",
            lambda s: "" if math.isnan(s.step_ratio) else f"{s.step_ratio:.2f}×",
            essential=False,
            key=lambda s: s.step_ratio,
        ),
        _Column("pairs", lambda s: f"{s.pairs}/{board.pairs}", essential=False, key=lambda s: s.pairs),
    ]


def _two_lines(title: str) -> str:
    """Broken before its last word."""
    return "\n".join(title.rsplit(" ", 1))


def _blocks(board: Leaderboard) -> list[list[_Column]]:
    """The ranking, and under it the cost, which would make it too wide to read."""
    costs = _cost_columns(board)
    return [_columns(board), *([[_Column("method", _name, left=True), *costs]] if costs else [])]


def _cost_columns(board: Leaderboard) -> list[_Column]:
    """Columns of what is known of any method."""

    def column(title: str, value: Callable[[Standing], float], text: Callable[[float], str]) -> _Column:
        def said(standing: Standing) -> str:
            number = value(standing)
            return "" if math.isnan(number) else text(number)

        return _Column(title, said, essential=False, key=value)

    found = [
        (column("training hours", lambda s: s.hours, "{:.3g}".format), [s.hours for s in board.standings]),
        (
            column("peak memory (MiB)", lambda s: s.peak_memory, lambda value: f"{value / 2**20:,.0f}"),
            [s.peak_memory for s in board.standings],
        ),
        (
            column("extra parameters", lambda s: s.extra_parameters, count_text),
            [s.extra_parameters for s in board.standings],
        ),
        (
            column("kept at inference", lambda s: s.inference_parameters, count_text),
            [s.inference_parameters if s.inference_parameters > 0 else math.nan for s in board.standings],
        ),
    ]
    return [shown for shown, values in found if not all(map(math.isnan, values))]


def _name(standing: Standing) -> str:
    return standing.display + (" (rec.)" if standing.reconstruction else "")


def signed_text(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def p_text(standing: Standing) -> str:
    if standing.p_holm is None:
        return ""
    if not standing.attainable:
        return "n.a."
    return "<0.001" if standing.p_holm < 0.001 else f"{standing.p_holm:.3f}"
