"""Plots over single runs: performance profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdbench.reporting.aggregates import performance_profile
from kdbench.reporting.frame import Results
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.plots.stored import shown_methods
from kdbench.reporting.plots.style import CURVES, legend_above, new_figure, shorten, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def profile_gains(results: Results, board: Leaderboard) -> dict[str, dict[str, np.ndarray]]:
    """Gains per seed over the reference, by method and pair, of the shown methods that have at least two pairs."""
    apart = results.gains_by_seed(board.reference)
    found = {}
    for name in shown_methods(board):
        own = apart[(apart["method"] == name) & (name != board.reference)]
        pairs = {str(pair): gains.to_numpy() for pair, gains in own.groupby("pair")["value"]}
        if len(pairs) > 1:
            found[name] = pairs
    return found


def profile_plot(results: Results, board: Leaderboard, gains: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Share of runs with more than a gain, against that gain: a line per method."""
    every = np.concatenate([pair for pairs in gains.values() for pair in pairs.values()])
    low, high = np.percentile(every, [1, 99])
    margin = 0.05 * (high - low) or 0.5
    levels = np.linspace(low - margin, high + margin, 100)
    figure = new_figure(2.6)
    axes = figure.add_subplot()
    tidy(axes)
    styles = dict(zip(shown_methods(board), CURVES, strict=False))
    for name, pairs in gains.items():
        color, dashes = styles[name]
        label = shorten(str(results.method_info[name]["title"]))
        axes.plot(levels, performance_profile([*pairs.values()], levels), color=color, linestyle=dashes, label=label)
    axes.axvline(0, color="black", linewidth=0.6, zorder=1)
    axes.set(xlim=(levels[0], levels[-1]), ylim=(0, 1), ylabel="share of runs with more")
    axes.set_xlabel(results.metric.with_unit(f"gain over {board.reference_display}", difference=True))
    handles, _ = axes.get_legend_handles_labels()
    legend_above(figure, handles, 6, handlelength=3.0, columnspacing=1.2, handletextpad=0.8)
    return figure
