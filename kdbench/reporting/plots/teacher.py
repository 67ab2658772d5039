"""Gain against the teacher's own accuracy, a panel per method, a marker per pair: does a better teacher teach more?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.reporting.frame import NET_FAMILIES, NET_FAMILY_TITLES, Results
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.plots.stored import shown_methods
from kdbench.reporting.plots.style import new_figure, shortened, tidy
from kdbench.reporting.statistics import ranks_in_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 6
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
    base = base_of(board)
    if not base:
        return {}
    means = results.means()
    column = "teacher_value" if results.metric.teacher_column else "teacher_top1"
    teacher = _teacher(results, column)
    found: dict[str, TeacherPoints] = {}
    for name in shown_methods(board, MOST_PANELS + 2):
        if name == base or len(found) == MOST_PANELS:
            continue
        gain = results.metric.sign * (means[name] - means[base])
        pairs = [pair for pair in results.pair_info if np.isfinite(gain[pair]) and np.isfinite(teacher[pair])]
        if pairs:
            x, y = (np.array([column[pair] for pair in pairs], float) for column in (teacher, gain))
            found[name] = TeacherPoints(tuple(pairs), x, y, spearman(x, y))
    return found


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, ties with mean ranks; NaN with fewer than three values or no variation."""
    if x.size < 3:
        return float("nan")
    ranks = [ranks_in_rows(values[None], higher_is_better=False)[0] for values in (x, y)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def teacher_plot(results: Results, board: Leaderboard, points: dict[str, TeacherPoints], width: float) -> Figure:
    """Panels with common axes. Legible without colour: shapes and grey fillings."""
    columns = min(3 if width > 5 else 2, len(points))
    rows = -(-len(points) // columns)
    figure = new_figure(width, 1.65 * rows + 0.75)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, found) in zip(panels.flat, points.items(), strict=False):
        tidy(axes)
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
        for pair, x, y in zip(found.pairs, found.teacher, found.gain, strict=True):
            row = results.pair_info[pair]
            axes.plot(
                x, y, STUDENT_MARKERS.get(row["student_family"], "D"), color="black", markersize=4.2,
                markerfacecolor=TEACHER_FILLS.get(row["teacher_family"], "0.65"), markeredgewidth=0.7, zorder=3,
                linestyle="none", clip_on=False,
            )  # fmt: skip
        told = f"\nρ = {found.correlation:+.2f}".replace("-", "−") if np.isfinite(found.correlation) else ""
        pairs = f"{len(found.pairs)} pair{'s' if len(found.pairs) != 1 else ''}"
        title = shortened(str(results.method_info[name]["title"]), 18)
        axes.set_title(f"{title}{told}{', ' if told else chr(10)}{pairs}", pad=3)
        axes.margins(0.1)
    for axes in panels.flat[len(points) :]:
        axes.axis("off")
    unit = "points" if board.unit == "%" else board.unit
    over = shortened(str(results.method_info[base_of(board)]["display"]), 14)
    kind = results.metric.title.lower() if results.metric.teacher_column else "top-1 accuracy"
    figure.supxlabel(f"teacher's {kind} (%)", fontsize=7)
    figure.supylabel(f"gain over {over} ({unit})", fontsize=7)
    handles = _handles(results, points)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=6 if width > 5 else 3, frameon=False, handletextpad=0.1,
        columnspacing=0.9, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _teacher(results: Results, column: str) -> dict[str, float]:
    if column == "teacher_value":
        return {pair: float(row["teacher_value"]) for pair, row in results.pair_info.items()}
    means = results.cells.groupby("pair")["teacher_top1"].mean()
    return {pair: float(means[pair]) for pair in results.pair_info}


def _handles(results: Results, points: dict[str, TeacherPoints]) -> list[Any]:
    from matplotlib.lines import Line2D

    shown = [results.pair_info[pair] for pair in dict.fromkeys(p for found in points.values() for p in found.pairs)]

    def handle(marker: str, face: str, label: str) -> Line2D:
        return Line2D([], [], color="black", marker=marker, markerfacecolor=face, linestyle="none", markersize=4.2,
                      markeredgewidth=0.7, label=label)  # fmt: skip

    students, teachers = ({row[f"{who}_family"] for row in shown} for who in ("student", "teacher"))
    return [
        *(handle(STUDENT_MARKERS[f], "0.85", f"{NET_FAMILY_TITLES[f]} student") for f in NET_FAMILIES if f in students),
        *(handle("P", TEACHER_FILLS[f], f"{NET_FAMILY_TITLES[f]} teacher") for f in NET_FAMILIES if f in teachers),
    ]
