"""A leaderboard as plain text, markdown, and a table of rich for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdbench.reporting.costs import count_text
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.text.markup import escape_markdown

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: Narrower terminals than this do without the columns that are not essential, or without those of cost.
FULL_WIDTH, COST_WIDTH = 120, 160


class _Column:
    """A column.

    Args:
        value: what a page sorts by; None or NaN where there is nothing.
        says: the text, where there is something.
        left: whether it is text.
        essential: whether a narrow terminal shows it too.
    """

    def __init__(
        self,
        title: str,
        value: Callable[[Standing], float | None],
        says: Callable[[Standing], str],
        left: bool = False,
        essential: bool = True,
    ) -> None:
        self.title, self.left, self.essential = title, left, essential
        self._value, self._says = value, says

    def key(self, standing: Standing) -> float | None:
        value = self._value(standing)
        return None if value is None or math.isnan(value) else value

    def text(self, standing: Standing) -> str:
        return self._says(standing) if self.left or self.key(standing) is not None else ""


_NAME = _Column("method", lambda s: None, lambda s: s.display + (" (rec.)" if s.reconstruction else ""), left=True)


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


def leaderboard_columns(board: Leaderboard) -> list[tuple[str, bool, list[tuple[str, float | None]]]]:
    """The columns for a page: (title, whether it is text, per standing what it says and what it is sorted by)."""
    return [
        (column.title, column.left, [(column.text(s), column.key(s)) for s in board.standings])
        for column in [*_columns(board), *_cost_columns(board)]
    ]


def _columns(board: Leaderboard) -> list[_Column]:
    def signed(value: float) -> str:
        return signed_text(value, board.decimals)

    def span(low: float, high: float) -> str:
        return f"[{signed(low)}, {signed(high)}]"

    columns = [_Column("#", lambda s: s.rank, lambda s: str(s.rank)), _NAME]
    if board.reference:
        columns += [
            _Column(f"gain over {board.reference_display}", lambda s: s.gain, lambda s: signed(s.gain)),
            _Column("95 % interval", lambda s: s.low, lambda s: span(s.low, s.high)),
            _Column(
                "left out", lambda s: s.left_out_low, lambda s: span(s.left_out_low, s.left_out_high), essential=False
            ),
        ]
    else:
        columns.append(_Column(f"mean {board.metric.name}", lambda s: s.mean, lambda s: f"{s.mean:.{board.decimals}f}"))
    columns.append(_Column("average rank", lambda s: s.average_rank, lambda s: f"{s.average_rank:.2f}"))
    if board.reference:
        columns += [
            _Column(
                "win/tie/loss",
                lambda s: None if s.wins is None else s.wins - (s.losses or 0),
                lambda s: f"{s.wins}/{s.ties}/{s.losses}",
            ),
            _Column("p (Holm)", lambda s: s.p_holm, p_text),
        ]
    if any(s.harmed for s in board.standings):
        if board.reference != "scratch":
            over = _Column(
                "over scratch", lambda s: s.gain_over_scratch, lambda s: signed(s.gain_over_scratch), essential=False
            )
            columns.append(over)
        columns.append(_Column("pairs harmed", lambda s: _ratio(s.harmed), lambda s: "{}/{}".format(*s.harmed or ())))
    return [
        *columns,
        _Column("step time", lambda s: s.step_ratio, lambda s: f"{s.step_ratio:.2f}×", essential=False),
        _Column("pairs", lambda s: s.pairs, lambda s: f"{s.pairs}/{board.pairs}", essential=False),
    ]


def _ratio(part: tuple[int, int] | None) -> float | None:
    return None if part is None else part[0] / part[1]


def _two_lines(title: str) -> str:
    """Broken before its last word."""
    return "\n".join(title.rsplit(" ", 1))


def _blocks(board: Leaderboard) -> list[list[_Column]]:
    """The ranking, and under it the cost, which would make it too wide to read."""
    costs = _cost_columns(board)
    return [_columns(board), *([[_NAME, *costs]] if costs else [])]


def _cost_columns(board: Leaderboard) -> list[_Column]:
    """Columns of what is known of any method."""
    columns = [
        _Column("training hours", lambda s: s.hours, lambda s: f"{s.hours:.3g}", essential=False),
        _Column(
            "peak memory (MiB)", lambda s: s.peak_memory, lambda s: f"{s.peak_memory / 2**20:,.0f}", essential=False
        ),
        _Column(
            "extra parameters", lambda s: s.extra_parameters, lambda s: count_text(s.extra_parameters), essential=False
        ),
    ]
    known = [column for column in columns if any(column.key(s) is not None for s in board.standings)]
    if any(s.inference_parameters > 0 for s in board.standings):
        known.append(
            _Column("kept at inference", lambda s: s.inference_parameters, lambda s: count_text(s.inference_parameters))
        )
    return known


def signed_text(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def p_text(standing: Standing) -> str:
    if standing.p_holm is None:
        return ""
    if not standing.attainable:
        return "n.a."
    return "<0.001" if standing.p_holm < 0.001 else f"{standing.p_holm:.3f}"
