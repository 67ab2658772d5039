"""Accuracy by class and by superclass, from stored predictions: which classes a method gains, and which it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import counted
from kdbench.reporting.caption import (
    RECONSTRUCTION_NOTE,
    build_caption,
    data_notes,
    join_names,
    label_of,
    nothing_text,
    results_hash,
)
from kdbench.reporting.frame import Results, collect, common_pairs
from kdbench.reporting.grid import Cell, Header, Note, Table, mark_best
from kdbench.store.classnames import ClassNames, read_classes
from kdbench.store.reading import Outcomes

_RECORD_COLUMNS = [
    *("suite", "protocol", "dataset", "split", "by", "name", "superclass", "images", "pair", "method"),
    *("accuracy", "sd", "n", "gain", "reference"),
]


@dataclass(frozen=True)
class ClassScores:
    """Accuracy by class, in percent, last epoch: means over seeds, then over pairs.

    Attributes:
        by: ``"class"`` or ``"superclass"``.
        names, above, images: of each of the k classes that have images: name, name of its superclass ("" if there is none
            or the classes are superclasses), number of images.
        methods: of the columns, in the order of tables.
        accuracy: (k, methods).
        pairs: pairs over which each method's mean is; ``wanted`` the number that the compared methods share.
        per_pair: (pair, method) -> seed -> (k,).
        reference: the method that gains are counted from, "" if there is none.
        message: why there is nothing, else "".
    """

    by: str
    names: tuple[str, ...] = ()
    above: tuple[str, ...] = ()
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    methods: tuple[str, ...] = ()
    accuracy: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    pairs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wanted: int = 0
    per_pair: Mapping[tuple[str, str], Mapping[int, np.ndarray]] = field(default_factory=dict)
    reference: str = ""
    message: str = ""
    left_out: int = 0

    def gains(self) -> np.ndarray:
        """(k, methods): accuracy minus the reference's over the pairs that both have, in points; NaN without a reference."""
        gains = np.full(self.accuracy.shape, np.nan)
        for j, name in enumerate(self.methods):
            known = [gain for pair in self.pairs[name] if (gain := self.gain(pair, name)) is not None]
            if known:
                gains[:, j] = np.mean(known, axis=0)
        return gains

    def gain(self, pair: str, method: str) -> np.ndarray | None:
        """(k,): over the reference on one pair, over the seeds that both have; None where there is none."""
        own, base = self.per_pair[pair, method], self.per_pair.get((pair, self.reference), {})
        shared = [own[seed] - base[seed] for seed in own if seed in base]
        return np.mean(shared, axis=0) if shared else None


def class_scores(results: Results, outcomes: Outcomes, by: str = "class") -> ClassScores:
    """Read predictions and count by class.

    All cells of a suite, protocol and split are measured on the same images in the same order. A cell that was measured on others
    is left out, and counted.

    Args:
        results: of one suite, protocol, data set and split.
        outcomes: what its cells have right.
        by: ``"class"`` or ``"superclass"``.
    """
    done = results.cells[results.cells["state"] == "done"].sort_values(["pair", "method", "seed"])
    read = {path: outcomes.correct(path) for path in done["path"]}
    labels = next((own for path in read if (own := outcomes.labels(path)) is not None), None)
    if results.empty:
        return ClassScores(by, message=nothing_text(results))
    if labels is None:
        return ClassScores(by, message="No accuracy by class: no finished cell has predictions that can be read.")
    names = read_classes(outcomes.root, results.identity()["dataset"])
    if by == "superclass" and (names is None or names.coarse is None):
        return ClassScores(by, message=f"No superclasses are known of the data set {results.identity()['dataset']}.")
    titles, above, group = grouping(names, labels, by)
    images = np.bincount(group, minlength=len(titles))
    held = images > 0
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    left_out = 0
    for pair, method, seed, path in zip(done["pair"], done["method"], done["seed"], done["path"], strict=True):
        right = read[path]
        if right is None:
            continue
        if outcomes.labels(path) is not labels:
            left_out += 1
            continue
        share = np.bincount(group, right, minlength=len(titles))[held] / images[held]
        found.setdefault((pair, method), {})[int(seed)] = 100 * share
    methods = [name for name in results.method_info if any(key[1] == name for key in found)]
    have = pd.DataFrame(np.nan, index=list(results.pair_info), columns=methods)
    for pair, method in found:
        have.loc[pair, method] = 1.0
    _, common = common_pairs(have, [name for name in methods if name in results.competing] or methods)
    pairs = {}
    for name in methods:
        there = [pair for pair in results.pair_info if (pair, name) in found]
        pairs[name] = tuple(common if common and set(common) <= set(there) else there)
    means = [
        np.mean([np.mean([*found[pair, name].values()], axis=0) for pair in pairs[name]], axis=0) for name in methods
    ]
    return ClassScores(
        by=by,
        names=tuple(title for title, is_held in zip(titles, held, strict=True) if is_held),
        above=tuple(title for title, is_held in zip(above, held, strict=True) if is_held),
        images=images[held],
        methods=tuple(methods),
        accuracy=np.stack(means, axis=1),
        pairs=pairs,
        wanted=len(common),
        per_pair=found,
        reference=next((name for name in ("kd", "scratch") if name in methods), ""),
        left_out=left_out,
    )


def build_class_table(
    frame: pd.DataFrame,
    store: Path | str,
    by: str = "class",
    show: str = "accuracy",
    worst: int | None = None,
    *,
    command: str = "",
    damaged: list[str] | None = None,
) -> Table:
    """The table of one suite and protocol: a row per class, a column per method.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        store: the run directory.
        by: ``"class"`` or ``"superclass"``.
        show: ``"accuracy"`` in percent, or ``"gain"`` over the reference in points (whose column stays an accuracy).
        worst: only so many classes, the lowest first: by mean accuracy over the methods, or by mean gain.
        command: the command line that made it, for its comment.
        damaged: receives ``FILE: reason`` of predictions that cannot be read.
    """
    results = collect(frame)
    scores = class_scores(results, Outcomes(store, damaged), by)
    shared: dict[str, Any] = {
        "command": command,
        "results_hash": results_hash(results),
        "label": label_of(results, "by", by),
        "records": _records(results, scores),
    }
    if scores.message:
        return Table(message=scores.message, **shared)
    if show == "gain" and not scores.reference:
        return Table(message="No gains by class: neither KD nor scratch has stored predictions.", **shared)
    figures = scores.accuracy if show == "accuracy" else scores.gains()
    if worst is None:  # by superclass
        above = list(dict.fromkeys(scores.above))
        rows = sorted(range(len(scores.names)), key=lambda i: above.index(scores.above[i]))
    else:
        rows = lowest(results, scores, figures)[:worst]
    columns = [Header("images", "text")]
    competing = []
    for name in scores.methods:
        info = results.method_info[name]
        competes = name in results.competing
        competing.append(competes and len(scores.pairs[name]) == scores.wanted)
        kind, family = ("method", info["family"]) if competes else ("baseline", "baseline")
        title = info["title"] + (" (%)" if show == "gain" and name == scores.reference else "")
        columns.append(Header(title, kind, family, info["fidelity"] == "reconstruction"))
    cells, headers = [], []
    for i in rows:
        grouped = scores.above[i] if worst is None else ""
        aside = f" ({scores.above[i]})" if worst is not None and scores.above[i] else ""
        headers.append(Header(scores.names[i] + aside, "pair", grouped))
        line = [_figure(scores, figures[i, j], scores.accuracy[i, j], j, show) for j in range(len(scores.methods))]
        kind = "gain" if any(cell.kind == "gain" for cell in line) else "value"
        ranked = [competes and cell.kind == kind for competes, cell in zip(competing, line, strict=True)]
        cells.append((Cell("value", float(scores.images[i]), decimals=0), *mark_best(line, ranked)))
    for title, summary in _summaries(scores, figures, show, results.metric.tie_band):
        headers.append(Header(title, "summary", "summary"))
        cells.append((Cell("empty"), *summary))
    what = f"by {by}" + (f", {len(rows)} lowest of {len(scores.names)}" if worst is not None else "")
    figure = "" if show == "accuracy" else f", gain over {_title(results, scores.reference)} in points"
    return Table(
        corner=by,
        rows=tuple(headers),
        columns=tuple(columns),
        cells=tuple(cells),
        caption=f"Shown {what}{figure}. {build_caption(results)}",
        notes=tuple(Note("", text) for text in class_notes(results, scores)),
        ranked=any(cell.best for line in cells for cell in line),
        **shared,
    )


def class_notes(results: Results, scores: ClassScores) -> list[str]:
    """What must be said under accuracies by class."""
    low, high = int(scores.images.min()), int(scores.images.max())
    many = f"{low}" if low == high else f"{low} to {high}"
    notes = [
        f"Means over seeds, then over {counted(scores.wanted, 'pair')}, last epoch; an average weighs every {scores.by} alike.",
        f"A {scores.by} has {many} images: by chance alone the accuracy of one network near 50 % has a standard error of "
        f"{50 / np.sqrt(low):.1f} points, and with {len(scores.names)} of them the extremes are extreme by chance too.",
    ]
    fewer = [
        f"{_title(results, name)} ({len(scores.pairs[name])} of {scores.wanted})"
        for name in scores.methods
        if len(scores.pairs[name]) != scores.wanted
    ]
    if fewer:
        notes.append(f"Over other pairs than the rest, and not ranked: {join_names(fewer)}.")
    if scores.left_out:
        notes.append(f"{scores.left_out} cells were measured on other images and are left out.")
    if any(results.method_info[name]["fidelity"] == "reconstruction" for name in scores.methods):
        notes.append(RECONSTRUCTION_NOTE)
    return notes + data_notes(results)


def grouping(names: ClassNames | None, labels: np.ndarray, by: str) -> tuple[list[str], list[str], np.ndarray]:
    """Titles, their superclasses, and the position of each image's class among them."""
    count = int(labels.max()) + 1
    titles = list(names.class_names) if names else []
    titles += [str(number) for number in range(len(titles), count)]
    coarse, coarse_names = (names.coarse, names.coarse_names) if names else (None, None)
    if coarse is None or coarse_names is None or len(coarse) < count:
        return titles, [""] * len(titles), labels
    if by == "superclass":
        return list(coarse_names), [""] * len(coarse_names), np.array(coarse)[labels]
    return titles, [coarse_names[number] for number in coarse], labels


def lowest(results: Results, scores: ClassScores, figures: np.ndarray) -> list[int]:
    """Positions of the classes by their mean over the compared methods, lowest first."""
    compared = [j for j, name in enumerate(scores.methods) if name in results.competing and name != scores.reference]
    means = np.nanmean(figures[:, compared or slice(None)], axis=1)
    return [int(i) for i in np.argsort(means, kind="stable")]


def _figure(scores: ClassScores, value: float, accuracy: float, column: int, show: str) -> Cell:
    name = scores.methods[column]
    if show == "gain" and name != scores.reference:
        return Cell("gain", float(value), decimals=1) if np.isfinite(value) else Cell("absent")
    return Cell("value", float(accuracy), decimals=1)


def _summaries(scores: ClassScores, figures: np.ndarray, show: str, band: float) -> list[tuple[str, list[Cell]]]:
    def line(values: np.ndarray) -> list[Cell]:
        means = scores.accuracy.mean(axis=0)
        return [
            _figure(scores, float(v), float(a), j, show) for j, (v, a) in enumerate(zip(values, means, strict=True))
        ]

    rows = [("average", line(figures.mean(axis=0)))]
    if show == "accuracy":
        lowest_of = scores.accuracy.min(axis=0)
        rows.append(("lowest", [Cell("value", float(v), decimals=1) for v in lowest_of]))
        return rows
    known = [name != scores.reference and np.isfinite(figures[:, j]).all() for j, name in enumerate(scores.methods)]

    def where_known(cells: Sequence[Cell]) -> list[Cell]:
        return [cell if is_known else Cell("empty") for cell, is_known in zip(cells, known, strict=True)]

    for title, values in {"largest loss": figures.min(axis=0), "largest gain": figures.max(axis=0)}.items():
        rows.append((title, where_known([Cell("gain", float(value)) for value in values])))
    worse = [Cell("count", coverage=(int(k), len(scores.names))) for k in (figures < -band).sum(axis=0)]
    return [*rows, (f"worse by more than {band:g}", where_known(worse))]


def _records(results: Results, scores: ClassScores) -> pd.DataFrame:
    """One row per class, pair and method, plain numbers."""
    parts = []
    for (pair, method), of_seeds in scores.per_pair.items():
        seeds = np.stack([*of_seeds.values()])
        gain = scores.gain(pair, method)
        parts.append(
            pd.DataFrame(
                {
                    "name": scores.names, "superclass": scores.above, "images": scores.images, "pair": pair,
                    "method": method, "accuracy": seeds.mean(axis=0),
                    "sd": seeds.std(axis=0, ddof=1) if len(seeds) > 1 else np.nan, "n": len(seeds),
                    "gain": np.nan if gain is None else gain,
                }
            )
        )  # fmt: skip
    if not parts:
        return pd.DataFrame(columns=_RECORD_COLUMNS)
    tidy = pd.concat(parts, ignore_index=True)
    return tidy.assign(**results.identity(), by=scores.by, reference=scores.reference)[_RECORD_COLUMNS]


def _title(results: Results, name: str) -> str:
    return str(results.method_info[name]["title"])
