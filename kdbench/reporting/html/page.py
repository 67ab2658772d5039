"""The report: one HTML file that needs nothing else, with tables to sort and filter, plots, and every cell to open."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.plugins.metrics import Metric
from kdbench.reporting.classes import ClassScores, class_scores
from kdbench.reporting.frame import Results, split_frame
from kdbench.reporting.hours import with_equal_hours
from kdbench.reporting.html.classes import CellClasses, classes_table, students_table
from kdbench.reporting.html.data import blocks_of_files, cells_data, safe_json
from kdbench.reporting.html.render import render
from kdbench.reporting.html.tables import (
    Links,
    PageTable,
    environment_table,
    failures_table,
    leaderboard_table,
    matrix_table,
    metrics_table,
    paired_table,
)
from kdbench.reporting.html.views import board_data, boards_json
from kdbench.reporting.html.words import summary
from kdbench.reporting.leaderboard import Leaderboard, build_leaderboard
from kdbench.reporting.plots.draw import Plot, draw_plots
from kdbench.reporting.plots.picture import board_figure
from kdbench.reporting.plots.style import figure_bytes
from kdbench.store.files import write_output
from kdbench.store.reading import Outcomes

#: Larger drawings are embedded as pictures of points.
_LARGEST_SVG = 400_000


def write_report(
    frame: pd.DataFrame,
    store_root: Path | str,
    path: Path | str,
    command: str = "",
    select: str = "last",
    damaged: list[str] | None = None,
) -> Path:
    """Write the report.

    Args:
        frame: one row per cell, as ``load_results`` gives it; several protocols become several sections.
        store_root: the run directory, for configurations, curves, logs and predictions.
        path: the HTML file; its folder is created.
        command: the command line that makes it, shown in the page.
        damaged: ``FILE: reason`` of what could not be read, for the page; receives what it finds itself.
        select: as for ``build_table``; what the page has beside top-1 accuracy is always the last epoch's.

    Returns:
        The path.

    Raises:
        KdbenchError: if the frame is not one of results, or the file cannot be written.
    """
    target = Path(path)
    write_output(target, report_html(frame, store_root, command, select, damaged).encode())
    return target


def report_html(
    frame: pd.DataFrame,
    store_root: Path | str,
    command: str = "",
    select: str = "last",
    damaged: list[str] | None = None,
) -> str:
    """The report as text; see ``write_report``."""
    from markupsafe import Markup

    outcomes = Outcomes(store_root, damaged)
    parts: list[dict[str, Any]] = []
    shown: list[pd.DataFrame] = []
    boards: list[Leaderboard] = []
    metrics: dict[str, Metric] = {}
    for number, part in enumerate(split_frame(frame)):
        board = build_leaderboard(part, select=select, command=command)
        results = board.results
        cells = _titled(results)
        links = Links(
            _first_cells(cells, sum(map(len, shown))), {name: row["title"] for name, row in results.method_info.items()}
        )
        shown.append(cells)
        boards.append(board)
        metrics |= results.metrics
        classes = [class_scores(results, outcomes, by) for by in ("superclass", "class")]
        parts.append(part_of_page(f"part-{number}", part, board, classes, outcomes, links))
    cells = pd.concat(shown, ignore_index=True)
    environment: Counter[tuple[str, str]] = Counter()
    blocks = list(blocks_of_files(outcomes, cells, CellClasses(outcomes), environment))
    title = parts[0]["title"] if len(parts) == 1 else f"{len(parts)} protocols"
    filters = [("method", "Method"), ("pair", "Pair"), ("state", "State")]
    if len(parts) > 1:
        filters.append(("protocol", "Protocol"))
    return render(
        "page.html.j2",
        ("views.js", "cells.js"),
        title=f"kdbench: {title}",
        command=command or "kdbench report",
        hashes=[board.results_hash for board in boards],
        parts=parts,
        methods=None,
        boards=boards_json(
            [board_data(board, part["id"]) for board, part in zip(boards, parts, strict=True) if not board.message]
        ),
        filters=filters,
        cells=Markup(safe_json(cells_data(cells, metrics.values()))),  # noqa: S704 - JSON that cannot end the element
        blocks=blocks,
        failures=failures_table(cells, range(len(cells))) if len(cells) else None,
        environment=environment_table(environment),
        damaged=outcomes.damaged,
    )


def part_of_page(
    id: str,
    frame: pd.DataFrame,
    board: Leaderboard,
    classes: Sequence[ClassScores],
    outcomes: Outcomes,
    links: Links,
) -> dict[str, Any]:
    """One suite and protocol: the board's picture, summary, tables, plots."""
    results = board.results
    identity = results.identity()
    title = f"Suite {identity['suite']}, protocol {identity['protocol']}" if identity["suite"] else "No results"
    if identity["split"] not in ("", "test"):
        title += f", {identity['split']} split"
    tables: list[PageTable] = []
    if not results.empty:
        found = [
            leaderboard_table(with_equal_hours(board, outcomes), links, f"{id}-leaderboard"),
            matrix_table(frame, results, links, f"{id}-matrix"),
            metrics_table(results, links, f"{id}-metrics"),
            students_table(board, f"{id}-students"),
            *(classes_table(results, scores, links, f"{id}-{scores.by}") for scores in classes),
            paired_table(board, outcomes, links, f"{id}-paired"),
        ]
        tables = [table for table in found if table is not None]
    drawn = [] if results.empty else draw_plots(frame, outcomes.root, select=results.select, damaged=outcomes.damaged)
    plots = [_embedded(plot) for plot in drawn]
    picture = None
    if not results.empty:
        picture = _embedded(Plot("board", "Leaderboard", "Its numbers are in the table below.", board_figure(board)))
        picture["whole"] = True
    sections = [(id, title), *((table.heading_id, table.label.capitalize()) for table in tables)]
    if plots:
        sections.append((f"{id}-plots", "Plots"))
    return {
        "id": id, "title": title, "picture": picture, "summary": summary(board), "tables": tables,
        "plots": plots, "sections": sections,
    }  # fmt: skip


def _titled(results: Results) -> pd.DataFrame:
    """Cells in the order of the tables, with the titles that tables give their pair and method."""
    cells = results.cells.assign(
        method_title=results.cells["method"].map(results.methods["title"]),
        pair_title=results.cells["pair"].map(results.pairs["title"]),
    )
    places = {name: i for index in (results.pairs.index, results.methods.index) for i, name in enumerate(index)}
    order = cells[["pair", "method"]].apply(lambda column: column.map(places)).assign(seed=cells["seed"])
    return cells.loc[order.sort_values([*order], kind="stable").index].reset_index(drop=True)


def _first_cells(cells: pd.DataFrame, offset: int) -> dict[tuple[str, str], int]:
    """Number of the first finished cell of each pair and method, or of the first one."""
    order = cells.assign(number=range(offset, offset + len(cells)), open=cells["state"] != "done")
    first = order.sort_values(["open", "number"]).drop_duplicates(["pair", "method"])
    return dict(zip(zip(first["pair"], first["method"], strict=True), first["number"], strict=True))


def _embedded(plot: Plot) -> dict[str, Any]:
    """A plot as an image within the page; an image cannot run scripts, nor do its names meet those of others."""
    about: dict[str, Any] = {
        "title": plot.title,
        "caption": plot.caption,
        "image": "",
        "width": 0,
        "height": 0,
        "whole": False,
    }
    if plot.figure is None:
        return about
    kind, content = "svg+xml", figure_bytes(plot.figure, "svg", text_as_paths=True)
    if len(content) > _LARGEST_SVG:
        kind, content = "png", figure_bytes(plot.figure, "png")
    width, height = plot.figure.get_size_inches()
    image = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {**about, "image": image, "width": round(width * 96), "height": round(height * 96)}
