"""Plots of the whole matrix: heat map of gains, gains with intervals, rank diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import counted
from kdbench.reporting.frame import Results
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.plots.picture import draw_rows
from kdbench.reporting.plots.style import WIDTH, new_figure, shorten
from kdbench.reporting.ranks import RankDiagram
from kdbench.reporting.statistics import ALPHA, RESOLUTION
from kdbench.reporting.text.leaderboard import signed_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A number of four characters at the smallest size of type needs so many inches.
_NUMBER_WIDTH = 0.25
_NUMBER_HEIGHT = 0.115
_TALLEST = 9.0


def heat_map(results: Results, board: Leaderboard) -> tuple[Figure, bool]:
    """Gain over the reference by pair and method; purple with ``+`` is better, orange with ``-`` worse.

    Returns:
        The figure, and whether there was room for numbers and triangles.
    """
    import seaborn
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    # Without the darkest ends, on which print is hard to read.
    shades = LinearSegmentedColormap.from_list("gain", colormaps["PuOr"](np.linspace(0.14, 0.86, 64)))
    names = [name for name in results.method_info if name != board.reference]
    gains = results.gains(board.reference)[names]
    harmed = results.gains("scratch")[names] < -RESOLUTION
    pairs = list(results.pair_info)
    labels = [
        [_gain_text(results, pair, name, float(gain)) for name, gain in zip(names, row, strict=True)]
        for pair, row in zip(pairs, gains.to_numpy(), strict=True)
    ]
    values, marks, texts = gains.to_numpy(), harmed.to_numpy(bool), np.array(labels, dtype=object)
    rows = [shorten(str(results.pair_info[pair]["title"]), 30) for pair in pairs]
    columns = [shorten(str(results.method_info[name]["title"])) for name in names]
    room = WIDTH - 0.9
    if room / len(columns) < _NUMBER_WIDTH and len(rows) < len(columns):
        values, marks, texts, rows, columns = values.T, marks.T, texts.T, columns, rows
    margin = 0.055 * max(map(len, rows)) + 0.25
    cell_width = (WIDTH - margin) / len(columns)
    cell_height = min(0.19, _TALLEST / len(rows))
    annotated = cell_width >= _NUMBER_WIDTH and cell_height >= _NUMBER_HEIGHT
    figure = new_figure(cell_height * len(rows) + 0.05 * max(map(len, columns)) * 0.8 + 0.75)
    axes = figure.add_subplot()
    axes.set_facecolor("0.94")
    finite = np.abs(values[np.isfinite(values)])
    reach = max(float(np.percentile(finite, 90)) if finite.size else 1.0, board.metric.tie_band, 1e-6)
    if not annotated:  # then the sign alone is printed: shades of grey do not tell it
        signs = np.where(values > board.metric.tie_band, "+", np.where(values < -board.metric.tie_band, "−", ""))
        texts = np.where(np.isfinite(values), signs, "")
        texts = texts if min(cell_width, cell_height) > 0.07 else np.full(values.shape, "", dtype=object)
    seaborn.heatmap(
        values, ax=axes, cmap=shades, vmin=-reach, vmax=reach, annot=texts, fmt="", xticklabels=columns,
        yticklabels=rows, linewidths=0.4, linecolor="white",
        annot_kws={"size": 5.5 if cell_width < 0.33 else 6.0},
        cbar_kws={"label": board.metric.with_unit(f"gain over {board.reference_display}", difference=True), "location": "top",
                  "aspect": 40, "shrink": 0.6, "pad": 0.015, "extend": "both"},
    )  # fmt: skip
    for text in axes.texts:  # seaborn turns to white too early for small print
        x, y = (int(place) for place in text.get_position())
        text.set_color("white" if abs(values[y, x]) > 0.7 * reach else "black")
    for y, x in zip(*np.nonzero(~np.isfinite(values)), strict=True):
        if annotated:
            axes.text(x + 0.5, y + 0.5, texts[y, x], ha="center", va="center", fontsize=5.5, color="0.3")
    if annotated and marks.any():
        rows_harmed, columns_harmed = np.nonzero(marks & np.isfinite(values))
        axes.scatter(
            columns_harmed + 0.09,
            rows_harmed + 0.8,
            marker="v",
            s=9,
            color="black",
            edgecolor="white",
            linewidth=0.5,
            zorder=3,
        )
    axes.tick_params(length=0)
    axes.set_xticks(axes.get_xticks(), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(axes.get_yticks(), rows, rotation=0)
    axes.set(xlabel="", ylabel="")
    return figure, annotated


def gains_plot(board: Leaderboard) -> Figure:
    """Each method's mean gain, its interval and the pairs behind it: the leaderboard's picture for a paper."""
    standings = [s for s in board.standings if np.isfinite(board.score(s))]
    figure = new_figure(0.155 * len(standings) + 0.75)
    axes = figure.add_subplot()
    draw_rows(axes, board, standings, scale=0.72, legend=False)
    axes.set_yticks(range(len(standings)), [shorten(s.display, 26) for s in standings])
    return figure


def rank_plot(diagram: RankDiagram) -> Figure:
    """Average ranks on a line, best on the left; a bar joins neighbours that the tests cannot tell apart."""
    k = len(diagram.methods)
    half = (k + 1) // 2
    levels = _levels(diagram.cliques) if diagram.attainable else []
    step = 0.155
    bars = 0.09 * (1 + max(levels, default=-1))
    height = 0.45 + bars + step * half + 0.12
    figure = new_figure(height)
    figure.set_layout_engine("none")
    side = min(0.36, (0.06 * max(map(len, map(shorten, diagram.titles))) + 0.55) / WIDTH)
    axes = figure.add_axes((side, 0.0, 1 - 2 * side, 1.0))
    low, high = 1.0, float(max(k, 2))
    axes.set(xlim=(low, high), ylim=(0, height))
    axes.axis("off")
    line = height - 0.3
    axes.plot([low, high], [line, line], "-", color="black", linewidth=0.8, clip_on=False)
    stride = max(1, int(np.ceil((k - 1) / 8)))
    for tick in range(1, k + 1, stride):
        axes.plot([tick, tick], [line, line + 0.05], "-", color="black", linewidth=0.8, clip_on=False)
        axes.text(tick, line + 0.07, str(tick), ha="center", va="bottom", fontsize=6.5)
    for (first, last), level in zip(diagram.cliques if diagram.attainable else (), levels, strict=True):
        y = line - 0.07 - 0.09 * level
        ends = [
            diagram.ranks[first],
            diagram.ranks[last],
        ]  # no longer than that: a bar that reaches further joins others too
        axes.plot(ends, [y, y], "-", color="black", linewidth=2.4, solid_capstyle="butt", clip_on=False)
    for i, (title, rank) in enumerate(zip(diagram.titles, diagram.ranks, strict=True)):
        left = i < half
        row = i if left else k - 1 - i
        y = line - 0.12 - bars - step * (row + 0.3)
        edge = low - 0.03 * (high - low) if left else high + 0.03 * (high - low)
        axes.plot([rank, rank, edge], [line, y, y], "-", color="0.35", linewidth=0.6, clip_on=False)
        label = f"{shorten(title)}  {rank:.2f}" if left else f"{rank:.2f}  {shorten(title)}"
        axes.text(
            edge, y, f"{label} " if left else f" {label}", ha="right" if left else "left", va="center", fontsize=6.5
        )
    return figure


def rank_caption(diagram: RankDiagram) -> str:
    pairs = counted(diagram.pairs, "pair")
    text = f"Average rank over {pairs}, 1 is best. "
    if not diagram.attainable:
        return text + (
            f"No bars are drawn: with {pairs} and {len(diagram.methods)} methods even the smallest possible corrected p "
            f"is {diagram.smallest_p:.2g}, so that no two methods could be told apart. That is no evidence of equality."
        )
    return text + (
        f"A bar joins methods of which no two differ at {ALPHA:g}: Wilcoxon's signed-rank test, exact and two-sided, with "
        f"Holm's correction over {len(diagram.methods) * (len(diagram.methods) - 1) // 2} comparisons."
    )


def _levels(groups: tuple[tuple[int, int], ...]) -> list[int]:
    """A height for each bar so that no two on one height touch."""
    ends: list[int] = []
    levels = []
    for first, last in groups:
        level = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[level : level + 1] = [last]
        levels.append(level)
    return levels


def _gain_text(results: Results, pair: str, name: str, gain: float) -> str:
    if np.isfinite(gain):
        return signed_text(gain, results.metric.decimals).replace("-", "−")
    score: dict[str, Any] = results.score_info.get((pair, name), {})
    return {"failed": "×", "skipped": "n/a"}.get(score.get("state", ""), "–")
