"""``kdbench diff``: what changed between two run directories, or CSV files of their cells. It imports no torch."""

from __future__ import annotations

import click

from kdbench.cli.options import EPILOG, Verb
from kdbench.cli.replay import command_published
from kdbench.cli.tables import form_of, format_option, metric_option, to_option, write
from kdbench.cli.values import PATH, OneOf
from kdbench.store.rows import load_results


@click.command("diff", cls=Verb, epilog=EPILOG, options_metavar="[OPTIONS]")
@click.argument("first", type=PATH, metavar="A")
@click.argument("second", type=PATH, metavar="B")
@click.option("--all", "everything", is_flag=True, help="Show equal figures too.")
@click.option("--select", type=OneOf(("last", "best")), default="last", help="Which epoch's figure (default: last).")
@metric_option
@format_option
@to_option
def diff(first: str, second: str, everything: bool, select: str, metric: str, form: str | None, to: str | None) -> int:
    """Show what changed between two run directories.

    A and B are run directories, or CSV files of their cells. Differences are tested against the spread between seeds. The exit status
    is 0, whatever changed.
    """
    from kdbench.reporting.differences import difference_table
    from kdbench.reporting.text.render import render

    frames = load_results(first), load_results(second)
    damaged = [line for frame in frames for line in frame.attrs["damaged"]]
    built = difference_table(*frames, (first, second), metric, select, everything, command_published())
    form = form_of(form, to)
    return write([(render(built, form), built.message)], to, damaged, form)
