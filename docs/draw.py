"""Draw the pictures of design.md: ``python docs/draw.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

INK, GREY = "#222222", "#777777"
DATA, NET, CELL, FILE = "#dbe9f6", "#fde3c8", "#dff0d8", "#eeeeee"

Place = tuple[float, float]


def box(
    axes: Axes, place: Place, size: Place, title: str, text: str = "", colour: str = FILE, dashed: bool = False
) -> None:
    """A box with its lower left corner at ``place``: a title, and smaller lines below it."""
    axes.add_patch(
        FancyBboxPatch(
            place, *size, boxstyle="round,pad=0,rounding_size=0.08", facecolor=colour, edgecolor=INK, linewidth=0.8,
            linestyle="--" if dashed else "-",
        )
    )  # fmt: skip
    lines = text.count("\n") + 1 if text else 0
    x, y = place[0] + size[0] / 2, place[1] + size[1] / 2 + (0.03 + 0.072 * lines if lines else 0)
    axes.text(x, y, title, ha="center", va="center", fontsize=9, color=INK, weight="bold")
    axes.text(x, y - 0.11, text, ha="center", va="top", fontsize=7.5, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: Place, end: Place, label: str = "", shift: Place = (0, 0.1)) -> None:
    """An arrow with a label beside its middle."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    )
    x, y = (start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1]
    axes.text(x, y, label, ha="center", va="center", fontsize=7, color=GREY, style="italic")


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """Axes in inches, without frame."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def draw_batch() -> plt.Figure:
    """One batch, from its seed to the row of a history."""
    figure, axes = canvas(10, 5.0)
    box(
        axes,
        (0.2, 2.55),
        (1.75, 1.2),
        "Pipeline",
        "(seed, epoch, step)\n→ TrainingBatch:\nraw images in [0, 1],\nlabels, soft targets",
        DATA,
    )
    box(axes, (2.9, 3.75), (2.0, 0.95), "Frozen teacher", "its own mean, std, size;\neval mode, no gradient", NET)
    box(axes, (2.9, 1.7), (2.0, 0.95), "preprocess", "of each student; those that\npreprocess alike share it", DATA)
    arrow(axes, (1.95, 3.4), (2.9, 4.2), "once", (-0.2, 0.08))
    arrow(axes, (1.95, 2.9), (2.9, 2.2))
    axes.add_patch(
        FancyBboxPatch(
            (5.55, 0.5),
            2.75,
            4.25,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor="white",
            edgecolor=GREY,
            linestyle=":",
        )
    )
    axes.text(
        6.92, 4.6, "each living cell, on its own random stream", ha="center", fontsize=7.5, color=GREY, style="italic"
    )
    box(axes, (5.8, 3.45), (2.25, 0.9), "Distiller", "student(images) → taps\nmethod(batch, student, teacher)", CELL)
    box(axes, (5.8, 2.25), (2.25, 0.75), "loss terms", "summed, backward, clipped", CELL)
    box(axes, (5.8, 1.3), (2.25, 0.6), "optimizer", "lr of this step", CELL)
    box(axes, (5.8, 0.62), (2.25, 0.45), "Meters (on the device)", "", CELL)
    arrow(axes, (4.9, 4.2), (5.8, 4.05), "outputs", (-0.08, 0.14))
    arrow(axes, (4.9, 2.3), (5.8, 3.6), "images", (-0.22, 0.05))
    arrow(axes, (6.92, 3.45), (6.92, 3.0))
    arrow(axes, (6.92, 2.25), (6.92, 1.9))
    arrow(axes, (6.92, 1.3), (6.92, 1.07))
    box(axes, (8.75, 1.95), (1.1, 1.1), "Evaluation", "every n-th\nepoch:\nmetrics", NET)
    arrow(axes, (8.05, 0.85), (9.2, 1.95), "end of epoch", (0.35, -0.15))
    box(axes, (8.75, 3.6), (1.1, 0.75), "history", "a row", FILE)
    arrow(axes, (9.3, 3.05), (9.3, 3.6))
    box(axes, (2.9, 0.5), (2.0, 0.75), "Saver", "checkpoint of each cell\nat a Position (epoch, step)", FILE)
    arrow(axes, (5.55, 0.87), (4.9, 0.87), "if due", (0, 0.12))
    return figure


def draw_result() -> plt.Figure:
    """One result, from a history to what is read."""
    figure, axes = canvas(10, 3.6)
    box(axes, (0.2, 1.3), (1.5, 1.0), "CellTrainer", "trained to the end:\nhistory, logits,\nweights, cost", CELL)
    box(axes, (2.4, 1.3), (1.5, 1.0), "Result", "typed, validated,\nlast and best epoch,\nprovenance", DATA)
    arrow(axes, (1.7, 1.8), (2.4, 1.8), "keep", (0, 0.12))
    box(axes, (4.6, 0.95), (2.1, 1.7), "OUT/.../seedN-HASH/",
        "config.json\nresult.json (written once)\nhistory.csv\npredictions.npz\nstudent.safetensors\nlog.txt", FILE)  # fmt: skip
    arrow(axes, (3.9, 1.8), (4.6, 1.8), "claim\nconfirmed", (0, 0.22))
    box(axes, (7.2, 1.45), (1.0, 0.7), "rows", "of all cells", DATA)
    arrow(axes, (6.7, 1.8), (7.2, 1.8))
    for y, name in (
        (2.85, "table"),
        (2.3, "leaderboard"),
        (1.75, "plots"),
        (1.2, "report page"),
        (0.65, "load_results()"),
    ):
        box(axes, (8.75, y - 0.02), (1.15, 0.4), name, "", NET)
        arrow(axes, (8.2, 1.8), (8.75, y + 0.18))
    box(axes, (0.2, 2.75), (1.5, 0.6), "trackers", "--log, one run per cell", FILE, dashed=True)
    arrow(axes, (0.95, 2.3), (0.95, 2.75), "each row", (0.35, 0))
    box(axes, (0.2, 0.2), (1.5, 0.6), "events", "progress, kdbench status", FILE, dashed=True)
    arrow(axes, (0.95, 1.3), (0.95, 0.8), "each step", (0.37, 0))
    return figure


if __name__ == "__main__":
    for name, drawn in (("batch", draw_batch()), ("result", draw_result())):
        drawn.savefig(Path(__file__).with_name(f"design-{name}.png"), dpi=150)
