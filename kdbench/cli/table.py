"""``kdbench table``: results as a table of a paper. It imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import CELLS, plan_of, verb
from kdbench.cli.replay import command_published
from kdbench.cli.tables import form_of, format_option, metric_option, results, select_option, to_option, write
from kdbench.cli.values import DECIMALS, NAMES, PATH, OneOf
from kdbench.errors import KdbenchError, NothingError
from kdbench.matrix.request import Request
from kdbench.store.files import write_output
from kdbench.store.rows import planned_results

if TYPE_CHECKING:
    from kdbench.reporting.choices import Choices
    from kdbench.reporting.grid import Table


def _renamed(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """``["ofa=OFA-KD"]`` to ``{"ofa": "OFA-KD"}``."""
    names: dict[str, str] = {}
    for text in given:
        name, equals, title = (part.strip() for part in text.partition("="))
        if not (name and equals and title):
            raise KdbenchError(f'--rename {text!r} is not of the form NAME="TEXT"')
        if name in names:
            raise KdbenchError(f"--rename {name} is given twice")
        names[name] = title
    return names


rename_option = click.option(
    "--rename",
    multiple=True,
    callback=_renamed,
    metavar="NAME=TEXT",
    help="Display name of a method, net or suite; may be repeated.",
)
baseline_option = click.option(
    "--baseline", default="", metavar="NAME", help="Count gains from this method, not from KD."
)
bib_option = click.option(
    "--bib", type=PATH, metavar="FILE", help="Also write the papers as BibTeX, which a table in LaTeX cites."
)


@verb("table", *CELLS, "out")
@click.argument("more", nargs=-1, metavar="[SUITE...]")
@format_option
@click.option(
    "--layout",
    type=OneOf(("pairs", "methods")),
    help="What the rows are (default: pairs; methods with several suites).",
)
@select_option
@metric_option
@click.option("--published", is_flag=True, help="Add rows of published figures.")
@click.option("--against-published", is_flag=True, help="Compare with published figures one by one, with sources.")
@click.option("--ablation", default="", metavar="METHOD", help="Compare a method with its variants.")
@click.option("--ours", default="", metavar="NAME", help="Put this method last, and compare it with the best other.")
@baseline_option
@click.option("--order", type=NAMES, default="", metavar="NAME,...", help="Put these methods first, in this order.")
@rename_option
@click.option("--decimals", type=DECIMALS, metavar="N", help="Decimals of figures; gains have one more.")
@click.option("--no-sd", "sd", is_flag=True, flag_value=False, default=True, help="Leave out standard deviations.")
@click.option(
    "--caption", type=OneOf(("full", "short", "none")), default="full", help="Length of the caption (default: full)."
)
@click.option("--label", default="", metavar="NAME", help="Label in LaTeX, without tab:.")
@click.option("--bare", is_flag=True, help="Rows and columns only: no float, caption or notes.")
@bib_option
@to_option
def table(request: Request, **given: Any) -> int:
    """Tabulate pairs by methods, for a paper.

    Several suites stand side by side in one table, each with its own averages.
    """
    from kdbench.reporting.text.render import render

    to, bib = given.pop("to"), given.pop("bib")
    form = form_of(given.pop("form"), to)
    caption, label, bare = given.pop("caption"), given.pop("label"), given.pop("bare")
    tables, damaged = build_tables(request, **given, cite=bool(bib))
    if label and len(tables) > 1:
        raise KdbenchError(
            f"--label {label} is for one table, and these are {len(tables)}; choose a --protocol and a suite"
        )
    shown = [
        replace(
            built,
            caption={"full": built.caption, "short": built.short, "none": ""}[caption],
            label=label or built.label,
            bare=bare,
        )
        for built in tables
    ]
    if bib:
        write_bib(bib, [citation for built in tables for citation in built.citations])
    return write([(render(built, form), built.message) for built in shown], to, damaged, form)


def build_tables(
    request: Request,
    layout: str | None = None,
    metric: str = "top1",
    select: str | None = None,
    against_published: bool = False,
    more: Sequence[str] = (),
    ablation: str = "",
    published: bool = False,
    rename: dict[str, str] | None = None,
    **choices: Any,
) -> tuple[list[Table], list[str]]:
    """The tables of a request, and what could not be read; arguments as the options of ``kdbench table``."""
    from kdbench.reporting.choices import Choices
    from kdbench.reporting.joined import join_tables
    from kdbench.reporting.table import build_table

    wishes = Choices(published=published, names=rename or {}, **choices)
    if more and (against_published or ablation):
        raise KdbenchError(
            "several suites make one table of pairs and methods; --against-published and --ablation take one suite"
        )
    command = command_published()
    if against_published:
        from kdbench.reporting.published import published_ledger

        frames, select, damaged = _run_or_not(request, select)
        return [published_ledger(frame, select=select, command=command) for frame in frames], damaged
    if ablation:
        from kdbench.reporting.ablation import ablation_table

        frames, select, damaged = results(request, select)
        return [ablation_table(frame, ablation, metric, select, wishes, command=command) for frame in frames], damaged
    parts, damaged = [], []
    for name in (request.suite, *more):
        read = _run_or_not if published else results
        frames, chosen, unread = read(replace(request, suite=name), select)
        if more and len(frames) > 1:
            raise KdbenchError(f"suite {name} has {len(frames)} tables here; choose one with --protocol and --split")
        parts += [(frame, chosen) for frame in frames]
        damaged += unread
    if not more:
        built = [
            build_table(frame, layout or "pairs", metric, chosen, wishes, command=command) for frame, chosen in parts
        ]
        return built, damaged
    held = [{*frame["method"], *frame["teacher"], *frame["student"], frame["suite"].iloc[0]} for frame, _ in parts]
    built = [
        build_table(frame, "pairs", metric, chosen, _within(wishes, known), command=command)
        for (frame, chosen), known in zip(parts, held, strict=True)
    ]
    unknown = [name for name in wishes.names if not any(name in known for known in held)]
    if unknown:
        raise KdbenchError(f"--rename {unknown[0]}: none of the suites has a method or net of that name")
    suites = [(str(frame["suite"].iloc[0]), str(frame["dataset_title"].iloc[0])) for frame, _ in parts]
    data = [title for _, title in suites]
    titles = [
        wishes.names.get(suite) or (title if title and data.count(title) == 1 else suite) for suite, title in suites
    ]
    return [join_tables(built, titles, layout or "methods")], damaged


def _within(wishes: Choices, known: set[str]) -> Choices:
    """The choices, with those names alone that one suite knows."""
    return replace(wishes, names={name: title for name, title in wishes.names.items() if name in known})


def _run_or_not(request: Request, select: str | None) -> tuple[Sequence[Any], str, list[str]]:
    """As ``results``; of a run that has not begun, the planned cells of all methods and pairs."""
    with contextlib.suppress(NothingError):
        if Path(request.out).exists():
            return results(request, select)
    plan = plan_of(replace(request, methods=request.methods or ("*",), pairs=request.pairs or ("*",)))
    return [planned_results(plan.cells)], select or plan.under.select, []


def write_bib(path: str, citations: Sequence[Mapping[str, Any]]) -> None:
    """Papers as BibTeX."""
    from kdbench.plugins.citations import bibtex

    write_output(Path(path), f"{bibtex(citations)}\n".encode())
