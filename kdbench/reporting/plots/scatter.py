"""Plots of one quantity against another: gain against cost with its Pareto front, accuracy against agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kdbench.reporting.frame import Results
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


def cost_plot(board: Leaderboard) -> tuple[Figure, int]:
    """Mean gain against step time relative to scratch. Returns the figure and how many points are not named."""
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
    for standing, cost, gain in zip(standings, costs, gains, strict=True):
        shown = float(np.clip(gain, low, high))
        draw_point(axes, cost, shown, "baseline" if standing.baseline else standing.family, standing.reconstruction)
    axes.set_xlabel("training step time relative to scratch (×)")
    axes.set_ylabel(_gain_label(board))
    axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
    if max(costs) > 4 * min(costs):  # one dear method must not push the others to the edge
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.08)
    _legend(axes, standings)
    # A point drawn at the edge must say where it lies: those are named first.
    beyond = [i for i, gain in enumerate(gains) if not low <= gain <= high]
    order = list(dict.fromkeys([*beyond, *front, *(int(i) for i in np.argsort(gains)[::-1])]))
    points = [(costs[i], float(np.clip(gains[i], low, high))) for i in order]
    names = [_beyond(shorten(standings[i].display), gains[i], low, high) for i in order]
    return figure, name_points(axes, points, names)


def agreement_points(results: Results, board: Leaderboard) -> pd.DataFrame:
    """One row per pair and method: ``agreement`` and ``value``, minus the reference's on the same pair if there is one."""
    cells = results.cells[results.cells["value"].notna() & results.cells["agreement"].notna()]
    means = cells.groupby(["pair", "method"])[["agreement", "value"]].mean()
    if not board.reference or means.empty:
        return means.reset_index()
    wide = means.unstack("method")
    if ("agreement", board.reference) not in wide:
        return means.iloc[:0].reset_index()
    apart = pd.DataFrame(
        {
            "agreement": wide["agreement"].sub(wide["agreement"][board.reference], axis=0).stack(),
            "value": results.metric.sign * wide["value"].sub(wide["value"][board.reference], axis=0).stack(),
        }
    )
    return apart.dropna().reset_index().query("method != @board.reference")


def agreement_plot(results: Results, board: Leaderboard) -> tuple[Figure, int]:
    """Accuracy against agreement with the teacher: small marks are pairs, large ones means of methods."""
    points = agreement_points(results, board)
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    tidy(axes)
    by_name = {s.method: s for s in board.standings}
    x_low, x_high = _robust(points["agreement"], 0.0 if board.reference else None)
    y_low, y_high = _robust(points["value"], 0.0 if board.reference else None)
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
    beyond = ~(means["agreement"].between(x_low, x_high) & means["value"].between(y_low, y_high))
    means = means.assign(beyond=beyond).sort_values("beyond", ascending=False, kind="stable")  # named first
    shown = [
        (float(np.clip(x, x_low, x_high)), float(np.clip(y, y_low, y_high)))
        for x, y in zip(means["agreement"], means["value"], strict=True)
    ]
    for (x, y), name in zip(shown, means.index, strict=True):
        draw_point(axes, x, y, _family(by_name[str(name)]), by_name[str(name)].reconstruction)
    over = f" minus {shorten(board.reference_display, 12)}'s" if board.reference else ""
    unit = "points" if board.reference else "%"
    axes.set_xlabel(f"agreement with the teacher{over} ({unit})")
    axes.set_ylabel(_gain_label(board))
    axes.set_xlim(x_low - 0.08 * (x_high - x_low), x_high + 0.08 * (x_high - x_low))
    axes.set_ylim(y_low - 0.08 * (y_high - y_low), y_high + 0.08 * (y_high - y_low))
    _legend(axes, [by_name[str(name)] for name in means.index])
    names = [
        _beyond(shorten(by_name[str(name)].display), y, y_low, y_high)
        for name, y in zip(means.index, means["value"], strict=True)
    ]
    return figure, name_points(axes, shown, names)


def _legend(axes: Axes, standings: Sequence[Standing]) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles = family_handles([_family(s) for s in standings], any(s.reconstruction for s in standings))
    legend_above(figure, handles, len(handles))


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


def _beyond(name: str, value: float, low: float, high: float) -> str:
    """Say the figure of a point that is drawn at the edge."""
    return name if low <= value <= high else f"{name} ({value:+.1f} {'↓' if value < low else '↑'})".replace("-", "−")


def _gain_label(board: Leaderboard) -> str:
    if not board.reference:
        return board.metric.with_unit(f"mean {board.metric.title[0].lower()}{board.metric.title[1:]}")
    return board.metric.with_unit(f"gain over {shorten(board.reference_display, 12)}", difference=True)
