"""The verbs that read results: ``table``, ``leaderboard``, ``classes``, ``plots`` and ``report``. None of them imports torch."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.cli.commands import again, plan_of, print_board, words
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import folders_over_seeds, make_plan
from kdbench.store.folders import load_results


def table(options: argparse.Namespace) -> int:
    """``kdbench table``."""
    from kdbench.reporting.table import build_table
    from kdbench.reporting.text.render import render

    texts = []
    for frame in results(options):
        if options.against_published:
            from kdbench.reporting.published import published_ledger

            built = published_ledger(frame, select=options.select, command=again())
        else:
            built = build_table(frame, options.layout, options.metric, options.select, command=again())
        texts.append(render(built, options.format))
    return write("\n\n".join(text.rstrip("\n") for text in texts), options.to)


def leaderboard(options: argparse.Namespace) -> int:
    """``kdbench leaderboard``."""
    from kdbench.reporting.leaderboard import build_leaderboard
    from kdbench.reporting.text.leaderboard import leaderboard_markdown, leaderboard_text

    boards = [
        build_leaderboard(
            frame, tie_band=options.tie_band, metric=options.metric, select=options.select, command=again()
        )
        for frame in results(options)
    ]
    if options.to and Path(options.to).suffix in (".png", ".svg", ".pdf"):
        from kdbench.reporting.plots.picture import draw_leaderboard

        if boards[0].message:
            raise KdbenchError(boards[0].message)
        draw_leaderboard(boards[0], Path(options.to))
        return 0
    if options.format == "text" and options.to is None and sys.stdout.isatty():
        for board in boards:
            print_board(board)
        return 0
    draw = leaderboard_markdown if options.format == "markdown" else leaderboard_text
    return write("\n\n".join(draw(board).rstrip("\n") for board in boards), options.to)


def classes(options: argparse.Namespace) -> int:
    """``kdbench classes``."""
    from kdbench.reporting.classes import build_class_table
    from kdbench.reporting.text.render import render

    texts = [
        render(
            build_class_table(frame, options.out, options.by, options.show, options.worst, command=again()),
            options.format,
        )
        for frame in results(options)
    ]
    return write("\n\n".join(text.rstrip("\n") for text in texts), options.to)


def plots(options: argparse.Namespace) -> int:
    """``kdbench plots``."""
    from kdbench.reporting.plots.draw import write_plots

    formats = words(options.format)
    frames = results(options)
    for frame in frames:
        folder = Path(options.to)
        if len(frames) > 1:
            folder /= f"{frame['protocol'].iloc[0]}-{frame['split'].iloc[0]}"
        written = write_plots(
            frame, options.out, folder, formats, options.width, options.metric, options.select, command=again()
        )
        print(f"{len(written)} files in {folder}; what must stand under the plots is in {written[0]}")
    return 0


def report(options: argparse.Namespace) -> int:
    """``kdbench report``."""
    import pandas as pd

    from kdbench.reporting.html.page import write_report

    frame = pd.concat(results(options), ignore_index=True)
    path = write_report(frame, options.out, options.to, command=again(), select=options.select)
    print(f"report of {options.out} in {path}")
    return 0


def results(options: argparse.Namespace) -> Sequence[Any]:
    """Rows of the run directory that belong to the choice, as one frame for each protocol and split.

    ``--select``, where it was not given, becomes that of the protocol.

    Raises:
        KdbenchError: if there are none.
    """
    from kdbench.reporting.frame import split_frame

    made, methods = plan_of(options)
    if getattr(options, "select", None) is None:
        options.select = made.suite.protocols[made.protocol].select
    rows = load_results(options.out, made.suite.name, made.protocol)
    rows = rows[rows["split"] == options.split]
    # What was run counts, not what a plain run would do: every method, pair and seed, unless the user chose.
    seeds = made.choice.seeds or tuple(int(seed) for seed in rows["seed"].unique())
    chosen = dataclasses.replace(
        made.choice, methods=made.choice.methods or ("*",), pairs=made.choice.pairs or ("*",), seeds=seeds[:1]
    )
    cells = make_plan(made.suite, chosen, methods).cells
    current = {folder for cell in cells for folder in folders_over_seeds(cell, seeds)}
    foreign = ~rows["method"].isin([*methods]) if not made.choice.methods else rows["method"] != rows["method"]
    shown = rows[rows["path"].isin(current) | foreign].reset_index(drop=True)
    frames = split_frame(shown)
    if not frames:
        raise KdbenchError(
            f"no results of suite {made.suite.name}, protocol {made.protocol} in {options.out}; kdbench run {made.suite.name} makes them"
        )
    return frames


def write(text: str, path: str | None) -> int:
    if path is None:
        print(text.rstrip("\n"))
        return 0
    try:
        Path(path).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise KdbenchError(f"{path} cannot be written ({error.strerror})") from None
    return 0
