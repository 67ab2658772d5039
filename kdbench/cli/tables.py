"""The verbs that read results: ``table``, ``leaderboard``, ``classes``, ``plots`` and ``report``. None of them imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kdbench.cli import console
from kdbench.cli.options import CELLS, plan_of, plan_on_disk, verb
from kdbench.cli.replay import command_given
from kdbench.cli.values import CLASSES, NAMES, PATH, OneOf
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.store.folders import Store
from kdbench.store.rows import load_results

PICTURES = (".png", ".svg", ".pdf")

_select = click.option(
    "--select",
    type=OneOf(("last", "best")),
    help="The last epoch's figure, or the best test epoch's, which is optimistic (default: the protocol's).",
)
_metric = click.option("--metric", default="top1", metavar="NAME", help="Default: top1.")
_to = click.option("--to", type=PATH, metavar="FILE", help="Write to a file.")


def _format(*names: str) -> Callable[[Any], Any]:
    return click.option("--format", "form", type=OneOf(names), default="text", help="Default: text.")


@verb("table", *CELLS, "out")
@_format("text", "markdown", "latex", "csv", "html")
@click.option("--layout", type=OneOf(("pairs", "methods")), default="pairs", help="What the rows are (default: pairs).")
@_select
@_metric
@click.option("--against-published", is_flag=True, help="Our figures beside those of papers, with their sources.")
@_to
def table(
    request: Request, form: str, layout: str, select: str | None, metric: str, against_published: bool, to: str | None
) -> int:
    """Tabulate pairs by methods, for a paper."""
    from kdbench.reporting.table import build_table
    from kdbench.reporting.text.render import render

    frames, select = results(request, select)
    if against_published:
        from kdbench.reporting.published import published_ledger

        tables = [published_ledger(frame, select=select, command=command_given()) for frame in frames]
    else:
        tables = [build_table(frame, layout, metric, select, command=command_given()) for frame in frames]
    return _write([render(built, form) for built in tables], to)


@verb("leaderboard", *CELLS, "out")
@_format("text", "markdown")
@_select
@_metric
@click.option("--to", type=PATH, metavar="FILE", help="Write to a file; .png, .svg and .pdf draw a picture.")
def leaderboard(request: Request, form: str, select: str | None, metric: str, to: str | None) -> int:
    """Rank methods, with intervals, wins, harms and cost."""
    from kdbench.reporting.leaderboard import build_leaderboard
    from kdbench.reporting.text.leaderboard import leaderboard_markdown, leaderboard_text

    frames, select = results(request, select)
    boards = [build_leaderboard(frame, metric=metric, select=select, command=command_given()) for frame in frames]
    if to and Path(to).suffix in PICTURES:
        from kdbench.reporting.plots.picture import draw_leaderboard

        if boards[0].message:
            raise KdbenchError(boards[0].message)
        draw_leaderboard(boards[0], Path(to))
        return 0
    if form == "text" and to is None:
        for board in boards:
            print_board(board)
        return 0
    draw = leaderboard_markdown if form == "markdown" else leaderboard_text
    return _write([draw(board) for board in boards], to)


@verb("classes", *CELLS, "out")
@click.option("--by", type=OneOf(("class", "superclass")), default="class", help="Default: class.")
@click.option(
    "--show",
    type=OneOf(("accuracy", "gain")),
    default="accuracy",
    help="Accuracy in percent (default), or gain over KD in points.",
)
@click.option("--worst", type=CLASSES, metavar="N", help="Only the N classes that are lowest, lowest first.")
@_format("text", "markdown", "latex", "csv", "html")
@_to
def classes(request: Request, by: str, show: str, worst: int | None, form: str, to: str | None) -> int:
    """Tabulate accuracy, or gain over KD, by class."""
    from kdbench.reporting.classes import build_class_table
    from kdbench.reporting.text.render import render

    Store(request.out).check()  # a CSV file holds no predictions
    frames, _ = results(request)
    tables = [build_class_table(frame, request.out, by, show, worst, command=command_given()) for frame in frames]
    return _write([render(built, form) for built in tables], to)


@verb("plots", *CELLS, "out")
@click.option("--to", type=PATH, metavar="FOLDER", required=True, help="Where to write them.")
@click.option(
    "--format",
    "forms",
    type=NAMES,
    default="png,svg,pdf",
    metavar="NAME,...",
    help="Some of png, svg, pdf (default: all).",
)
@_select
@_metric
def plots(request: Request, to: str, forms: tuple[str, ...], select: str | None, metric: str) -> int:
    """Draw figures for a paper, with their captions."""
    from kdbench.reporting.plots.draw import write_plots

    frames, select = results(request, select)
    for frame in frames:
        folder = Path(to)
        if len(frames) > 1:
            folder /= f"{frame['protocol'].iloc[0]}-{frame['split'].iloc[0]}"
        files = write_plots(frame, request.out, folder, forms, metric=metric, select=select, command=command_given())
        console.say(f"{len(files)} files in {folder}; what must stand under the plots is in {files[0]}")
    return 0


@verb("report", *CELLS, "out")
@click.option("--to", type=PATH, default="report.html", metavar="FILE", help="Default: report.html.")
@_select
def report(request: Request, to: str, select: str | None) -> int:
    """Write one HTML page with tables, plots and every cell."""
    import pandas as pd

    from kdbench.reporting.html.page import write_report

    frames, select = results(request, select)
    path = write_report(pd.concat(frames, ignore_index=True), request.out, to, command=command_given(), select=select)
    console.say(f"report of {request.out} in {path}")
    return 0


def results(request: Request, select: str | None = None) -> tuple[Sequence[Any], str]:
    """Rows of the run directory, or of the CSV file in its place, that belong to a request, and the figure to show.

    The rows come as one frame for each protocol and split.

    Args:
        select: ``"last"`` or ``"best"``; None for the protocol's own.

    Raises:
        KdbenchError: if the run directory, or the CSV file, does not exist.
    """
    from kdbench.reporting.frame import split_frame

    plan = plan_of(request)
    rows = load_results(request.out, plan.suite.name, plan.under.name)
    rows = rows[rows["split"] == request.split]
    # What was run counts, not what a plain run would do: every method, pair and seed, unless the user chose.
    seeds = request.seeds or tuple(int(seed) for seed in rows["seed"].unique())
    chosen = replace(request, methods=request.methods or ("*",), pairs=request.pairs or ("*",), seeds=seeds[:1])
    made = make_plan(plan.suite, chosen, plan.catalog)
    if Path(request.out).is_file():  # the cells of somebody's table: what it holds is what is shown
        named = {f"{cell.pair}/{cell.method}" for cell in made.cells}
        wanted = (rows["pair"] + "/" + rows["method"]).isin(named) & rows["seed"].isin(seeds)
    else:
        cells = plan_on_disk(made, Store(request.out)).cells
        wanted = rows["path"].isin({replace(cell, seed=seed).folder for cell in cells for seed in seeds})
    if not request.methods:
        wanted |= ~rows["method"].isin([*plan.catalog])  # of plugins that are not here
    frames = split_frame(rows[wanted].reset_index(drop=True))
    return frames, select or plan.suite.protocols[plan.under.name].select


def print_board(board: Any) -> None:
    """A leaderboard on standard output, in colours where that is a terminal."""
    from kdbench.reporting.text.leaderboard import leaderboard_rich, leaderboard_text

    if not sys.stdout.isatty():
        console.say(leaderboard_text(board).rstrip("\n"))
        return
    from rich.console import Console

    terminal = Console()
    terminal.print(board.message if board.message else leaderboard_rich(board, terminal.width))


def _write(texts: Sequence[str], path: str | None) -> int:
    text = "\n\n".join(text.rstrip("\n") for text in texts)
    if path is None:
        console.say(text)
        return 0
    try:
        Path(path).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise KdbenchError(f"{path} cannot be written ({error.strerror})") from None
    return 0
