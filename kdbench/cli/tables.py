"""What the verbs that read results share, and ``classes``, ``plots`` and ``report``. None of them imports torch."""

from __future__ import annotations

import fnmatch
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli import console
from kdbench.cli.options import CELLS, plan_of, plan_on_disk, verb
from kdbench.cli.replay import command_published
from kdbench.cli.values import CLASSES, NAMES, PATH, OneOf
from kdbench.errors import KdbenchError, NothingError, counted
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.shown import printable
from kdbench.store.files import write_output
from kdbench.store.folders import Store
from kdbench.store.rows import ABSENT, STALE, load_results, planned_results

if TYPE_CHECKING:
    import pandas as pd

#: What a file is by its ending.
FORMATS = {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html"}

select_option = click.option(
    "--select",
    type=OneOf(("last", "best")),
    help="The last epoch's figure, or the best test epoch's, which is optimistic (default: the protocol's).",
)
metric_option = click.option("--metric", default="top1", metavar="NAME", help="Which metric (default: top1).")
to_option = click.option("--to", type=PATH, metavar="FILE", help="Write to a file in the format of its ending.")
format_option = click.option(
    "--format",
    "form",
    type=OneOf([*FORMATS.values()]),
    help="Output format (default: that of --to's ending, else text).",
)


@verb("classes", *CELLS, "out")
@click.option("--by", type=OneOf(("class", "superclass")), default="class", help="What the rows are (default: class).")
@click.option(
    "--show",
    type=OneOf(("accuracy", "gain")),
    default="accuracy",
    help="Accuracy in percent (default), or gain over KD in points.",
)
@click.option("--worst", type=CLASSES, metavar="N", help="Only the N lowest classes, lowest first.")
@format_option
@to_option
def classes(request: Request, by: str, show: str, worst: int | None, form: str | None, to: str | None) -> int:
    """Tabulate accuracy, or gain over KD, by class."""
    from kdbench.reporting.classes import build_class_table
    from kdbench.reporting.text.render import render

    Store(request.out).check()  # a CSV file holds no predictions
    frames, _, damaged = results(request)
    shared: dict[str, Any] = {"command": command_published(), "damaged": damaged}
    tables = [build_class_table(frame, request.out, by, show, worst, **shared) for frame in frames]
    return write(
        [(render(built, form_of(form, to)), built.message) for built in tables], to, damaged, form_of(form, to)
    )


@verb("plots", *CELLS, "out")
@click.option("--to", type=PATH, metavar="FOLDER", required=True, help="Where to write the figures.")
@click.option(
    "--format",
    "forms",
    type=NAMES,
    default="png,svg,pdf",
    metavar="NAME,...",
    help="File formats: png, svg, pdf (default: all).",
)
@select_option
@metric_option
def plots(request: Request, to: str, forms: tuple[str, ...], select: str | None, metric: str) -> int:
    """Draw figures for a paper, with their captions."""
    from kdbench.reporting.plots.draw import write_plots

    frames, select, damaged = results(request, select)
    for frame in frames:
        folder = Path(to)
        if len(frames) > 1:
            folder /= f"{frame['protocol'].iloc[0]}-{frame['split'].iloc[0]}"
        files = write_plots(frame, request.out, folder, forms, metric, select, command_published(), damaged)
        console.say(f"{len(files)} files in {folder}; what must stand under the plots is in {files[0]}")
    console.damaged(damaged)
    return 0


@verb("report", *CELLS, "out")
@click.option(
    "--to", type=PATH, default="report.html", metavar="FILE", help="Where to write it (default: report.html)."
)
@select_option
def report(request: Request, to: str, select: str | None) -> int:
    """Write one HTML page with tables, plots and every cell."""
    import pandas as pd

    from kdbench.reporting.html.page import write_report

    frames, select, damaged = results(request, select)
    rows = pd.concat(frames, ignore_index=True)
    path = write_report(rows, request.out, to, command_published(), select, damaged)
    console.say(f"report of {request.out} in {path}")
    console.damaged(damaged)
    return 0


def results(
    request: Request, select: str | None = None, rows: pd.DataFrame | None = None
) -> tuple[Sequence[Any], str, list[str]]:
    """Rows of the run directory, or of the CSV file in its place, that belong to a request; the figure to show; what of the protocol
    is damaged.

    The rows come as one frame for each protocol and split.

    Args:
        select: ``"last"`` or ``"best"``; None for the protocol's own.
        rows: of the suite and protocol, where they have been read before.

    Raises:
        NothingError: if there is no cell of the suite, protocol and split.
        KdbenchError: if the run directory, or the CSV file, does not exist.
    """
    import pandas as pd

    from kdbench.reporting.frame import split_frame

    named = plan_of(replace(request, methods=()))
    rows = load_results(request.out, named.suite.name, named.under.name) if rows is None else rows
    damaged = rows.attrs["damaged"]
    rows = rows[rows["split"] == request.split]
    # methods of plugins that are not here: what the store holds of them is shown
    stored = [name for name in dict.fromkeys(rows["method"]) if name not in named.catalog]
    foreign = {name: pattern for pattern in request.methods for name in stored if fnmatch.fnmatchcase(name, pattern)}
    here = tuple(name for name in request.methods if name not in foreign.values() or _matches(name, named.catalog))
    request = replace(request, methods=here)
    plan = plan_of(request) if here else named
    if rows.empty:
        console.damaged(damaged)
        raise NothingError(_what_else(request, plan))
    # What was run counts, not what a plain run would do: every method, pair and seed that has the configuration of today.
    seeds = tuple(int(seed) for seed in rows["seed"].unique())
    made = make_plan(plan.suite, replace(request, methods=("*",), pairs=("*",), seeds=seeds[:1]), plan.catalog)
    if Path(request.out).is_file():  # the cells of somebody's table: what it holds is what is shown
        current = rows["method"].notna()
    else:
        cells = plan_on_disk(made, Store(request.out)).cells
        current = rows["path"].isin({replace(cell, seed=seed).folder for cell in cells for seed in seeds})
        current |= ~rows["method"].isin([*made.catalog])  # of plugins that are not here
    missing = _missing(plan, rows, rows[current])
    frame = (
        pd.concat([rows[current], missing], ignore_index=True) if len(missing) else rows[current].reset_index(drop=True)
    )
    frame["shown"] = True
    asked = _asked(request, plan)
    if foreign:
        asked["method"] = asked.get("method", set()) | {*foreign}
    for column, values in asked.items():
        frame["shown"] &= frame[column].isin(values)
    frame["conclusive"] = plan.suite.protocols[plan.under.name].conclusive
    least = {teacher.name: teacher.expected_top1 for teacher in made.teachers if teacher.trained_here}
    frame["teacher_expected"] = frame["teacher"].map(least).fillna(0.0)
    return split_frame(frame), select or plan.suite.protocols[plan.under.name].select, damaged


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _asked(request: Request, plan: Plan) -> dict[str, set[Any]]:
    """What the request chooses, by column."""
    cells = (*plan.cells, *plan.skipped, *plan.broken)
    chosen = {"method": request.methods, "pair": request.pairs, "seed": request.seeds}
    return {name: {getattr(cell, name) for cell in cells} for name, given in chosen.items() if given}


def _missing(plan: Plan, rows: pd.DataFrame, current: pd.DataFrame) -> pd.DataFrame:
    """Rows for planned cells of which ``current`` holds nothing; a table shows those of methods and pairs that it shows anyway."""
    key = ["pair", "method", "seed"]
    there, older = ({*zip(*(frame[name] for name in key), strict=True)} for frame in (current, rows))
    methods, pairs = {*current["method"]}, {*current["pair"]}
    cells = [cell for cell in plan.cells if (cell.pair, cell.method, cell.seed) not in there]
    missing = planned_results(cells)
    missing["state"] = [
        "planned" if plan.request.methods or (cell.method in methods and cell.pair in pairs) else ABSENT
        for cell in cells
    ]
    missing["reason"] = [
        f"{STALE}: only results of another configuration are stored"
        if (cell.pair, cell.method, cell.seed) in older
        else ""
        for cell in cells
    ]
    # a column that a file does not fill has the type of nothing
    kinds = {name: kind for name, kind in rows.dtypes.items() if rows[name].notna().any()}
    return missing.reindex(columns=rows.columns).astype(kinds)


def _what_else(request: Request, plan: Plan) -> str:
    """What a store holds that has nothing of the suite, protocol and split that were asked for."""
    asked = f"{request.out} holds no cell of suite {plan.suite.name}, protocol {plan.under.name}, split {request.split}"
    rows = load_results(request.out)
    if rows.empty:
        return f"{asked}, nor any other; kdbench run trains some"
    found = Counter(zip(rows["suite"], rows["protocol"], rows["split"], strict=True))
    kinds = [
        f"{counted(count, 'cell')} of {suite} --protocol {protocol}{'' if split == 'test' else f' --split {split}'}"
        for (suite, protocol, split), count in found.items()
    ]
    return f"{asked}; it holds {', '.join(kinds)}"


def print_board(board: Any) -> None:
    """A leaderboard on standard output, in colours where that is a terminal."""
    from kdbench.reporting.text.leaderboard import leaderboard_rich, leaderboard_text

    if not sys.stdout.isatty():
        console.say(leaderboard_text(board).rstrip("\n"))
        return
    from rich.console import Console

    terminal = Console()
    terminal.print(board.message if board.message else leaderboard_rich(board, terminal.width))


def form_of(form: str | None, to: str | None) -> str:
    """The format that ``--format`` names, or else the ending of ``--to``."""
    ending = FORMATS.get(Path(to).suffix.lower()) if to else None
    if form and ending and form != ending:
        raise KdbenchError(f"--to {to} is {ending} by its ending, and --format says {form}; give one of the two")
    return form or ending or "text"


def write(parts: Sequence[tuple[str, str]], path: str | None, damaged: Sequence[str], form: str) -> int:
    """Print or write texts, each with the message that it is where it shows no figure; the status is 1 where none shows one."""
    text = "\n\n".join(text.rstrip("\n") for text, _ in parts)
    status = int(all(message for _, message in parts))
    if path is None:
        console.say(text)
        if damaged and form == "text":
            console.say()
        console.damaged(damaged, aside=form != "text")
        return status
    console.damaged(damaged)
    write_output(Path(path), f"{printable(text)}\n".encode())
    return status
