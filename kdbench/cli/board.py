"""``kdbench leaderboard``: methods ranked, as text, picture or prose. It imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli import console
from kdbench.cli.options import CELLS, verb
from kdbench.cli.replay import command_published
from kdbench.cli.table import baseline_option, bib_option, rename_option, write_bib
from kdbench.cli.tables import (
    form_of,
    format_option,
    metric_option,
    print_board,
    results,
    select_option,
    write,
)
from kdbench.cli.values import PATH
from kdbench.errors import KdbenchError, NothingError
from kdbench.matrix.request import Request

if TYPE_CHECKING:
    from kdbench.reporting.leaderboard import Leaderboard

PICTURES = (".png", ".svg", ".pdf")


@verb("leaderboard", *CELLS, "out")
@format_option
@select_option
@metric_option
@click.option("--published", is_flag=True, help="Add published figures below ours, without rank, interval or test.")
@baseline_option
@rename_option
@click.option(
    "--prose", is_flag=True, help="Write a paragraph for a paper: what was tested, what was found, what cannot be said."
)
@click.option("--ours", default="", metavar="NAME", help="The method that --prose is about (default: the leader).")
@bib_option
@click.option(
    "--to",
    type=PATH,
    metavar="FILE",
    help="Write to a file in the format of its ending; .png, .svg and .pdf draw a picture.",
)
def leaderboard(
    request: Request, form: str | None, to: str | None, prose: bool, ours: str, bib: str | None, **given: Any
) -> int:
    """Rank methods, with intervals, wins, harms and cost."""
    from kdbench.reporting.text.leaderboard import render_leaderboard

    picture = to is not None and Path(to).suffix in PICTURES
    if picture and form:
        raise KdbenchError(f"--to {to} is a picture, and --format {form} is none; give one of the two")
    if ours and not prose:
        raise KdbenchError(f"--ours {ours} says what --prose is about; give that too")
    if prose and (picture or form_of(form, to) not in _PROSE):
        raise KdbenchError(f"--prose is {', '.join(_PROSE)}; choose another --format or ending")
    boards, damaged = build_boards(request, **given)
    if bib:
        from kdbench.reporting.references import citations_of

        write_bib(bib, [c for b in boards for c in citations_of(b.results.method_info, b.results, b.claims)])
    if to is not None and picture:
        from kdbench.reporting.plots.picture import draw_leaderboard

        if boards[0].message:
            raise NothingError(boards[0].message)
        draw_leaderboard(boards[0], Path(to))
        console.damaged(damaged)
        return 0
    form = form_of(form, to)
    if form in ("csv", "json") and Path(request.out).is_dir():
        from kdbench.reporting.hours import with_equal_hours
        from kdbench.store.reading import Outcomes

        outcomes = Outcomes(request.out, damaged)
        boards = [with_equal_hours(board, outcomes) if not board.message else board for board in boards]
    if prose:
        from kdbench.reporting.prose import paragraph
        from kdbench.reporting.text.markup import STYLES

        return write([(STYLES[form].escape(paragraph(b, ours)), b.message) for b in boards], to, damaged, form)
    if form == "text" and to is None:
        for board in boards:
            print_board(board)
        console.damaged(damaged)
        return int(all(board.message for board in boards))
    return write([(render_leaderboard(board, form), board.message) for board in boards], to, damaged, form)


#: Formats of a paragraph.
_PROSE = ("text", "markdown", "latex")


def build_boards(
    request: Request,
    metric: str = "top1",
    select: str | None = None,
    rename: dict[str, str] | None = None,
    **choices: Any,
) -> tuple[list[Leaderboard], list[str]]:
    """The leaderboards of a request, and what could not be read; arguments as the options of ``kdbench leaderboard``."""
    from kdbench.reporting.choices import Choices
    from kdbench.reporting.leaderboard import build_leaderboard

    frames, select, damaged = results(request, select)
    wishes = Choices(names=rename or {}, **choices)
    command = command_published()
    return [build_leaderboard(frame, metric, select, wishes, command=command) for frame in frames], damaged
