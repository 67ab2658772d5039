"""Gain against the teacher's own accuracy, a panel per method, a marker per pair: does a better teacher teach more?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdbench.errors import counted
from kdbench.plugins.metrics import METRICS, Metric
from kdbench.reporting.frame import TEACHER_COLUMNS, Results
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.plots.stored import shown_methods
from kdbench.reporting.plots.style import legend_above, legend_handle, new_figure, panels_of, shorten
from kdbench.reporting.statistics import RESOLUTION
from kdbench.suite.net import FAMILIES as NET_FAMILIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_PANELS = 6
#: Shape: family of the student. Filling: family of the teacher.
STUDENT_MARKERS = {"cnn": "o", "vit": "s", "mlp": "^"}
TEACHER_FILLS = {"cnn": "black", "vit": "0.65", "mlp": "white"}


@dataclass(frozen=True)
class TeacherPoints:
    """A method's pairs. Arrays of one length: ``teacher`` is the teacher's figure, ``gain`` the method's over the base.

    ``correlation`` is Spearman's, NaN with fewer than three pairs or where one of the two never changes.
    """

    pairs: tuple[str, ...]
    teacher: np.ndarray
    gain: np.ndarray
    correlation: float


def base_of(board: Leaderboard) -> str:
    """What gains are counted from: scratch, since that is what any teacher adds to; else the leaderboard's reference."""
    return "scratch" if any(s.method == "scratch" and np.isfinite(s.mean) for s in board.standings) else board.reference


def teacher_points(results: Results, board: Leaderboard) -> dict[str, TeacherPoints]:
    """Points of the shown methods: KD first, then by rank. A method without a pair is left out."""
    from scipy.stats import spearmanr

    base = base_of(board)
    if not base:
        return {}
    gains = results.gains(base)
    teacher = results.cells.groupby("pair")[TEACHER_COLUMNS[_teacher_metric(results).name]].mean()
    found: dict[str, TeacherPoints] = {}
    for name in shown_methods(board, MAX_PANELS + 2):
        if name == base or len(found) == MAX_PANELS:
            continue
        gain = gains[name]
        pairs = [pair for pair in results.pair_info if np.isfinite(gain[pair]) and np.isfinite(teacher[pair])]
        if pairs:
            x, y = (np.array([column[pair] for pair in pairs], float) for column in (teacher, gain))
            exact = np.round(x / RESOLUTION), np.round(y / RESOLUTION)
            varied = x.size > 2 and all(np.ptp(values) for values in exact)
            found[name] = TeacherPoints(tuple(pairs), x, y, float(spearmanr(*exact).statistic) if varied else np.nan)
    return found


def teacher_plot(results: Results, board: Leaderboard, points: dict[str, TeacherPoints]) -> Figure:
    """Panels with common axes. Legible without colour: shapes and grey fillings."""
    columns = min(3, len(points))
    figure = new_figure(1.65 * -(-len(points) // columns) + 0.75)
    over = shorten(str(results.method_info[base_of(board)]["display"]), 14)
    metric = _teacher_metric(results)
    panels = panels_of(
        figure, len(points), columns, metric.with_unit(f"teacher's {metric.title.lower()}"),
        board.metric.with_unit(f"gain over {over}", difference=True), share=True,
    )  # fmt: skip
    for axes, (name, found) in zip(panels, points.items(), strict=True):
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
        for pair, x, y in zip(found.pairs, found.teacher, found.gain, strict=True):
            row = results.pair_info[pair]
            axes.plot(
                x, y, STUDENT_MARKERS.get(row["student_family"], "D"), color="black", markersize=4.2,
                markerfacecolor=TEACHER_FILLS.get(row["teacher_family"], "0.65"), markeredgewidth=0.7, zorder=3,
                linestyle="none", clip_on=False,
            )  # fmt: skip
        correlation = f"\nρ = {found.correlation:+.2f}".replace("-", "−") if np.isfinite(found.correlation) else ""
        pairs = counted(len(found.pairs), "pair")
        title = shorten(str(results.method_info[name]["title"]), 18)
        axes.set_title(f"{title}{correlation}{', ' if correlation else chr(10)}{pairs}", pad=3)
        axes.margins(0.1)
    legend_above(figure, _handles(results, points), 6)
    return figure


def _teacher_metric(results: Results) -> Metric:
    """What is shown of the teacher: the same metric, or top-1 where its own is not known."""
    return results.metric if results.metric.name in TEACHER_COLUMNS else METRICS["top1"]


def _handles(results: Results, points: dict[str, TeacherPoints]) -> list[Line2D]:
    shown = [results.pair_info[pair] for found in points.values() for pair in found.pairs]
    students, teachers = ({row[f"{who}_family"] for row in shown} for who in ("student", "teacher"))
    entries = [(STUDENT_MARKERS[f], "0.85", f"{title} student") for f, title in NET_FAMILIES.items() if f in students]
    entries += [("P", TEACHER_FILLS[f], f"{title} teacher") for f, title in NET_FAMILIES.items() if f in teachers]
    handles = [legend_handle(*entry, size=4.2) for entry in entries]
    for handle in handles:
        handle.set_markeredgewidth(0.7)
    return handles
