"""Means over seeds of a frame of results, one row per cell: what tables and leaderboards start from."""

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
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable, without_homes
from kdbench.store.declared import Hypothesis, of_text
from kdbench.store.result import Definition
from kdbench.store.rows import ABSENT, COLUMNS, NUMBERS
from kdbench.suite.net import FAMILIES as NET_FAMILIES

#: What the rows of one table have in common.
IDENTITY = ["suite", "protocol", "dataset", "split"]
#: Metrics of which the frame holds the teacher's own value.
TEACHER_COLUMNS = {"top1": "teacher_top1", "top5": "teacher_top5"}

#: Marks the title of a method whose hyper-parameters are not its own.
CHANGED = "‡"
#: What stands for a name that is not known.
_INSTEAD = {"dataset": "suite", "teacher_display": "teacher", "student_display": "student", "method_display": "method"}
_FLAGS = ("dirty", "carries_kd")
#: What the suite at hand says of rows, if it says something: whether they were asked for, whether their protocol is long enough for
#: conclusions, and the least top-1 that is expected of their teachers.
_OF_THE_SUITE = {"shown": True, "conclusive": True, "teacher_expected": 0.0}
_TEXTS = [name for name in COLUMNS if name not in (*NUMBERS, *_FLAGS, "seed")]
#: Texts that tables show, and at how many characters they are cut: what identifies a cell is not.
_SHOWN = {
    **dict.fromkeys((*IDENTITY, "pair", "teacher", "student", "method")),
    **dict.fromkeys(("dataset_title", "teacher_display", "student_display", "method_display"), NAME_LENGTH),
    **dict.fromkeys(
        ("teacher_family", "student_family", "method_family", "fidelity", "variant_of", "device", "commit"), NAME_LENGTH
    ),
    **dict.fromkeys(("reason", "settings"), TEXT_LENGTH),
}


@dataclass(frozen=True)
class Results:
    """Results of one suite, protocol, data set and split, ready for a table.

    Attributes:
        cells: one row per cell, with a column ``value``: the figure asked for, NaN where there is none.
        scores: one row per (pair, method): mean, sd (n - 1 in the denominator), n, state, reason, and counts of states.
        methods: index method, in the order of columns; display, family, fidelity, title.
        pairs: index pair, in the order of rows; teacher, student, their displays and families, title, teacher_value.
        metrics: that the cells hold; ``metric`` the one asked for.
        superseded: number of older results of a cell that another result of the same cell replaces.
        not_run: planned cells of which there is nothing, beside those of ``cells``.
        others: cells of methods that were not asked for, on the pairs and seeds that were: tests are corrected for them too.
        held: how many methods, pairs and seeds the store holds.
        baseline: the method that gains are counted from, where one was chosen.
        declared: hypotheses that were declared before the first result of their method; ``late``: those that were not.
    """

    cells: pd.DataFrame
    scores: pd.DataFrame
    methods: pd.DataFrame
    pairs: pd.DataFrame
    metrics: dict[str, Metric]
    metric: Metric
    select: str
    superseded: int
    not_run: pd.DataFrame
    others: pd.DataFrame
    held: dict[str, int]
    baseline: str = ""
    declared: tuple[Hypothesis, ...] = ()
    late: tuple[Hypothesis, ...] = ()

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
    def paths(self) -> dict[tuple[str, str], dict[int, str]]:
        """(pair, method) -> seed -> path of its finished cells."""
        done = self.cells[self.cells["state"] == "done"]
        found: dict[tuple[str, str], dict[int, str]] = {}
        for pair, method, seed, path in zip(*(done[name] for name in ("pair", "method", "seed", "path")), strict=True):
            found.setdefault((pair, method), {})[int(seed)] = path
        return found

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

    def gains(self, reference: str) -> pd.DataFrame:
        """Gains over a method, pairs x methods, those of ``others`` too; positive is better, NaN where there is none.

        The mean over the seeds that both have of the difference per seed (``matched``).
        """
        wide = self.gains_by_seed(reference).groupby(["pair", "method"])["value"].mean().unstack("method")
        methods = [*self.methods.index, *sorted({*self.others["method"]} - {*self.methods.index})]
        return wide.reindex(index=self.pairs.index, columns=methods).astype(float)

    def gains_by_seed(self, reference: str) -> pd.DataFrame:
        """Gains over a method on the same pair and seed, a row for each pair, method and seed that both have: ``value``."""
        apart = matched(pd.concat([self.cells, self.others]), reference, ["value"])
        return apart.assign(value=self.metric.sign * apart["value"])

    def common_means(self, methods: Sequence[str]) -> pd.DataFrame:
        """Means over the seeds that all of ``methods`` have on a pair, pairs x methods; pairs without such a seed are left out."""
        means = self.by_seed(methods).dropna().groupby("pair").mean()
        return means.reindex([pair for pair in self.pairs.index if pair in means.index])

    def by_seed(self, methods: Sequence[str]) -> pd.DataFrame:
        """Figures of ``methods``, those of ``others`` too: (pair, seed) x methods, NaN where there is none."""
        cells = pd.concat([self.cells, self.others])
        wide = cells[cells["method"].isin(methods)].pivot_table("value", ["pair", "seed"], "method")
        return wide.reindex(columns=[*methods])

    def reference(self) -> str:
        """The method that gains are counted from: the one chosen, else ``kd``, else ``scratch``, else none (an empty string)."""
        measured = set(self.scores.index[self.scores["n"] > 0].get_level_values("method"))
        usual = (self.baseline,) if self.baseline else ("kd", "scratch")
        return next((name for name in usual if name in measured), "")

    def identity(self) -> dict[str, str]:
        """Suite, protocol, data set and split, empty where there are no rows."""
        return {name: self.cells[name].iloc[0] if len(self.cells) else "" for name in IDENTITY}


def metrics_of(frame: pd.DataFrame) -> dict[str, Metric]:
    """The metrics that a frame holds, by name: the built-in ones, and those of plugins as its results define them."""
    found = {name: METRICS[name] for name in BUILT_IN}
    for text in frame["plugin_metrics"].unique() if "plugin_metrics" in frame else ():
        if isinstance(text, str) and text:
            found |= {name: Definition(**about).metric(name) for name, about in json.loads(text).items()}
    return found


def fill_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``load_results`` with nothing missing: text is empty, flags are false, numbers NaN where they are not known.

    Whatever a frame comes from, its names are printable from here on, and of a stated length.
    """
    checked = frame.reset_index(drop=True)
    checked = checked.reindex(columns=[*COLUMNS, *(name for name in checked if name not in COLUMNS)])
    for name, other in _INSTEAD.items():
        checked[name] = checked[name].where(checked[name].notna(), checked[other])
    for name, usual in _OF_THE_SUITE.items():
        checked[name] = checked.get(name, usual)
    checked["split"] = checked["split"].where(checked["split"].notna(), "test")
    checked[_TEXTS] = checked[_TEXTS].astype(object).fillna("")
    for name, length in _SHOWN.items():
        words = {text: printable(text, length) for text in checked[name].unique()}
        # A list: of a mapping pandas would make strings of its own, which a lone surrogate breaks.
        checked[name] = pd.Series([words[text] for text in checked[name]], checked.index, dtype=object)
    checked["reason"] = checked["reason"].map(without_homes).astype(object)
    checked[NUMBERS] = checked[NUMBERS].astype(float)
    for name in _FLAGS:
        checked[name] = checked[name].eq(True)
    return checked


def split_frame(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Split a frame into parts that may share a table: one suite, protocol, data set and split each.

    An empty frame gives itself, so that something can be said about it.
    """
    checked = fill_frame(frame)
    parts = [part for _, part in checked.groupby(IDENTITY)]
    return parts or [checked]


def collect(frame: pd.DataFrame, metric: str = "top1", select: str = "last") -> Results:
    """Take means over seeds.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        metric: a name of ``metrics_of(frame)``.
        select: ``"last"`` epoch, or ``"best"`` epoch on the evaluated split (an optimistic figure).

    Raises:
        UnknownNameError: for another metric.
        KdbenchError: if the frame mixes suites, protocols, data sets or splits: those are never pooled.
    """
    cells = fill_frame(frame)
    metrics = metrics_of(cells)
    if metric not in metrics:
        raise UnknownNameError("metric", metric, metrics)
    for name in IDENTITY:
        found = sorted(cells[name].unique())
        if len(found) > 1:
            raise KdbenchError(
                f"the results hold more than one {name} ({', '.join(found)}); choose one, they are not pooled"
            )
    column = metric if select == "last" else f"best_{metric}"
    cells["value"] = cells[column].where(cells["state"] == "done")
    cells, superseded = _latest(cells)
    declared = [each for each in of_text(cells["declared"]) if each.split in {*cells["split"]}]
    begun = cells.loc[(cells["state"] == "done") & (cells["finished"] != "")].groupby("method")["finished"].min()
    late = tuple(each for each in declared if each.method in begun and begun[each.method] < each.declared)
    held = {name: int(cells.loc[cells["state"] != ABSENT, name].nunique()) for name in ("method", "pair", "seed")}
    absent = cells["state"] == ABSENT
    not_run, others, cells = cells[absent], cells[~absent & ~cells["shown"]], cells[~absent & cells["shown"]]
    others = others[others["pair"].isin(cells["pair"]) & others["seed"].isin(cells["seed"])]
    others = others[~others["method"].isin(cells["method"])]
    return Results(
        cells=cells,
        scores=_scores(cells),
        methods=_methods(cells),
        pairs=_pairs(cells, TEACHER_COLUMNS.get(metric)),
        metrics=metrics,
        metric=metrics[metric],
        select=select,
        superseded=superseded,
        not_run=not_run,
        others=others,
        held=held,
        declared=tuple(each for each in declared if each not in late),
        late=late,
    )


def matched(cells: pd.DataFrame, reference: str, columns: Sequence[str]) -> pd.DataFrame:
    """Each cell's ``columns`` minus those of ``reference`` on the same pair and seed; cells without such a partner are left out.

    A seed's cells share initial weights and batches. Two cells that were taught by different weights under one teacher's name are
    no partners; training from scratch has no teacher.
    """
    done = cells.loc[cells["value"].notna(), ["pair", "method", "seed", "teacher_checksum", *columns]]
    base = done[done["method"] == reference].drop(columns="method")
    both = done.merge(base, on=["pair", "seed"], suffixes=("", "_base"))
    if reference != "scratch":
        first, second = both["teacher_checksum"], both["teacher_checksum_base"]
        both = both[(first == second) | (both["method"] == "scratch") | (first == "") | (second == "")]
    return both[["pair", "method", "seed"]].assign(**{name: both[name] - both[f"{name}_base"] for name in columns})


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
    """Keep one row per cell: a done one before others, then the one that finished last; the number of other results.

    The same result from two files is one.
    """
    identity = ["pair", "method", "seed"]
    cells = cells.drop_duplicates([*identity, "state", "config_hash", "finished", "value"])
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
    names = ["method_display", "method_family", "fidelity"]
    methods = cells.sort_values(["method", *names]).groupby("method")[names].first()
    methods.columns = pd.Index(["display", "family", "fidelity"])
    methods["title"] = _unique_titles(methods["display"])
    changed = {*cells.loc[cells["value"].notna() & (cells["settings"] != "") & (cells["variant_of"] == ""), "method"]}
    methods["title"] = methods["title"].where(~methods.index.isin(changed), methods["title"] + f" {CHANGED}")

    def place(name: str) -> tuple[object, ...]:
        row = methods.loc[name]
        family = _position(row["family"], METHOD_FAMILIES)
        return family, name != "scratch", row["family"], name != "kd", row["title"].lower(), name

    return methods.loc[sorted(methods.index, key=place)]


def _pairs(cells: pd.DataFrame, teacher_column: str | None) -> pd.DataFrame:
    names = ["teacher", "student", "teacher_display", "student_display", "teacher_family", "student_family"]
    pairs = cells.sort_values(["pair", *names]).groupby("pair")[names].first()
    pairs["title"] = _unique_titles(pairs["teacher_display"] + " → " + pairs["student_display"])
    pairs["teacher_value"] = pairs["teacher_spread"] = np.nan
    if teacher_column:
        teacher = cells.groupby("pair")[teacher_column]
        pairs["teacher_value"], pairs["teacher_spread"] = teacher.mean(), teacher.max() - teacher.min()

    def place(name: str) -> tuple[object, ...]:
        row = pairs.loc[name]
        family = _position(row["student_family"], NET_FAMILIES)
        return family, row["student_family"], row["student_display"].lower(), row["teacher_display"].lower(), name

    return pairs.loc[sorted(pairs.index, key=place)]


def _position(name: object, order: Iterable[str]) -> int:
    """Of a name in an order; unknown names come last."""
    names = [*order]
    return names.index(name) if name in names else len(names)


def _unique_titles(titles: pd.Series) -> pd.Series:
    """Add the index to titles that occur twice."""
    return titles.where(~titles.duplicated(keep=False), titles + " (" + titles.index + ")")
