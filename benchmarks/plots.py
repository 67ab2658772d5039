"""Pictures of what the benchmarks wrote, for ``docs/performance.md``.

python -m benchmarks.plots [--from results/benchmarks] [--to docs]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context

from benchmarks.sides import FOLDER
from kdbench.reporting.plots.style import COLORS, STYLE, figure_bytes, new_figure, tidy
from kdbench.store.files import write_output

BLUE, ORANGE, GREEN, GREY = COLORS["logits"], COLORS["hint"], COLORS["relation"], "#BBBBBB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what there is."""
    arguing = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguing.add_argument("--from", dest="source", type=Path, default=FOLDER)
    arguing.add_argument("--to", type=Path, default=Path("docs"))
    options = arguing.parse_args(arguments)
    for name, draw in (("targets", targets), ("methods", methods), ("scaling", scaling)):
        with rc_context(STYLE):
            figure = draw(options.source)
        if figure is not None:
            write_output(options.to / f"performance-{name}.png", figure_bytes(figure, "png"))
            print(options.to / f"performance-{name}.png")
    return 0


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """What a benchmark wrote, or None."""
    path = folder / f"{name}.json"
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return content


def targets(folder: Path) -> Any:
    """Every ratio that has a target, beside it."""
    rows: list[tuple[str, Any, float]] = []
    for name in ("cohort", "overhead", "methods", "peers"):
        found = load(folder, name)
        for finding in found["findings"] if found else ():
            if finding["target"] is not None:
                rows.append((finding["name"], finding["ratio"], finding["target"]))
    if not rows:
        return None
    figure = new_figure(0.42 * len(rows) + 0.7)
    axes = figure.add_subplot()
    for place, (_, ratio, target) in enumerate(rows):
        axes.barh(place, ratio["median"], height=0.55, color=BLUE if ratio["median"] <= target else ORANGE)
        axes.plot([ratio["low_quartile"], ratio["high_quartile"]], [place] * 2, color="black", linewidth=1.0)
        axes.plot([target] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.4, linestyle=(0, (2, 1)))
        axes.text(max(ratio["median"], target) + 0.02, place, f"{ratio['median']:.2f}, target {target:g}", va="center")
    axes.set_yticks(range(len(rows)), [name.replace(": ", ":\n") for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(ratio["median"], target) for _, ratio, target in rows) * 1.22)
    axes.set_xlabel("ratio of times (median; black: quartiles; dashed: target, less is better)")
    tidy(axes, "x")
    return figure


def methods(folder: Path) -> Any:
    """Time and memory of every method relative to scratch."""
    found = load(folder, "methods")
    if found is None:
        return None
    clock = found["clock"]
    names = [name for name in found["settings"]["methods"] if name != "scratch"]
    times = {name: np.asarray(found["seconds"][name][clock]) for name in (*names, "scratch")}
    ratios = {name: np.median(times[name] / times["scratch"]) for name in names}
    memory = found["settings"]["saved_bytes"]
    names.sort(key=lambda name: ratios[name])
    figure = new_figure(0.155 * len(names) + 0.7)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values, label, color in (
        (left, [ratios[name] for name in names], "time of a student's step / scratch", BLUE),
        (right, [memory[name] / memory["scratch"] for name in names], "memory of a step's graph / scratch", GREEN),
    ):
        axes.barh(range(len(names)), values, height=0.65, color=color)
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle=(0, (2, 1)))
        for place, value in enumerate(values):
            axes.text(value + 0.02 * max(values), place, f"{value:.2f}", va="center", fontsize=6)
        axes.set_xlim(0, max(values) * 1.12)
        axes.set_xlabel(label)
        tidy(axes, "x")
    left.set_yticks(range(len(names)), names)
    return figure


def scaling(folder: Path) -> Any:
    """Time against students, batch size and images; memory against students."""
    found = load(folder, "scaling")
    if found is None:
        return None
    clock = found["clock"]
    median = {name: float(np.median(timing[clock])) for name, timing in found["seconds"].items()}
    figure = new_figure(4.0)
    panels = figure.subplots(2, 2).ravel()

    def series(prefix: str, suffix: str = "") -> tuple[list[int], list[float]]:
        points = {
            int(name.removeprefix(prefix).removesuffix(suffix)): value
            for name, value in median.items()
            if name.startswith(prefix)
            and name.endswith(suffix)
            and name.removeprefix(prefix).removesuffix(suffix).isdigit()
        }
        return sorted(points), [points[key] for key in sorted(points)]

    students, times = series("students ")
    panels[0].plot(students, times, "o-", color=BLUE, label="a cohort's step")
    panels[0].plot(students, [count * times[0] for count in students], "--", color="black", label="one cell, K times")
    panels[0].set_xlabel("students in the cohort (K)")
    sizes, times = series("batch ")
    panels[1].plot(sizes, times, "o-", color=BLUE, label="a step of KD")
    panels[1].set_xlabel("images in a batch")
    for label, suffix, color, marker in (("KD", "", BLUE, "o"), ("CRD", ", crd", ORANGE, "s")):
        images, times = series("images ", suffix)
        panels[2].plot(images, times, marker + "-", color=color, label=label)
    panels[2].set_xscale("log")
    panels[2].minorticks_off()
    panels[2].set_xticks(images, [f"{count:,}" for count in images])
    panels[2].set_xlabel("images in the training set")
    held, graph = found["settings"]["state_bytes"], found["settings"]["graph_bytes"]
    counts = [int(name.split()[1]) for name in held]
    panels[3].bar(counts, [value / 1e6 for value in held.values()], color=BLUE, label="held between steps")
    panels[3].bar(
        counts, [value / 1e6 for value in graph.values()], bottom=[value / 1e6 for value in held.values()],
        color=GREY, hatch="///", label="graph of a step, at most",
    )  # fmt: skip
    panels[3].set_xlabel("students in the cohort (K)")
    for axes in panels[:3]:
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
    panels[3].set_ylabel("MB")
    panels[3].set_ylim(0, 1.35 * max(held[name] + graph[name] for name in held) / 1e6)  # room for the legend
    for axes in panels:
        axes.legend(frameon=False)
        tidy(axes)
    return figure


if __name__ == "__main__":
    sys.exit(main())
