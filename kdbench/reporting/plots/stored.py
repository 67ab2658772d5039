"""Plots that read the cells' own files: learning curves with a band over seeds, reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kdbench.reporting.frame import Results
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.plots.style import CURVES, WIDTH, legend_above, new_figure, panels_of, shorten
from kdbench.store.reading import Outcomes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_CURVES = len(CURVES)
MAX_FILES = 300
#: As in the expected calibration error that is measured: 15 bins of equal width.
BINS = 15


@dataclass(frozen=True)
class Curve:
    """A metric by epoch: mean over seeds, and the lowest and highest seed. Arrays of one length."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Reliability:
    """Per bin that holds images: mean probability, share right, share of images; and the error over all, in percent."""

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    error: float
    images: int


def shown_methods(board: Leaderboard, limit: int = MAX_CURVES) -> list[str]:
    """Scratch and the reference, then the best ranked."""
    names = [s.method for s in board.standings]
    first = [name for name in ("scratch", board.reference) if name in names]
    ranked = [s.method for s in board.standings if s.rank is not None and s.method not in first]
    others = [name for name in names if name not in first and name not in ranked]
    return list(dict.fromkeys([*first, *ranked, *others]))[:limit]


def learning_curves(results: Results, board: Leaderboard, outcomes: Outcomes) -> dict[str, dict[str, Curve]]:
    """Curves by pair and method, for the first ``MAX_PANELS`` pairs of the table that have any."""
    curves: dict[str, dict[str, Curve]] = {}
    for pair in results.pair_info:
        if len(curves) == MAX_PANELS:
            break
        found = {}
        for method in shown_methods(board):
            paths = results.paths.get((pair, method), {}).values()
            curve = _curve([outcomes.history(path) for path in paths], results.metric.name)
            if curve is not None:
                found[method] = curve
        if found:
            curves[pair] = found
    return curves


def curves_by_hours(results: Results, curves: dict[str, dict[str, Curve]]) -> dict[str, dict[str, Curve]]:
    """The curves against hours: a cell's share of its cohort's, mean over seeds, of which each epoch takes an equal part.

    Those of which no hours are known are left out.
    """
    done = results.cells[results.cells["value"].notna() & (results.cells["train_seconds"] > 0)]
    hours = (done.groupby(["pair", "method"])["train_seconds"].mean() / 3600).to_dict()
    timed = {
        pair: {
            name: replace(curve, epochs=curve.epochs * hours[pair, name] / curve.epochs.max())
            for name, curve in found.items()
            if (pair, name) in hours
        }
        for pair, found in curves.items()
    }
    return {pair: found for pair, found in timed.items() if found}


def curves_plot(results: Results, curves: dict[str, dict[str, Curve]], over: str = "epoch") -> Figure:
    """A panel per pair; mean over seeds as a line, lowest to highest seed as a band; ``over``: what the axis counts."""
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(curves))
    figure = new_figure(1.55 * -(-len(curves) // columns) + 0.5)
    title = results.metric.with_unit(results.metric.title)
    panels = panels_of(figure, len(curves), columns, over, title)
    methods = list(dict.fromkeys(name for found in curves.values() for name in found))
    styles = dict(zip(methods, CURVES, strict=False))
    for axes, (pair, found) in zip(panels, curves.items(), strict=True):
        for name, curve in found.items():
            color, dashes = styles[name]
            axes.plot(curve.epochs, curve.mean, color=color, linestyle=dashes, label=results.method_info[name]["title"])
            if curve.seeds > 1:
                axes.fill_between(curve.epochs, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        axes.set_title(shorten(str(results.pair_info[pair]["title"]), 32), pad=3)
        axes.set_ylim(*_curve_limits(found))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=over == "epoch"))
    by_label = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_above(
        figure, list(by_label.values()), 6, labels=[shorten(label) for label in by_label],
        handlelength=3.0, columnspacing=1.2, handletextpad=0.8,
    )  # fmt: skip
    return figure


def reliability(probability: np.ndarray, correct: np.ndarray) -> Reliability:
    """Bins of equal width of the predicted class's probability (Guo et al., arXiv:1706.04599).

    Args:
        probability: (N,) in [0, 1]; bin b holds (b / BINS, (b + 1) / BINS].
        correct: (N,) bool.
    """
    which = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(which, minlength=BINS)
    held = counts > 0
    confidence = np.bincount(which, probability, BINS)[held] / counts[held]
    accuracy = np.bincount(which, correct, BINS)[held] / counts[held]
    share = counts[held] / probability.size
    return Reliability(
        confidence, accuracy, share, float(100 * (share * np.abs(accuracy - confidence)).sum()), probability.size
    )


def calibrations(results: Results, board: Leaderboard, outcomes: Outcomes) -> dict[str, Reliability]:
    """Reliability of the shown methods, each over the same cells: pairs and seeds that all of them have.

    At most ``MAX_FILES`` files are read.
    """
    paths: dict[str, dict[tuple[str, int], str]] = {}
    for name in shown_methods(board):
        own = {(p, seed): path for (p, m), seeds in results.paths.items() if m == name for seed, path in seeds.items()}
        if own:
            paths[name] = own
    shared = sorted(set.intersection(*map(set, paths.values()))) if paths else []
    shared = shared[: MAX_FILES // max(len(paths), 1)]
    found = {}
    for name, own in paths.items():
        read = [outcomes.predictions(own[key]) for key in shared]
        kept = [predictions for predictions in read if predictions is not None]
        if kept and len(kept) == len(shared):
            found[name] = reliability(
                np.concatenate([p.probability for p in kept]), np.concatenate([p.correct for p in kept])
            )
    return found


def calibration_plot(results: Results, found: dict[str, Reliability]) -> Figure:
    """A panel per method: share right against probability. Below the diagonal is overconfident."""
    columns = min(len(found), 6)
    rows = -(-len(found) // columns)
    figure = new_figure((WIDTH / columns) * rows + 0.3 * rows + 0.1)
    panels = panels_of(figure, len(found), columns, "probability of the predicted class", "share right", share=True)
    for axes, (name, one) in zip(panels, found.items(), strict=True):
        axes.bar(one.confidence, one.share, width=0.8 / BINS, color="0.8", zorder=1, linewidth=0)
        axes.plot([0, 1], [0, 1], "-", color="0.45", linewidth=0.6, zorder=2)
        axes.plot(one.confidence, one.accuracy, "-", color=CURVES[1][0], linewidth=1.0, zorder=3)
        axes.scatter(one.confidence, one.accuracy, s=2 + 26 * one.share, color=CURVES[1][0], zorder=4, linewidth=0)
        axes.set_title(f"{shorten(str(results.method_info[name]['title']), 16)}\nECE {one.error:.1f} %", pad=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_xticklabels(["0", ".5", "1"])
    return figure


def _curve(histories: Sequence[dict[str, list[float]]], column: str) -> Curve | None:
    """Seeds are compared up to the shortest of them."""
    values = [history[column] for history in histories if column in history]
    epochs = [history["epoch"] for history in histories if "epoch" in history]
    if not values or len(values) != len(epochs):
        return None
    length = min(map(len, values))
    table = np.array([seed[:length] for seed in values], float)
    if not length or not np.isfinite(table).any(axis=0).all():
        return None
    mean, low, high = np.nanmean(table, axis=0), np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    return Curve(np.array(epochs[0][:length]), mean, low, high, len(table))


def _curve_limits(found: dict[str, Curve]) -> tuple[float, float]:
    """What the last three quarters of the epochs need: the first steps must not squeeze the end to a line."""
    late = np.concatenate(
        [np.concatenate([c.low[len(c.low) // 4 :], c.high[len(c.high) // 4 :]]) for c in found.values()]
    )
    low, high = float(np.nanpercentile(late, 3)), float(np.nanmax(late))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
