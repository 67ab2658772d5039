"""How every plot looks: sizes of a paper's columns, fonts, colours, markers; labels beside points; writing files.

Colour is never the only sign: families differ in marker, curves in dash, the heat map prints its numbers.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import UnknownNameError
from kdbench.shown import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Inches: both columns of a two-column paper.
WIDTH = 7.0
FORMATS = ("png", "svg", "pdf")
#: Points of a plot that are named beside them; more are numbered.
MAX_NAMES = 16

# Okabe and Ito's colours, which stay apart in the common kinds of colour blindness, darkened where needed on white.
COLORS = {"logits": "#0072B2", "hint": "#D55E00", "relation": "#007A5A", "hybrid": "#A3457A", "baseline": "#333333"}
MARKERS = {"logits": "o", "hint": "s", "relation": "^", "hybrid": "D", "baseline": "X"}
CURVES: tuple[tuple[str, Any], ...] = (
    ("#333333", (0, (1, 1.2))),
    ("#0072B2", "-"),
    ("#D55E00", (0, (5, 1.5))),
    ("#007A5A", (0, (5, 1.2, 1, 1.2))),
    ("#A3457A", (0, (2.5, 1.2))),
    ("#8F6B00", (0, (7, 1.2, 1, 1.2, 1, 1.2))),
)

#: Any: the keys are a literal type of matplotlib.
BASE_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "kdbench",
    # Names of methods and nets may hold dollar signs, which are no mathematics.
    "text.parse_math": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}
STYLE: Any = {
    **BASE_STYLE,
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
}


def drawn_in(style: Any = STYLE) -> Any:
    """A context for drawing: matplotlib's defaults and ``style``, whatever a ``matplotlibrc`` of the current folder says.

    One from a folder that was received could have LaTeX run.
    """
    from matplotlib import style as styles

    return styles.context(["default", style])


def new_figure(height: float) -> Figure:
    """A figure of ``WIDTH`` by ``height`` inches that belongs to no window and no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    FigureCanvasAgg(figure)
    return figure


def figure_bytes(figure: Figure, format: str, text_as_paths: bool = False, style: Any = STYLE, dpi: int = 300) -> bytes:
    """The figure as one of ``FORMATS``; the same figure gives the same bytes.

    Args:
        text_as_paths: for SVG: draw letters as shapes, so that it looks the same without the font.
        style: that it was drawn in.
        dpi: of PNG.

    Raises:
        UnknownNameError: for another format.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS, "plots")
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    buffer = io.BytesIO()
    with drawn_in({**style, "svg.fonttype": "path" if text_as_paths else "none"}):
        figure.savefig(buffer, format=format, dpi=dpi, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def tidy(axes: Axes, grid: str = "both") -> None:
    """No frame above and right, a light grid behind."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.5, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def shorten(name: str, width: int = 22) -> str:
    """A name as a plot shows it."""
    return printable(name, width)


def panels_of(figure: Figure, count: int, columns: int, xlabel: str, ylabel: str, share: bool = False) -> list[Axes]:
    """``count`` tidy panels in rows of ``columns``; the two labels stand once, beside all of them."""
    rows = -(-count // columns)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flatten().tolist()
    for axes in panels[:count]:
        tidy(axes)
    for axes in panels[count:]:
        axes.axis("off")
    figure.supxlabel(xlabel, fontsize=7)
    figure.supylabel(ylabel, fontsize=7)
    return list(panels[:count])


def legend_above(figure: Figure, handles: Sequence[Any], columns: int, **more: Any) -> None:
    """A legend over the whole figure."""
    spacing = {"handletextpad": 0.1, "columnspacing": 0.9, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, **{**spacing, **more})


def draw_point(axes: Axes, x: float, y: float, family: str, hollow: bool, size: float = 5.0, **more: Any) -> None:
    """A method: marker and colour by family, white inside for a reconstruction."""
    color = COLORS.get(family, "#555555")
    axes.plot(
        x, y, MARKERS.get(family, "P"), color=color, markerfacecolor="white" if hollow else color, markersize=size,
        markeredgewidth=1.0, linestyle="none", **{"zorder": 4, **more},
    )  # fmt: skip


def legend_handle(marker: str, face: str, label: str, color: str = "black", size: float = 4.5) -> Line2D:
    """A marker for a legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=color, marker=marker, markerfacecolor=face, linestyle="none", markersize=size, label=label
    )


def family_handles(families: Sequence[str], hollow: bool) -> list[Line2D]:
    """Legend entries for the families that occur, and for reconstructions where some are ``hollow``."""
    known = [f for f in [*MARKERS, *sorted(set(families) - set(MARKERS))] if f in families]
    entries = [(family, COLORS.get(family, "#555555"), family or "other") for family in known]
    entries += [("hybrid", "white", "reconstruction")] if hollow else []
    return [
        legend_handle(MARKERS.get(family, "P"), face, label, COLORS.get(family, "#555555"))
        for family, face, label in entries
    ]


def name_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], line: Sequence[tuple[float, float]] = ()
) -> None:
    """Write names beside points, so that they cover neither points nor each other where there is room; or numbers, named below.

    Args:
        points, names: of one length.
        line: corners of a line that no name may cover.
    """
    from adjustText import adjust_text
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    if len(names) > MAX_NAMES:
        numbers = [str(number) for number in range(1, len(names) + 1)]
        entries = [legend_handle("", "none", f"{number}  {name}") for number, name in zip(numbers, names, strict=True)]
        columns = 4
        figure.set_figheight(figure.get_figheight() + 0.13 * -(-len(names) // columns))
        figure.legend(
            handles=entries, loc="outside lower left", ncols=columns, frameon=False, fontsize=6.0, handlelength=0,
            handletextpad=0, columnspacing=1.0, labelspacing=0.2,
        )  # fmt: skip
        names = numbers
    figure.canvas.draw()  # so that positions on the page are known
    figure.set_layout_engine("none")  # a label must not move what it was placed beside
    halo = [withStroke(linewidth=1.6, foreground="white")]  # lines may pass behind a name
    texts = [
        axes.text(x, y, name, fontsize=6.0, ha="center", va="center", zorder=6, path_effects=halo)
        for (x, y), name in zip(points, names, strict=True)
    ]
    # Dots are taken for points without extent: corners of each stand for it.
    around = np.array([(i, j) for i in (-3, 0, 3) for j in (-3, 0, 3)]) * figure.dpi / 72
    dots = (axes.transData.transform(points)[:, None] + around).reshape(-1, 2)
    corners = axes.transData.transform(line) if len(line) else np.empty((0, 2))
    along = [np.linspace(a, b, 2 + int(np.abs(b - a).max() / 6)) for a, b in itertools.pairwise(corners)]
    x, y = axes.transData.inverted().transform(np.concatenate([dots, *along])).T
    adjust_text(
        texts, x, y, ax=axes, expand=(1.05, 1.3), force_static=(0.3, 0.5), iter_lim=100,
        arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.4, "zorder": 2},
    )  # fmt: skip
