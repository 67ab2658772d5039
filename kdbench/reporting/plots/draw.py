"""All plots of one suite and protocol, each with its caption: drawn, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.reporting.caption import build_caption, data_notes, join_names, nothing_text
from kdbench.reporting.frame import Results, collect
from kdbench.reporting.leaderboard import Leaderboard, build_leaderboard
from kdbench.reporting.plots import matrix, runs, scatter, stored, teacher
from kdbench.reporting.plots.style import FORMATS, drawn_in, figure_bytes
from kdbench.reporting.ranks import rank_diagram
from kdbench.reporting.text.markup import html_comment
from kdbench.shown import printable
from kdbench.store.files import write_output
from kdbench.store.reading import Outcomes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A plot, or why there is none (then ``figure`` is None and ``caption`` the reason)."""

    name: str
    title: str
    caption: str
    figure: Figure | None = None


def draw_plots(
    frame: pd.DataFrame,
    store_root: Path | str,
    metric: str = "top1",
    select: str = "last",
    damaged: list[str] | None = None,
) -> list[Plot]:
    """Draw the plots of one suite and protocol.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        store_root: the run directory, for curves and predictions.
        metric, select: as for ``build_table``.
        damaged: receives ``FILE: reason`` of what cannot be read.
    """
    outcomes = Outcomes(store_root, damaged)
    board = build_leaderboard(frame, metric=metric, select=select)
    results = board.results
    plots = []
    with drawn_in():
        for name, (title, draw) in PLOTS.items():
            try:
                if results.empty:
                    raise _NothingToDrawError(nothing_text(results))
                figure, caption = draw(results, board, outcomes)
                plots.append(Plot(name, title, caption, figure))
            except _NothingToDrawError as reason:
                plots.append(Plot(name, title, str(reason)))
    return plots


def write_plots(
    frame: pd.DataFrame,
    store_root: Path | str,
    folder: Path | str,
    formats: Sequence[str] = FORMATS,
    metric: str = "top1",
    select: str = "last",
    command: str = "",
    damaged: list[str] | None = None,
) -> list[Path]:
    """Write each plot in each format, and ``captions.md`` with what must stand under them; see ``draw_plots``.

    Returns:
        The paths written, captions first.

    Raises:
        KdbenchError: for an unknown format, or a folder that cannot be written.
    """
    for format in formats:
        if format not in FORMATS:
            raise UnknownNameError("format", format, FORMATS, "plots")
    if not formats:
        raise KdbenchError(f"no format of plots was given: expected some of {', '.join(FORMATS)}")
    plots = draw_plots(frame, store_root, metric, select, damaged)
    results = collect(frame, metric, select)
    target = Path(folder)
    lines = [html_comment(command), ""] if command else []
    for plot in plots:
        state = "" if plot.figure else " (not drawn)"
        lines += [f"## {plot.title} (`{plot.name}`){state}", "", plot.caption, ""]
    lines += ["All:", *([] if results.empty else [build_caption(results), *data_notes(results)])]
    written = [target / "captions.md"]
    write_output(written[0], printable("\n".join(lines).rstrip() + "\n").encode())
    for plot in plots:
        for format in formats if plot.figure else ():
            assert plot.figure is not None
            written.append(target / f"{plot.name}.{format}")
            write_output(written[-1], figure_bytes(plot.figure, format))
    return written


class _NothingToDrawError(Exception):
    """Why a plot is not drawn."""


_Drawn = tuple["Figure", str]


def _heat_map(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    if not board.reference:
        raise _NothingToDrawError("Neither KD nor scratch has results, so that there is no gain to show.")
    if len(results.methods) < 2:
        raise _NothingToDrawError("Only one method has results.")
    figure, annotated = matrix.heat_map(results, board)
    band = f"{board.metric.tie_band:g} {board.metric.difference_unit}".strip()
    printed = (
        "the numbers are not. A triangle marks a pair that is harmed: worse than training from scratch. –: no result; n/a: cannot "
        "run; ×: failed."
        if annotated
        else f"+: better by more than {band}; −: worse by more; empty and grey: no result."
    )
    return figure, (
        f"Gain over {board.reference_display} by pair and method ({board.metric.difference_unit}), means over seeds. Shades are "
        f"limited where nine tenths of the figures lie; {printed}"
    )


def _gains(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    bar = (
        " Bar: 95 % interval, were teachers, students and pairs drawn anew."
        if any(s.low == s.low for s in board.standings)
        else ""
    )
    over = f"gain over {board.reference_display}" if board.reference else "value"
    caption = (
        f"Mean {over} of each method over {counted(board.pairs, 'pair')}.{bar} Tick: one pair "
        "(arrow: how many lie beyond the axis). Shape: family of the method; white: reconstruction."
    )
    return matrix.gains_plot(board), caption


def _ranks(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    diagram = rank_diagram(results)
    if diagram is None:
        raise _NothingToDrawError("Fewer than two methods can be ranked on the same pairs.")
    return matrix.rank_plot(diagram), matrix.rank_caption(diagram)


def _cost(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    if len(scatter.cost_points(board)) < 2:
        raise _NothingToDrawError("Step times relative to scratch are known of fewer than two methods with all pairs.")
    caption = (
        "Mean gain against the time of a training step, relative to training from scratch on the same pair, seed and "
        "device (median). Dashes: Pareto front; a method below it is beaten by one that is as cheap and as good. "
        "The teacher's forward pass is shared by a cohort and not counted. An arrow: the point lies beyond the axis."
    )
    return scatter.cost_plot(board), caption


def _teacher(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    points = teacher.teacher_points(results, board)
    if not points:
        raise _NothingToDrawError("No method has pairs of which both the teacher's accuracy and a gain are known.")
    base = results.method_info[teacher.base_of(board)]["display"]
    shown = join_names(results.method_info[name]["title"] for name in points)
    caption = (
        f"Gain over {base} against the teacher's own accuracy on the same images, one marker per pair, means over seeds. "
        f"Shape: family of the student; filling: of the teacher. Shown: {shown}. ρ: Spearman's rank correlation over pairs, "
        "a description: pairs that share a student or a teacher are not independent, and teachers differ in more than accuracy."
    )
    return teacher.teacher_plot(results, board, points), caption


def _agreement(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    if scatter.agreement_points(results, board).empty:
        raise _NothingToDrawError("No cell holds its agreement with the teacher besides the reference's.")
    both = f", both minus {board.reference_display}'s on the same pair" if board.reference else ""
    caption = (
        f"Accuracy against agreement with the teacher (share of images with the same prediction){both}. Small: one pair; "
        "large: mean of a method, at the edge where it lies beyond (arrow: by how much). Right and low: it copies the teacher "
        "without gaining from it."
    )
    return scatter.agreement_plot(results, board), caption


def _curves(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    curves = stored.learning_curves(results, board, outcomes)
    if not curves:
        raise _NothingToDrawError("No cell has a history of this metric.")
    band = any(curve.seeds > 1 for found in curves.values() for curve in found.values())
    shown = join_names(dict.fromkeys(results.method_info[name]["title"] for found in curves.values() for name in found))
    caption = (
        f"{results.metric.title} on the {results.identity()['split']} split by epoch"
        + (", mean over seeds; band: lowest to highest seed. " if band else ", one seed: there is no band. ")
        + _first_pairs(results, curves)
        + f"Shown: {shown}. The axis leaves out the first epochs' low figures."
    )
    return stored.curves_plot(results, curves), caption


def _hours(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    curves = stored.curves_by_hours(results, stored.learning_curves(results, board, outcomes))
    if not curves:
        raise _NothingToDrawError("No cell has both a history of this metric and its hours.")
    caption = (
        f"{results.metric.title} on the {results.identity()['split']} split by hours of training: at equal hours, read upwards. A cell's "
        "hours are its share of its cohort's, the teacher's forward passes included; its epochs take equal parts of them. Means over "
        f"seeds; band: lowest to highest seed. {_first_pairs(results, curves)}Schedules end where the curves do: one that was shortened to "
        "fewer hours would be higher there."
    )
    return stored.curves_plot(results, curves, "hours"), caption


def _first_pairs(results: Results, curves: dict[str, dict[str, stored.Curve]]) -> str:
    return f"The first {len(curves)} of {len(results.pairs)} pairs. " if len(curves) < len(results.pairs) else ""


def _profile(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    gains = runs.profile_gains(results, board) if board.reference else {}
    if not gains:
        raise _NothingToDrawError("No method has gains on two pairs.")
    shown = join_names(results.method_info[name]["title"] for name in gains)
    return runs.profile_plot(results, board, gains), (
        "Performance profile (Agarwal et al. 2021): share of runs, over pairs and seeds, whose gain over "
        f"{board.reference_display} with the same seed is larger than a level. Shown: {shown}. No band: none was found that "
        "covers what it says."
    )


def _calibration(results: Results, board: Leaderboard, outcomes: Outcomes) -> _Drawn:
    found = stored.calibrations(results, board, outcomes)
    if not found:
        raise _NothingToDrawError("No pair and seed has stored predictions of all shown methods.")
    images = next(iter(found.values())).images
    caption = (
        f"Reliability: share of images that are right against the probability of the predicted class, "
        f"{stored.BINS} bins, over {images:,} predictions of each method on the same pairs and seeds, last epoch. "
        "Below the diagonal: overconfident. Grey bars: share of images in the bin. ECE here is of the pooled predictions, "
        "and can be lower than the mean of the cells' own, because over- and underconfident students cancel."
    )
    return stored.calibration_plot(results, found), caption


#: Name of the file: (title, what draws it).
PLOTS: dict[str, tuple[str, Callable[[Results, Leaderboard, Outcomes], _Drawn]]] = {
    "heatmap": ("Gain by pair and method", _heat_map),
    "gains": ("Mean gain of each method", _gains),
    "ranks": ("Average ranks", _ranks),
    "cost": ("Gain against training cost", _cost),
    "teacher": ("Gain against the teacher's accuracy", _teacher),
    "agreement": ("Accuracy against agreement with the teacher", _agreement),
    "curves": ("Learning curves", _curves),
    "hours": ("Learning curves against hours", _hours),
    "profile": ("Performance profiles", _profile),
    "calibration": ("Calibration", _calibration),
}
