"""How every plot looks: sizes of a paper's columns, fonts, colours, markers; labels beside points; writing files.

Colour is never the only sign: families differ in marker, curves in dash, the heat map prints its numbers.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import KdbenchError
from kdbench.reporting.plots.picture import MARKERS, SUFFIXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: one column of a two-column paper, and both.
WIDTHS = {"column": 3.3, "full": 7.0}
FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)

# Okabe and Ito's colours, which stay apart in the common kinds of colour blindness, darkened where needed on white.
COLORS = {"logits": "#0072B2", "hint": "#D55E00", "relation": "#007A5A", "hybrid": "#A3457A", "baseline": "#333333"}
CURVES: tuple[tuple[str, Any], ...] = (
    ("#333333", (0, (1, 1.2))),
    ("#0072B2", "-"),
    ("#D55E00", (0, (5, 1.5))),
    ("#007A5A", (0, (5, 1.2, 1, 1.2))),
    ("#A3457A", (0, (2.5, 1.2))),
    ("#8F6B00", (0, (7, 1.2, 1, 1.2, 1, 1.2))),
)

#: Any: the keys are a literal type of matplotlib.
STYLE: Any = {
    "font.family": "DejaVu Sans",
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
    "svg.hashsalt": "kdbench",
    "pdf.fonttype": 42,
    # Names of methods and nets may hold dollar signs, which are no mathematics.
    "text.parse_math": False,
}


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that belongs to no window and no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    FigureCanvasAgg(figure)
    return figure


def figure_bytes(figure: Figure, format: str, text_as_paths: bool = False) -> bytes:
    """The figure as ``png``, ``svg`` or ``pdf``; the same figure gives the same bytes.

    Args:
        text_as_paths: for SVG: draw letters as shapes, so that it looks the same without the font.

    Raises:
        KdbenchError: for another format.
    """
    import matplotlib

    if format not in FORMATS:
        raise KdbenchError(f"format {format!r} of plots: expected {', '.join(FORMATS)}")
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path" if text_as_paths else "none"}):
        figure.savefig(buffer, format=format, dpi=300, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def write_file(target: Path, content: bytes) -> None:
    """Write a picture; the folder is made.

    Raises:
        KdbenchError: in one line, if that is not possible.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise KdbenchError(f"{target} cannot be written ({error.strerror})") from None


def tidy(axes: Axes, grid: str = "both") -> None:
    """No frame above and right, a light grid behind."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.5, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def shortened(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_point(axes: Axes, x: float, y: float, family: str, hollow: bool, size: float = 5.0, **more: Any) -> None:
    """A method: marker and colour by family, white inside for a reconstruction."""
    color = COLORS.get(family, "#555555")
    axes.plot(
        x, y, MARKERS.get(family, "P"), color=color, markerfacecolor="white" if hollow else color, markersize=size,
        markeredgewidth=1.0, linestyle="none", **{"zorder": 4, **more},
    )  # fmt: skip


def family_handles(families: Sequence[str], hollow: bool) -> list[Any]:
    """Legend entries for the families that occur."""
    from matplotlib.lines import Line2D

    def handle(family: str, face: str, label: str) -> Any:
        color = COLORS.get(family, "#555555")
        marker = MARKERS.get(family, "P")
        return Line2D(
            [],
            [],
            color=color,
            marker=marker,
            markerfacecolor=face or color,
            linestyle="none",
            markersize=4.5,
            label=label,
        )

    known = [*MARKERS, *sorted(set(families) - set(MARKERS))]
    handles = [handle(f, "", f or "other") for f in known if f in families]
    return [*handles, handle("hybrid", "white", "reconstruction")] if hollow else handles


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], size: float = 6.0, most: int = 40
) -> int:
    """Write names beside points where they cover neither a point nor another name; the first names have first choice.

    Args:
        points, names: of one length, the most important first.
        size: of the type, in points.
        most: of more than so many, the rest is not named.

    Returns:
        How many found no place and are not written.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()  # so that positions on the page are known
    figure.set_layout_engine("none")  # a label must not move what it was placed beside
    per_point = figure.dpi / 72
    dots = axes.transData.transform(np.asarray(points, float).reshape(-1, 2))
    frame = axes.get_window_extent()
    taken = [(x - 3 * per_point, y - 3 * per_point, x + 3 * per_point, y + 3 * per_point) for x, y in dots]
    left_out = max(0, len(names) - most)
    halo = [withStroke(linewidth=1.6, foreground="white")]  # lines may pass behind a name
    for (x, y), (dot_x, dot_y), name in list(zip(points, dots, names, strict=True))[:most]:
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, va="center", ha="left", zorder=6,
            path_effects=halo,
        )  # fmt: skip
        extent = text.get_window_extent()
        width, height = extent.width, extent.height * 0.8
        for radius, angle in itertools.product((6, 11, 18, 27), (0, 180, 45, -45, 135, -135, 90, -90)):
            direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            anchor = np.array([dot_x, dot_y]) + direction * radius * per_point
            left = anchor[0] - (width if direction[0] < -0.1 else 0 if direction[0] > 0.1 else width / 2)
            box = (left, anchor[1] - height / 2, left + width, anchor[1] + height / 2)
            inside = box[0] >= frame.x0 and box[2] <= frame.x1 and box[1] >= frame.y0 and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                text.set_position(((left - dot_x) / per_point, (anchor[1] - dot_y) / per_point))
                if radius > 6:
                    near = (np.clip(dot_x, box[0], box[2]), np.clip(dot_y, box[1], box[3]))
                    ends = axes.transData.inverted().transform([(dot_x, dot_y), near])
                    axes.plot(ends[:, 0], ends[:, 1], "-", color="0.6", linewidth=0.4, zorder=2)
                taken.append(box)
                break
        else:
            text.remove()
            left_out += 1
    return left_out


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
