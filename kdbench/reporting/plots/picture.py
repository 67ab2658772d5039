"""A picture of a leaderboard: mean gain and interval of each method, the pairs behind it, and what the tests say.

Everything is shown by position, shape and words, so that it reads the same in black and white.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import KdbenchError, counted
from kdbench.reporting.caption import teacher_notes
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.plots.style import (
    BASE_STYLE,
    FORMATS,
    MARKERS,
    drawn_in,
    figure_bytes,
    legend_handle,
    shorten,
)
from kdbench.reporting.text.leaderboard import ranking_columns
from kdbench.store.files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Any = {**BASE_STYLE, "font.size": 9.0, "axes.linewidth": 0.8}
_WIDTH = 9.5  # inches
_AXES_RIGHT = 0.61  # of the width; right of it stand the figures
_PAIR_GREY = "0.55"


def draw_leaderboard(leaderboard: Leaderboard, path: Path | str) -> Path:
    """Draw the ranking and write it.

    Args:
        leaderboard: from ``build_leaderboard``.
        path: ends with one of ``FORMATS``; the folder is created.

    Returns:
        The path.

    Raises:
        KdbenchError: for another ending, or if it cannot be written.
    """
    target = Path(path)
    format = target.suffix[1:].lower()
    if format not in FORMATS:
        raise KdbenchError(f"picture {target}: expected a name that ends with .{', .'.join(FORMATS)}")
    write_output(target, figure_bytes(board_figure(leaderboard), format, style=_STYLE, dpi=180))
    return target


def board_figure(board: Leaderboard) -> Figure:
    """The ranking as a figure."""
    with drawn_in(_STYLE):
        return _figure(board)


def _figure(board: Leaderboard) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    standings = [s for s in board.standings if np.isfinite(board.score(s))]
    if board.message or not standings:
        figure = Figure(figsize=(_WIDTH, 1.2))
        FigureCanvasAgg(figure)
        figure.text(0.02, 0.5, "\n".join(textwrap.wrap(board.message or "No figures.", 110)), va="center")
        return figure
    caption = _caption(board, standings)
    top, bottom = 0.78, 0.62 + 0.155 * len(caption)
    height = top + 0.32 * len(standings) + bottom
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)
    longest = max(len(_label(s)) for s in standings)
    left = min(0.30, 0.04 + 0.0085 * longest)
    axes = figure.add_axes((left, bottom / height, _AXES_RIGHT - left, 1 - (top + bottom) / height))
    draw_rows(axes, board, standings)
    _draw_columns(axes, board, standings)
    over = f"gain over {board.reference_display}" if board.reference else f"mean {board.metric.title.lower()}"
    identity = board.results.identity()
    title = f"{identity['suite']}, protocol {identity['protocol']}: {over}"
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=11, fontweight="bold")
    figure.text(0.012, 0.08 / height, "\n".join(caption), va="bottom", fontsize=7.5, linespacing=1.25)
    return figure


def draw_rows(
    axes: Axes, board: Leaderboard, standings: Sequence[Standing], scale: float = 1.0, legend: bool = True
) -> None:
    """Draw a row per method: marker, interval, pairs. ``scale`` is the size of marks, 1 for a picture 9.5 inches wide."""
    low, high = _limits(board, standings)
    for y, standing in enumerate(standings):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="0.955", zorder=0, linewidth=0)
        gains = np.array([gain for _, gain in standing.gains])
        seen = gains[(gains >= low) & (gains <= high)]
        axes.plot(
            seen,
            np.full(seen.size, y),
            "|",
            color=_PAIR_GREY,
            markersize=9 * scale,
            markeredgewidth=1.1 * scale,
            zorder=2,
        )
        for edge, beyond in ((low, gains < low), (high, gains > high)):
            if beyond.any():
                arrow = "◂" if edge == low else "▸"
                axes.annotate(
                    f"{arrow} {beyond.sum()}" if edge == low else f"{beyond.sum()} {arrow}",
                    (edge, y), xytext=(1 if edge == low else -1, 0), textcoords="offset points",
                    ha="left" if edge == low else "right", va="center", fontsize=7 * scale**0.5, color="0.25", zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                )  # fmt: skip
        if np.isfinite(standing.low):
            ends = np.clip([standing.low, standing.high], low, high)
            axes.plot(ends, [y, y], "-", color="black", linewidth=1.6 * scale, zorder=3, solid_capstyle="butt")
        axes.plot(
            np.clip(board.score(standing), low, high), y, MARKERS.get(standing.family, "P"), color="black",
            markerfacecolor="white" if standing.reconstruction else "black", markersize=6.5 * scale,
            markeredgewidth=1.3 * scale,
            zorder=4, clip_on=False,
        )  # fmt: skip
    if board.reference:
        axes.axvline(0, color="black", linewidth=0.9, zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(len(standings) - 0.5, -0.5)
    axes.set_yticks(range(len(standings)), [_label(s) for s in standings])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.85", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(_axis_title(board))
    if legend:
        _draw_legend(axes, standings)


def _draw_columns(axes: Axes, board: Leaderboard, standings: Sequence[Standing]) -> None:
    """Figures beside the rows: their places are fractions of the axes' width, to the right of it."""
    columns = {column.title: column for column in ranking_columns(board)}
    gain = f"gain over {board.reference_display}"
    first = (
        (f"{gain}\n[95 %]" if "95 % interval" in columns else gain.replace(" over", "\nover"), (gain, "95 % interval"))
        if board.reference
        else ("mean", (f"mean {board.metric.name}",))
    )
    shown = dict([first]) | {"win/tie/\nloss": ("win/tie/loss",), "pairs\nharmed": ("pairs harmed",)}
    shown |= {"p\n(Holm)": ("p (Holm)",), "step\ntime": ("step time",)}
    transform = axes.get_yaxis_transform()
    beside = (1 - _AXES_RIGHT) / axes.get_position().width  # what lies right of the axes, in axes' widths
    places = [1 + beside * fraction for fraction in (0.395, 0.545, 0.69, 0.84, 0.975)]
    for title, x in zip(shown, places, strict=True):
        axes.text(x, -0.62, title, transform=transform, ha="right", va="bottom", fontsize=7.5, color="0.25")
    for y, standing in enumerate(standings):
        for names, x in zip(shown.values(), places, strict=True):
            text = " ".join(columns[name].text(standing) for name in names if name in columns).strip()
            axes.text(x, y, text, transform=transform, ha="right", va="center", fontsize=8)


def _draw_legend(axes: Axes, standings: Sequence[Standing]) -> None:
    families = [f for f in MARKERS if any(s.family == f for s in standings)]
    handles = [legend_handle(MARKERS[family], "black", family, size=5.5) for family in families]
    if any(s.reconstruction for s in standings):
        handles.append(legend_handle("o", "white", "white: reconstruction", size=5.5))
    handles.append(legend_handle("|", "black", "one pair", _PAIR_GREY, 5.5))
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, axes.get_position().y1),
        bbox_transform=figure.transFigure, ncols=len(handles), frameon=False, fontsize=7.5, handletextpad=0.1,
        columnspacing=0.9, borderaxespad=0.2,
    )  # fmt: skip


def _limits(board: Leaderboard, standings: Sequence[Standing]) -> tuple[float, float]:
    """Limits of the axis: what nearly all pairs need. A method that collapsed must not squeeze the others to a line."""
    centers = [board.score(s) for s in standings]
    values = np.array([*centers, *(gain for s in standings for _, gain in s.gains)])
    ends = np.array([*values, *(x for s in standings for x in (s.low, s.high) if np.isfinite(x))])
    first, third = np.percentile(values, [25, 75])
    reach = max(4 * (third - first), 1e-6)
    low, high = max(ends.min(), first - reach), min(ends.max(), third + reach)
    if board.reference:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _label(standing: Standing) -> str:
    name = shorten(standing.display, 30)
    return name if standing.rank is None else f"{standing.rank}.  {name}"


def _axis_title(board: Leaderboard) -> str:
    metric = board.metric.title[0].lower() + board.metric.title[1:]
    if not board.reference:
        return board.metric.with_unit(f"mean {metric}")
    unit = "; ".join(part for part in (board.metric.difference_unit, "right is better") if part)
    return f"gain in {metric} ({unit})"


def _caption(board: Leaderboard, standings: Sequence[Standing]) -> list[str]:
    parts = [f"{counted(board.pairs, 'pair')}, {counted(len(board.results.seeds), 'seed')}. {board.caption}"]
    if board.reference:
        bar = (
            "Bar: 95 % interval, teachers, students and pairs drawn anew. "
            if any(np.isfinite(s.low) for s in standings)
            else ""
        )
        parts.append(
            f"Marker: mean gain. {bar}Grey tick: one pair (arrow: pairs beyond the axis). Win/tie/loss: pairs against "
            f"{board.reference_display}, a gain within ±{board.metric.tie_band:g} is a tie. Harmed: worse than from scratch. "
            "n.a.: no p below 0.05 is attainable with so few pairs. "
            "Without a number: not ranked (a baseline, or pairs are missing)."
        )
    return [line for part in (*parts, *teacher_notes(board.results)) for line in textwrap.wrap(part, 165)]
