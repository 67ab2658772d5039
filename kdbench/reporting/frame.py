"""Checks a frame of results, one row per cell, and takes means over seeds: what tables and leaderboards start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.plugins.entry import FAMILIES as METHOD_FAMILIES
from kdbench.plugins.metrics import BUILT_IN, METRICS, Metric
from kdbench.store.result import Definition
from kdbench.suite.net import FAMILIES as NET_FAMILIES

REQUIRED = ("suite", "protocol", "pair", "teacher", "student", "method", "seed", "state")
STATES = ("done", "failed", "skipped", "planned", "running", "stale")
SELECTIONS = ("last", "best")
#: Metrics of which the frame holds the teacher's own value.
TEACHER_COLUMNS = {"top1": "teacher_top1", "top5": "teacher_top5"}

_TEXT_DEFAULTS = {
    "split": "test",
    **dict.fromkeys(
        ("teacher_family", "student_family", "method_family", "fidelity", "reason", "device", "commit"), ""
    ),
    **dict.fromkeys(
        ("finished", "config_hash", "dataset_title", "image_size", "hyperparameters", "path", "plugin_metrics"), ""
    ),
}
_NUMBERS = (
    *("teacher_top1", "teacher_top5", "epochs", "step_seconds", "extra_parameters", "student_parameters"),
    *("train_seconds", "peak_memory_bytes", "best_epoch"),
    *("student_gmacs", "inference_images_per_second", "inference_extra_parameters"),
)


@dataclass(frozen=True)
class Results:
    """Results of one suite, protocol, data set and split, ready for a table.

    Attributes:
        cells: one row per cell, checked, with a column ``value``: the figure asked for, NaN where there is none.
        scores: one row per (pair, method): mean, sd (n - 1 in the denominator), n, state, reason, and counts of states.
        methods: index method, in the order of columns; display, family, fidelity, title.
        pairs: index pair, in the order of rows; teacher, student, their displays and families, title, teacher_value.
        metrics: that the cells hold; ``metric`` the one asked for.
        superseded: number of older results of a cell that another result of the same cell replaces.
    """

    cells: pd.DataFrame
    scores: pd.DataFrame
    methods: pd.DataFrame
    pairs: pd.DataFrame
    metrics: dict[str, Metric]
    metric: Metric
    select: str
    superseded: int

    @cached_property
    def method_info(self) -> dict[str, dict[str, Any]]:
        """``methods`` as plain dictionaries, in the same order."""
        return _as_dicts(self.methods)

    @cached_property
    def pair_info(self) -> dict[str, dict[str, Any]]:
        """``pairs`` as plain dictionaries, in the same order."""
        return _as_dicts(self.pairs)

    @cached_property
    def score_info(self) -> dict[Any, dict[str, Any]]:
        """``scores`` as plain dictionaries, by (pair, method)."""
        return _as_dicts(self.scores)

    @cached_property
    def competing(self) -> list[str]:
        """Methods that are compared: neither baselines nor training from scratch."""
        return [name for name, row in self.method_info.items() if row["family"] != "baseline" and name != "scratch"]

    @property
    def empty(self) -> bool:
        """Whether there is no single figure to show."""
        return not (self.scores["n"] > 0).any()

    @property
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.cells.loc[self.cells["value"].notna(), "seed"].unique())

    def means(self) -> pd.DataFrame:
        """Means over seeds, pairs x methods, NaN where there is none."""
        wide = self.scores["mean"].unstack("method") if len(self.scores) else pd.DataFrame()
        return wide.reindex(index=self.pairs.index, columns=self.methods.index).astype(float)

    def reference(self, baseline: str = "kd") -> str:
        """The method that gains are counted from: ``baseline``, else ``scratch``, else none (an empty string)."""
        measured = set(self.scores.index[self.scores["n"] > 0].get_level_values("method"))
        return next((name for name in (baseline, "scratch") if name in measured), "")

    def identity(self) -> dict[str, str]:
        """Suite, protocol, data set and split, empty where there are no rows."""
        names = ("suite", "protocol", "dataset", "split")
        return {name: str(self.cells[name].iloc[0]) if len(self.cells) else "" for name in names}


def metrics_of(frame: pd.DataFrame) -> dict[str, Metric]:
    """The metrics that a frame holds, by name: the built-in ones, and those of plugins as its results define them."""
    found = {name: METRICS[name] for name in BUILT_IN}
    for text in frame["plugin_metrics"].unique() if "plugin_metrics" in frame else ():
        if isinstance(text, str) and text:
            found |= {name: Definition(**about).metric(name) for name, about in json.loads(text).items()}
    return found


def check_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with all columns, plain types, and infinite values as NaN. A frame without rows is valid.

    Raises:
        KdbenchError: for missing columns, an unknown state, or a metric that holds something else than numbers.
    """
    if len(frame) == 0 and len(frame.columns) == 0:
        frame = pd.DataFrame(columns=list(REQUIRED))
    missing = [name for name in REQUIRED if name not in frame]
    if missing:
        raise KdbenchError(f"the results lack the columns {', '.join(missing)}")
    checked = frame.reset_index(drop=True).copy()
    defaults = {**_TEXT_DEFAULTS, "dataset": checked["suite"], "teacher_display": checked["teacher"]}
    defaults |= {"student_display": checked["student"], "method_display": checked["method"]}
    for name, default in defaults.items():
        column = checked[name] if name in checked else pd.Series(np.nan, index=checked.index)
        column = column.astype(object)
        checked[name] = column.where(column.notna(), default).map(str)
    unknown = sorted(set(checked["state"].map(str)) - set(STATES))
    if unknown:
        raise UnknownNameError("state", unknown[0], STATES, "the results")
    metrics = metrics_of(checked)
    numbers = [*_NUMBERS, *metrics, *(f"best_{name}" for name in metrics)]
    lacking = [name for name in numbers if name not in checked]
    checked = pd.concat([checked, pd.DataFrame(np.nan, index=checked.index, columns=lacking)], axis=1)
    for name in numbers:
        try:
            column = pd.to_numeric(checked[name]).astype(float)
        except (TypeError, ValueError) as error:
            raise KdbenchError(f"the results' column {name} holds something else than numbers: {error}") from None
        checked[name] = column.replace([np.inf, -np.inf], np.nan)
    for name in ("dirty", "carries_kd"):
        flags = checked[name].astype(object) if name in checked else pd.Series(False, index=checked.index)
        checked[name] = flags.where(flags.notna(), False).astype(bool)
    return checked


def split_frame(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Split a frame into parts that may share a table: one suite, protocol, data set and split each.

    An empty frame gives itself, so that something can be said about it.
    """
    checked = check_frame(frame)
    parts = [part for _, part in checked.groupby(["suite", "protocol", "dataset", "split"], sort=True)]
    return parts or [checked]


def collect(frame: pd.DataFrame, metric: str = "top1", select: str = "last") -> Results:
    """Check the rows and take means over seeds.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        metric: a name of ``metrics_of(frame)``.
        select: ``"last"`` epoch, or ``"best"`` epoch on the evaluated split (an optimistic figure).

    Raises:
        KdbenchError: if the frame mixes suites, protocols, data sets or splits: those are never pooled.
    """
    cells = check_frame(frame)
    metrics = metrics_of(cells)
    if metric not in metrics:
        raise UnknownNameError("metric", metric, metrics)
    if select not in SELECTIONS:
        raise UnknownNameError("selection", select, SELECTIONS)
    for name in ("suite", "protocol", "dataset", "split"):
        found = sorted(cells[name].map(str).unique())
        if len(found) > 1:
            raise KdbenchError(
                f"the results hold more than one {name} ({', '.join(found)}); choose one, they are not pooled"
            )
    column = metric if select == "last" else f"best_{metric}"
    cells["value"] = cells[column].where(cells["state"] == "done")
    cells, superseded = _latest(cells)
    return Results(
        cells=cells,
        scores=_scores(cells),
        methods=_methods(cells),
        pairs=_pairs(cells, TEACHER_COLUMNS.get(metric)),
        metrics=metrics,
        metric=metrics[metric],
        select=select,
        superseded=superseded,
    )


def common_pairs(means: pd.DataFrame, methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (compared methods, the pairs that all of them have), from means (pairs x methods).

    A method is compared when it has at least half of the pairs that any of ``methods`` has, so that one that has just
    begun does not shrink the comparison to nothing.
    """
    has = means[list(methods)].notna()
    if has.size == 0:
        return [], []
    reached = has.any(axis=1).sum()
    counts = has.sum()
    compared = [name for name in methods if counts[name] and 2 * counts[name] >= reached]
    if not compared:
        return [], []
    return compared, list(has.index[has[compared].all(axis=1)])


def _as_dicts(table: pd.DataFrame) -> dict[Any, dict[str, Any]]:
    return {key: {str(name): value for name, value in row.items()} for key, row in table.to_dict("index").items()}


def _latest(cells: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Keep one row per cell: a done one before others, then the one that finished last."""
    identity = ["pair", "method", "seed"]
    if not cells.duplicated(identity).any():
        return cells, 0
    order = cells.assign(_done=cells["state"] == "done").sort_values([*identity, "_done", "finished", "config_hash"])
    kept = order.drop_duplicates(identity, keep="last").drop(columns="_done")
    return kept, int(order["_done"].sum() - (kept["state"] == "done").sum())


def _scores(cells: pd.DataFrame) -> pd.DataFrame:
    state = cells["state"]
    work = cells.assign(**{name: state == name for name in ("done", "failed", "skipped")}).sort_values("seed")
    grouped = work.groupby(["pair", "method"], sort=True)
    scores = grouped.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        n=("value", "count"),
        done=("done", "sum"),
        failed=("failed", "sum"),
        skipped=("skipped", "sum"),
        cells=("state", "size"),
    )
    for name in ("failed", "skipped"):
        reasons = work.loc[work[name] & (work["reason"] != "")].groupby(["pair", "method"])["reason"].first()
        scores[f"{name}_reason"] = reasons.reindex(scores.index).astype(object).fillna("")
    choices = [scores["n"] > 0, scores["done"] > 0, scores["failed"] > 0, scores["skipped"] > 0]
    scores["state"] = np.select(
        [c.to_numpy(bool) for c in choices], ["done", "unmeasured", "failed", "skipped"], "planned"
    )
    return scores


def _methods(cells: pd.DataFrame) -> pd.DataFrame:
    methods = cells.sort_values(["method", "method_display", "fidelity"]).groupby("method").first()
    methods = methods.rename(columns={"method_display": "display", "method_family": "family"})
    methods = methods[["display", "family", "fidelity"]]
    methods["title"] = _unique_titles(methods["display"])
    return methods.iloc[
        _order(
            _position(methods["family"], METHOD_FAMILIES),
            methods.index != "scratch",
            methods["family"],
            methods.index != "kd",
            methods["title"].str.lower(),
            methods.index,
        )
    ]


def _pairs(cells: pd.DataFrame, teacher_column: str | None) -> pd.DataFrame:
    names = ["teacher", "student", "teacher_display", "student_display", "teacher_family", "student_family"]
    pairs = cells.sort_values(["pair", *names]).groupby("pair")[names].first()
    pairs["title"] = _unique_titles(pairs["teacher_display"] + " → " + pairs["student_display"])
    if teacher_column:
        teacher = cells.groupby("pair")[teacher_column]
        pairs["teacher_value"] = teacher.mean().reindex(pairs.index)
        pairs["teacher_spread"] = (teacher.max() - teacher.min()).reindex(pairs.index)
    else:
        pairs["teacher_value"] = pairs["teacher_spread"] = np.nan
    return pairs.iloc[
        _order(
            _position(pairs["student_family"], NET_FAMILIES),
            pairs["student_family"],
            pairs["student_display"].str.lower(),
            pairs["teacher_display"].str.lower(),
            pairs.index,
        )
    ]


def _order(*keys: object) -> np.ndarray:
    """Positions that sort by the first key, then the second, and so on."""
    table = pd.DataFrame({f"key{i}": np.asarray(key) for i, key in enumerate(keys)})
    return table.sort_values(list(table.columns)).index.to_numpy()


def _position(column: pd.Series, order: Iterable[str]) -> pd.Series:
    places = {name: i for i, name in enumerate(order)}
    return column.map(places).fillna(len(places))


def _unique_titles(titles: pd.Series) -> pd.Series:
    """Add the index to titles that occur twice."""
    if not len(titles):
        return titles.astype(object)
    twice = titles.duplicated(keep=False)
    return titles.where(~twice, titles + " (" + titles.index.to_series().map(str) + ")")
