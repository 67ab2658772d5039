"""Plots of one quantity against another: gain against cost with its Pareto front, accuracy against agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kdbench.reporting.frame import Results, matched
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.plots.style import (
    COLORS,
    draw_point,
    family_handles,
    legend_above,
    name_points,
    new_figure,
    shorten,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Positions that no other beats in both (cheaper or equal, and better or equal, once strictly), by cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    front: list[int] = []
    best = -np.inf
    for i in order:
        if gains[i] > best or (front and gains[i] == best and costs[i] == costs[front[-1]]):
            front.append(i)
            best = gains[i]
    return front


def cost_points(board: Leaderboard) -> list[Standing]:
    """Methods with a gain over all pairs and a known step time."""
    return [
        s
        for s in board.standings
        if np.isfinite(s.step_ratio) and np.isfinite(board.score(s)) and s.pairs == board.pairs
    ]


def cost_plot(board: Leaderboard) -> Figure:
    """Mean gain against step time relative to scratch."""
    standings = cost_points(board)
    costs = [s.step_ratio for s in standings]
    gains = [board.score(s) for s in standings]
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    tidy(axes)
    low, high = _robust(gains, 0.0 if board.reference else None)
    front = pareto_front(costs, gains)
    x = [costs[i] for i in front]
    y = [gains[i] for i in front]
    axes.step(x, y, where="post", color="0.25", linewidth=0.9, linestyle=(0, (3, 1.5)), zorder=2)
    if board.reference:
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
    axes.set_xlabel("training step time relative to scratch (×)")
    low, high = _with_margin(low, high)
    axes.set_ylim(low, high)
    if max(costs) > 4 * min(costs):  # one dear method must not push the others to the edge
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.08)
    points = list(zip(costs, gains, strict=True))
    corners = [(x[0], y[0])] + [corner for k in range(1, len(x)) for corner in ((x[k], y[k - 1]), (x[k], y[k]))]
    _draw_points(axes, board, standings, points, ((-np.inf, np.inf), (low, high)), corners)
    return figure


def agreement_points(results: Results, board: Leaderboard) -> pd.DataFrame:
    """One row per pair and method: ``agreement`` and ``value``, minus the reference's on the same pair if there is one."""
    cells = results.cells[results.cells["value"].notna() & results.cells["agreement"].notna()]
    if board.reference:
        apart = matched(cells, board.reference, ["agreement", "value"])
        cells = apart[apart["method"] != board.reference]
        cells = cells.assign(value=results.metric.sign * cells["value"])
    return cells.groupby(["pair", "method"])[["agreement", "value"]].mean().reset_index()


def agreement_plot(results: Results, board: Leaderboard) -> Figure:
    """Accuracy against agreement with the teacher: small marks are pairs, large ones means of methods."""
    points = agreement_points(results, board)
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    tidy(axes)
    by_name = {s.method: s for s in board.standings}
    x_low, x_high = _with_margin(*_robust(points["agreement"], 0.0 if board.reference else None))
    y_low, y_high = _with_margin(*_robust(points["value"], 0.0 if board.reference else None))
    clipped = points.assign(
        agreement=points["agreement"].clip(x_low, x_high), value=points["value"].clip(y_low, y_high)
    )
    means = points.groupby("method")[["agreement", "value"]].mean().sort_values("value", ascending=False)
    for name, rows in clipped.groupby("method"):
        family = _family(by_name[str(name)])
        axes.scatter(rows["agreement"], rows["value"], s=3.5, color=COLORS.get(family, "#555555"), alpha=0.45,
                     linewidth=0, zorder=2, clip_on=False)  # fmt: skip
    if board.reference:
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
        axes.axvline(0, color="black", linewidth=0.6, zorder=1)
    over = f" minus {shorten(board.reference_display, 12)}'s" if board.reference else ""
    unit = "points" if board.reference else "%"
    axes.set_xlabel(f"agreement with the teacher{over} ({unit})")
    axes.set_xlim(x_low, x_high)
    axes.set_ylim(y_low, y_high)
    standings = [by_name[str(name)] for name in means.index]
    shown = [(float(x), float(y)) for x, y in means.to_numpy()]
    limits = ((x_low, x_high), (y_low, y_high))
    _draw_points(axes, board, standings, shown, limits)
    return figure


def _draw_points(
    axes: Axes,
    board: Leaderboard,
    standings: Sequence[Standing],
    points: Sequence[tuple[float, float]],
    limits: tuple[tuple[float, float], tuple[float, float]],
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw and name a point per method, the best first; on the frame where it lies beyond the limits (of x, of y).

    Args:
        line: see ``name_points``.
    """
    shown = [(float(np.clip(x, *limits[0])), float(np.clip(y, *limits[1]))) for x, y in points]
    for standing, (x, y) in zip(standings, shown, strict=True):
        draw_point(axes, x, y, _family(standing), standing.reconstruction, clip_on=False)
    axes.set_ylabel(_gain_label(board))
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles = family_handles([_family(s) for s in standings], any(s.reconstruction for s in standings))
    legend_above(figure, handles, len(handles))
    order = sorted(range(len(points)), key=lambda i: -points[i][1])
    names = [_beyond(shorten(standings[i].display), points[i][1], *limits[1]) for i in order]
    name_points(axes, [shown[i] for i in order], names, line)


def _family(standing: Standing) -> str:
    return "baseline" if standing.baseline else standing.family


def _robust(values: Sequence[float] | pd.Series, keep: float | None) -> tuple[float, float]:
    """Limits that one collapsed method does not stretch; ``keep`` stays inside."""
    data = np.asarray(values, float)
    first, third = np.percentile(data, [25, 75])
    reach = max(3 * (third - first), 0.1)
    low, high = max(data.min(), first - reach), min(data.max(), third + reach)
    if keep is not None:
        low, high = min(low, keep), max(high, keep)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis, on which what lies beyond is drawn."""
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _beyond(name: str, value: float, low: float, high: float) -> str:
    """Say the figure of a point that is drawn at the edge."""
    return name if low <= value <= high else f"{name} ({value:+.1f} {'↓' if value < low else '↑'})".replace("-", "−")


def _gain_label(board: Leaderboard) -> str:
    if not board.reference:
        return board.metric.with_unit(f"mean {board.metric.title[0].lower()}{board.metric.title[1:]}")
    return board.metric.with_unit(f"gain over {shorten(board.reference_display, 12)}", difference=True)
