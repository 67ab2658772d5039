"""Checks a frame of results, one row per cell, and takes means over seeds: what tables and leaderboards start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError, UnknownNameError

REQUIRED = ("suite", "protocol", "pair", "teacher", "student", "method", "seed", "state")
STATES = ("done", "failed", "skipped", "planned", "running", "stale")
SELECTIONS = ("last", "best")
METHOD_FAMILIES = ("baseline", "logits", "hint", "relation", "hybrid")
NET_FAMILIES = ("cnn", "vit", "mlp")
NET_FAMILY_TITLES = {"cnn": "CNN", "vit": "ViT", "mlp": "MLP"}

_TEXT_DEFAULTS = {
    "split": "test",
    "teacher_family": "",
    "student_family": "",
    "method_family": "",
    "fidelity": "",
    "reason": "",
    "device": "",
    "commit": "",
    "finished": "",
    "config_hash": "",
    "dataset_title": "",
    "hyperparameters": "",
    "path": "",
}
_NUMBERS = (
    *("teacher_top1", "teacher_top5", "epochs", "step_seconds", "extra_parameters", "student_parameters"),
    *("train_seconds", "peak_memory_bytes"),
    *("student_gmacs", "inference_images_per_second", "inference_extra_parameters"),
)


@dataclass(frozen=True)
class Metric:
    """A measured quantity: ``decimals`` are those printed, ``tie_band`` is what counts as equal, in its unit."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    decimals: int
    tie_band: float
    teacher_column: str | None = None

    @property
    def sign(self) -> int:
        """+1 or -1: a difference times this is positive when it is an improvement."""
        return 1 if self.higher_is_better else -1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "Top-1 accuracy", "%", True, 1, 0.2, "teacher_top1"),
        Metric("top5", "Top-5 accuracy", "%", True, 1, 0.2, "teacher_top5"),
        Metric("nll", "Negative log-likelihood", "nats", False, 3, 0.01),
        Metric("ece", "Expected calibration error", "%", False, 1, 0.2),
        Metric("agreement", "Agreement with the teacher", "%", True, 1, 0.2),
        Metric("teacher_kl", "KL divergence from the teacher", "nats", False, 3, 0.01),
    )
}


@dataclass(frozen=True)
class Results:
    """Results of one suite, protocol, data set and split, ready for a table.

    Attributes:
        cells: one row per cell, checked, with a column ``value``: the figure asked for, NaN where there is none.
        scores: one row per (pair, method): mean, sd (n - 1 in the denominator), n, state, reason, and counts of states.
        methods: index method, in the order of columns; display, family, fidelity, title.
        pairs: index pair, in the order of rows; teacher, student, their displays and families, title, teacher_value.
        superseded: number of older results of a cell that another result of the same cell replaces.
    """

    cells: pd.DataFrame
    scores: pd.DataFrame
    methods: pd.DataFrame
    pairs: pd.DataFrame
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

    def identity(self) -> dict[str, str]:
        """Suite, protocol, data set and split, empty where there are no rows."""
        names = ("suite", "protocol", "dataset", "split")
        return {name: str(self.cells[name].iloc[0]) if len(self.cells) else "" for name in names}


def metric_named(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        UnknownNameError: with the nearest valid name.
    """
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


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
    numbers = [*_NUMBERS, *METRICS, *(f"best_{name}" for name in METRICS)]
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
        metric: a name of ``METRICS``.
        select: ``"last"`` epoch, or ``"best"`` epoch on the evaluated split (an optimistic figure).

    Raises:
        KdbenchError: if the frame mixes suites, protocols, data sets or splits: those are never pooled.
    """
    chosen = metric_named(metric)
    if select not in SELECTIONS:
        raise UnknownNameError("selection", select, SELECTIONS)
    cells = check_frame(frame)
    for name in ("suite", "protocol", "dataset", "split"):
        found = sorted(cells[name].map(str).unique())
        if len(found) > 1:
            raise KdbenchError(
                f"the results hold more than one {name} ({', '.join(found)}); choose one, they are not pooled"
            )
    column = metric if select == "last" else f"best_{metric}"
    cells["value"] = cells[column].where(cells["state"] == "done")
    cells, superseded = _latest(cells)
    pairs = _pairs(cells, chosen)
    return Results(
        cells=cells,
        scores=_scores(cells),
        methods=_methods(cells),
        pairs=pairs,
        metric=chosen,
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


def _pairs(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    names = ["teacher", "student", "teacher_display", "student_display", "teacher_family", "student_family"]
    pairs = cells.sort_values(["pair", *names]).groupby("pair")[names].first()
    pairs["title"] = _unique_titles(pairs["teacher_display"] + " → " + pairs["student_display"])
    if metric.teacher_column:
        teacher = cells.groupby("pair")[metric.teacher_column]
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


def _position(column: pd.Series, order: Sequence[str]) -> pd.Series:
    return column.map({name: i for i, name in enumerate(order)}).fillna(len(order))


def _unique_titles(titles: pd.Series) -> pd.Series:
    """Add the index to titles that occur twice."""
    if not len(titles):
        return titles.astype(object)
    twice = titles.duplicated(keep=False)
    return titles.where(~twice, titles + " (" + titles.index.to_series().map(str) + ")")
