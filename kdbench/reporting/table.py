"""One ``Table`` of typed cells: results by pair and method, what is best, missing and why. Formatting is apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.reporting.caption import (
    build_caption,
    data_notes,
    first_line,
    join_names,
    label_of,
    nothing_text,
    results_hash,
)
from kdbench.reporting.frame import Results, collect, common_pairs
from kdbench.reporting.statistics import ranks_in_rows
from kdbench.suite.net import FAMILIES as NET_FAMILIES

RECONSTRUCTION_NOTE = (
    "(rec.): our reconstruction from what is published about the method, without its authors' code; "
    "it is not a reproduction of it."
)

_CSV_COLUMNS = [
    *("suite", "protocol", "dataset", "split", "pair", "teacher", "student", "teacher_family", "student_family"),
    *("method", "method_family", "fidelity", "metric", "select", "mean", "sd", "n", "state", "reason", "teacher_value"),
]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        kind: ``value`` (mean, sd), ``gain`` (signed), ``rank``, ``count`` (``coverage`` = k of n), ``text``,
            ``absent`` (not run), ``unsupported``, ``failed``, or ``empty`` (nothing belongs here).
        best: 1 for the best of its comparison, 2 for the second, 0 otherwise.
        marks: keys of the table's notes.
        coverage: for a summary over fewer pairs than its row says: (pairs used, pairs there are).
    """

    kind: str
    value: float = np.nan
    sd: float = np.nan
    decimals: int = 1
    best: int = 0
    marks: tuple[str, ...] = ()
    coverage: tuple[int, int] | None = None
    text: str = ""


@dataclass(frozen=True)
class Header:
    """Title of a row or column. ``kind``: ``baseline``, ``method``, ``pair``, ``summary`` or ``text``."""

    title: str
    kind: str
    group: str = ""
    reconstruction: bool = False


@dataclass(frozen=True)
class Note:
    """A footnote; ``mark`` is empty for a general one."""

    mark: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table before formatting; ``render.render`` writes it.

    ``cells[row][column]``; ``records`` is the tidy form for CSV; ``message`` replaces a table without figures.
    """

    command: str
    results_hash: str
    label: str
    corner: str = ""
    rows: tuple[Header, ...] = ()
    columns: tuple[Header, ...] = ()
    cells: tuple[tuple[Cell, ...], ...] = ()
    caption: str = ""
    notes: tuple[Note, ...] = ()
    message: str = ""
    ranked: bool = True
    records: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)

    def transposed(self) -> Table:
        """The same table with rows and columns exchanged."""
        cells = tuple(zip(*self.cells, strict=True)) if self.cells else ()
        corner = {"teacher → student": "method"}.get(self.corner, self.corner)
        return replace(self, corner=corner, rows=self.columns, columns=self.rows, cells=cells)


def build_table(
    frame: pd.DataFrame,
    layout: str = "pairs",
    metric: str = "top1",
    select: str = "last",
    *,
    command: str = "",
) -> Table:
    """Build the table of one suite and protocol.

    Args:
        frame: one row per cell, as ``load_results`` gives it.
        layout: ``"pairs"`` (a row per pair) or ``"methods"`` (a row per method).
        metric: a metric of the frame.
        select: ``"last"`` epoch or ``"best"`` epoch on the evaluated split.
        command: the command line that made the table, for its comment.

    Raises:
        KdbenchError: if the frame mixes suites, protocols, data sets or splits, or the metric is unknown.
    """
    results = collect(frame, metric, select)
    shared: dict[str, Any] = {
        "command": command,
        "results_hash": results_hash(results),
        "label": label_of(results, metric, layout),
        "records": _records(results),
    }
    if results.empty:
        return Table(message=nothing_text(results), **shared)
    table = _Builder(results).build(shared)
    return table if layout == "pairs" else table.transposed()


class _Builder:
    """Fills the table in the layout ``pairs``."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.metric = results.metric
        self.decimals = results.metric.decimals
        self.means = results.means()
        self.over_scratch = results.gains("scratch")
        self.methods, self.pairs = results.method_info, results.pair_info
        self.competing = results.competing
        self.compared, self.common = common_pairs(self.means, self.competing)
        self.letters: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}
        self.most_seeds = int(results.scores["n"].max())
        self.fewer = False

    def build(self, shared: dict[str, Any]) -> Table:
        teacher = any(np.isfinite(row["teacher_value"]) for row in self.pairs.values())
        rows = []
        for row in self.pairs.values():
            family = row["student_family"]
            group = f"{NET_FAMILIES.get(family, family)} students" if family else ""
            rows.append(Header(row["title"], "pair", group))
        columns = [Header("Teacher", "baseline", "baseline")] if teacher else []
        for name, row in self.methods.items():
            kind, family = ("method", row["family"]) if name in self.competing else ("baseline", "baseline")
            columns.append(Header(row["title"], kind, family, row["fidelity"] == "reconstruction"))
        cells = []
        for pair in self.pairs:
            scores = self._rank([self._score(pair, name) for name in self.methods], self.metric.higher_is_better)
            value = float(self.pairs[pair]["teacher_value"])
            known = Cell("value", value, decimals=self.decimals) if np.isfinite(value) else Cell("absent")
            cells.append([*([known] if teacher else []), *scores])
        for title, summary in self._summaries(teacher):
            rows.append(Header(title, "summary", "summary"))
            cells.append(summary)
        return Table(
            corner="teacher → student",
            rows=tuple(rows),
            columns=tuple(columns),
            cells=tuple(map(tuple, cells)),
            caption=build_caption(self.results),
            notes=tuple(self._notes()),
            ranked=any(cell.best for row in cells for cell in row),
            **shared,
        )

    def _score(self, pair: str, method: str) -> Cell:
        score = self.results.score_info.get((pair, method))
        if score is None:
            return Cell("absent")
        failed = self._failed(pair, method, score) if score["failed"] else ()
        if score["state"] == "done":
            fewer = score["n"] < self.most_seeds
            self.fewer |= bool(fewer)
            marks = (("*",) if fewer else ()) + failed
            return Cell("value", score["mean"], score["sd"], self.decimals, marks=marks)
        if score["state"] == "failed":
            return Cell("failed", marks=failed)
        if score["state"] == "skipped":
            reason = first_line(score["skipped_reason"]) or "no reason was recorded"
            return Cell("unsupported", marks=(self.letters.setdefault(reason, letter(len(self.letters))),))
        return Cell("absent")

    def _failed(self, pair: str, method: str, score: dict[str, Any]) -> tuple[str, ...]:
        reason = first_line(score["failed_reason"]) or "no reason was recorded"
        title = f"{self.methods[method]['title']} on {self.pairs[pair]['title']}"
        some = f" ({score['failed']} of {score['cells']} seeds)" if score["cells"] > 1 else ""
        self.failures.setdefault(reason, []).append(title + some)
        return ("†",)

    def _rank(self, row: list[Cell], higher_is_better: bool, besides: str = "") -> list[Cell]:
        """Mark the best of the competing methods, ``besides`` one."""
        ranked = [
            name in self.competing and name != besides and np.isfinite(cell.value) and cell.coverage is None
            for name, cell in zip(self.methods, row, strict=True)
        ]
        return mark_best(row, ranked, higher_is_better)

    # Rows under the pairs.

    def _summaries(self, teacher: bool) -> list[tuple[str, list[Cell]]]:
        names = list(self.methods)
        suffix = "" if len(self.common) == len(self.means) else f" ({len(self.common)} of {len(self.means)} pairs)"
        suffix = suffix if self.common else ""
        average = [self._mean("value", self.means[name], name, self.decimals) for name in names]
        average = self._rank(average, self.metric.higher_is_better)
        of_teacher = self._mean("value", self.results.pairs["teacher_value"], "", self.decimals)
        rows = [(f"average{suffix}", [*([of_teacher] if teacher else []), *average])]
        blank = [Cell("empty")] if teacher else []
        if reference := self.results.reference():
            over = self.results.gains(reference)
            gains = [self._mean("gain", over[name], name, self.decimals + 1) for name in names]
            gains = self._rank(gains, True, besides=reference)
            title = f"average gain over {self.methods[reference]['display']}{suffix}"
            rows.append((title, [*blank, *gains]))
        ranks = self._ranks(names)
        if ranks:
            rows.append((f"average rank{suffix}", [*blank, *self._rank(ranks, higher_is_better=False)]))
        if "scratch" in self.means and self.competing:
            rows.append(("pairs harmed", [*blank, *(self._harmed(name) for name in names)]))
        return rows

    def _mean(self, kind: str, values: pd.Series, name: str, decimals: int) -> Cell:
        """The mean over the pairs that the row's title says, else over the method's own, with its coverage."""
        used = values.dropna()
        shared = used[used.index.isin(self.common)]
        total, coverage = len(self.means), None
        if self.common and len(shared) == len(self.common) and (name in self.compared or name not in self.competing):
            used = shared
        elif len(used) < total:
            coverage = (len(used), total)
        if used.empty:
            return Cell("empty")
        return Cell(kind, float(used.mean()), decimals=decimals, coverage=coverage)

    def _ranks(self, names: Sequence[str]) -> list[Cell]:
        if len(self.compared) < 2 or not self.common:
            return []
        table = self.results.common_means(self.compared)
        if table.empty:
            return []
        ranks = ranks_in_rows(table.to_numpy(), self.metric.higher_is_better)
        mean = dict(zip(self.compared, ranks.mean(axis=0), strict=True))
        return [Cell("rank", float(mean[name]), decimals=2) if name in mean else Cell("empty") for name in names]

    def _harmed(self, name: str) -> Cell:
        if name not in self.competing:
            return Cell("empty")
        gain = self.over_scratch[name].dropna()
        if gain.empty:
            return Cell("empty")
        return Cell("count", coverage=(int((gain < -1e-9).sum()), len(gain)))

    # Notes.

    def _notes(self) -> list[Note]:
        notes = []
        if self.fewer:
            notes.append(Note("*", f"fewer seeds than the others (which have {self.most_seeds})."))
        for reason, where in self.failures.items():
            notes.append(Note("†", f"failed: {join_names(where)}: {reason}"))
        notes += [Note(letter, f"not applicable: {reason}") for reason, letter in self.letters.items()]
        if any(row["fidelity"] == "reconstruction" for row in self.methods.values()):
            notes.append(Note("", RECONSTRUCTION_NOTE))
        if len(self.common) < len(self.means) and self.competing:
            left_out = [self.methods[name]["title"] for name in self.competing if name not in self.compared]
            text = "Averages, gains and ranks are over the pairs that all compared methods have"
            if not self.common:
                text = "No pair has all methods: each average is over the method's own pairs, and they do not compare"
            if left_out:
                text += f"; not compared, for want of pairs: {join_names(left_out)}"
            notes.append(Note("", f"{text}. (k/n): over k of n pairs only."))
        if self.competing and "scratch" in self.methods:
            title = self.methods["scratch"]["title"]
            notes.append(Note("", f"Pairs harmed: pairs on which the method is worse than “{title}”."))
        if self.fewer:
            notes.append(Note("", "Gains, ranks and harms compare the seeds that both have."))
        if not self.metric.higher_is_better:
            notes.append(Note("", "Gains are counted so that a positive one is an improvement."))
        return notes + [Note("", text) for text in data_notes(self.results)]


def _records(results: Results) -> pd.DataFrame:
    """One row per pair x method, plain numbers."""
    scores = results.scores.reset_index()
    if scores.empty:
        return pd.DataFrame(columns=_CSV_COLUMNS)
    pairs = results.pairs[["teacher", "student", "teacher_family", "student_family", "teacher_value"]]
    methods = results.methods[["family", "fidelity"]].rename(columns={"family": "method_family"})
    tidy = scores.join(pairs, on="pair").join(methods, on="method")
    tidy = tidy.assign(**results.identity(), metric=results.metric.name, select=results.select)
    reason = tidy["failed_reason"].where(tidy["failed_reason"] != "", tidy["skipped_reason"])
    tidy["reason"] = reason.map(first_line)
    order = {"pair": results.pairs.index, "method": results.methods.index}
    tidy = tidy.sort_values([*order], key=lambda column: column.map(order[str(column.name)].get_loc))
    return tidy[_CSV_COLUMNS].reset_index(drop=True)


def mark_best(row: Sequence[Cell], ranked: Sequence[bool], higher_is_better: bool = True) -> list[Cell]:
    """Mark best and second of the ``ranked`` cells, at printed precision; nothing where fewer than two are ranked."""
    printed = {i: float(f"{cell.value:.{cell.decimals}f}") for i, cell in enumerate(row) if ranked[i]}
    if len(printed) < 2:
        return list(row)
    first = sorted(set(printed.values()), reverse=higher_is_better)[:2]
    return [
        replace(cell, best=1 + first.index(printed[i])) if printed.get(i) in first else cell
        for i, cell in enumerate(row)
    ]


def letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
