"""One ``Table`` of typed cells: results by pair and method, what is best, missing and why. Formatting is apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdbench.reporting.caption import (
    RECONSTRUCTION_NOTE,
    build_caption,
    data_notes,
    first_line,
    join_names,
    label_of,
    nothing_text,
    results_hash,
    short_caption,
)
from kdbench.reporting.choices import Choices, arranged, renamed
from kdbench.reporting.frame import Results, collect, common_pairs, fill_frame
from kdbench.reporting.grid import Cell, Header, Note, Table, letter, mark_best
from kdbench.reporting.published import published_caption, published_columns, published_scores
from kdbench.reporting.references import citations_of
from kdbench.reporting.statistics import RESOLUTION, ranks_in_rows
from kdbench.suite.net import FAMILIES as NET_FAMILIES

_CSV_COLUMNS = [
    *("suite", "protocol", "dataset", "split", "pair", "teacher", "student", "teacher_family", "student_family"),
    *("method", "method_family", "fidelity", "metric", "select", "mean", "sd", "n", "state", "reason", "teacher_value"),
]


_USUAL = Choices()
FAILED = "×"


def build_table(
    frame: pd.DataFrame,
    layout: str = "pairs",
    metric: str = "top1",
    select: str = "last",
    choices: Choices = _USUAL,
    *,
    command: str = "",
) -> Table:
    """Build the table of one suite and protocol.

    Args:
        frame: one row per cell, as ``load_results`` gives it.
        layout: ``"pairs"`` (a row per pair) or ``"methods"`` (a row per method).
        metric: a metric of the frame.
        select: ``"last"`` epoch or ``"best"`` epoch on the evaluated split.
        choices: of an author.
        command: the command line that made the table, for its comment.

    Raises:
        KdbenchError: if the frame mixes suites, protocols, data sets or splits, or a name is unknown.
    """
    filled = fill_frame(frame)
    published = published_scores(collect(filled, metric, select)) if choices.published else {}
    results = arranged(collect(renamed(filled, choices.names), metric, select), choices)
    shared: dict[str, Any] = {
        "command": command,
        "results_hash": results_hash(results),
        "label": label_of(results, metric, layout),
        "records": _records(results, published),
    }
    if results.empty and not published:
        return Table(message=nothing_text(results), **shared)
    table = _Builder(results, choices, published).build(shared)
    return table if layout == "pairs" else table.transposed()


class _Builder:
    """Fills the table in the layout ``pairs``."""

    def __init__(
        self, results: Results, choices: Choices, published: Mapping[tuple[str, str], Mapping[str, Any]]
    ) -> None:
        self.results = results
        self.choices = choices
        self.published = published
        self.metric = results.metric
        self.decimals = results.metric.decimals if choices.decimals is None else choices.decimals
        self.means = results.means()
        self.over_scratch = results.gains("scratch")
        self.methods, self.pairs = results.method_info, results.pair_info
        if results.empty:  # published figures alone
            self.methods = {}
            self.pairs = {pair: row for pair, row in self.pairs.items() if any(pair == known for known, _ in published)}
        self.competing = [name for name in results.competing if name in self.methods]
        self.compared, self.common = common_pairs(self.means, self.competing)
        self.letters: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}
        self.most_seeds = 0 if results.empty else int(results.scores["n"].max())
        self.fewer = False
        self.up, self.down = ("↑", "↓") if results.metric.higher_is_better else ("↓", "↑")

    def build(self, shared: dict[str, Any]) -> Table:
        teacher = any(np.isfinite(row["teacher_value"]) for row in self.pairs.values())
        columns = [Header("Teacher", "baseline", "baseline")] if teacher else []
        columns += [self._header(name) for name in self.methods]
        rows, cells = [], []
        for pair, row in self.pairs.items():
            family = row["student_family"]
            group = f"{NET_FAMILIES.get(family, family)} students" if family else ""
            rows.append(Header(row["title"], "pair", group))
            scores = self._rank([self._score(pair, name) for name in self.methods], self.metric.higher_is_better)
            value = float(row["teacher_value"])
            known = Cell("value", value, decimals=self.decimals) if np.isfinite(value) else Cell("absent")
            cells.append([*([known] if teacher else []), *scores])
        for header, summary in self._summaries(teacher):
            rows.append(header)
            cells.append(summary)
        notes = self._notes()
        ours = self.choices.ours in self.methods
        claimed, sources = published_columns(self.results, [*self.pairs], self.common, self.published, self.decimals)
        over, said = self._over_best_other() if ours else ([], [])
        for header, column in [*claimed, *over]:
            place = len(columns) - (ours and header.kind == "published")
            columns.insert(place, header)
            for line, cell in zip(cells, [*column, *[Cell("empty")] * len(cells)], strict=False):
                line.insert(place, cell)
        if self.choices.published and not self.published:
            said = [*said, Note("", "No published figure is known of these nets, methods and images.")]
        notes += [*said, *sources]
        return Table(
            corner="teacher → student",
            rows=tuple(rows),
            columns=tuple(columns),
            cells=tuple(map(tuple, cells)),
            caption=build_caption(self.results) if self.methods else published_caption(self.results),
            short=short_caption(self.results),
            notes=tuple(notes),
            ranked=any(cell.best for row in cells for cell in row),
            citations=citations_of(self.methods, self.results, self.published.values())
            if self.choices.cite or self.published
            else (),
            **shared,
        )

    def _header(self, name: str) -> Header:
        row = self.methods[name]
        kind, family = ("method", row["family"]) if name in self.competing else ("baseline", "baseline")
        if kind == "method" and self.choices.order:
            family = "methods"
        if name == self.choices.ours:
            kind = family = "ours"
        keys = [c["key"] for c in citations_of([name], self.results)] if self.choices.cite else []
        reconstruction = row["fidelity"] == "reconstruction"
        return Header(row["title"], kind, family, reconstruction, cites=",".join(keys))

    def _over_best_other(self) -> tuple[list[tuple[Header, list[Cell]]], list[Note]]:
        """Of each pair: the gain of ours over the best of the other competing methods there; in the last row over the best average."""
        ours = self.choices.ours
        others = [name for name in self.competing if name != ours]
        sign = self.metric.sign
        over = functools.cache(self.results.gains)

        def gain(pairs: Sequence[str]) -> Cell:
            """Over that other method which is best on these pairs, all of which it has."""
            means = sign * self.means.loc[list(pairs), others].dropna(axis=1).mean()
            if means.empty or not pairs:
                return Cell("empty")
            gains = over(str(means.idxmax())).loc[list(pairs), ours].dropna()
            if len(gains) < len(pairs):
                return Cell("empty")
            return Cell("gain", float(gains.mean()), decimals=self.decimals + 1)

        common = self.common if ours in self.compared else []
        title = self.methods[ours]["title"]
        text = (
            f"Over best other: {title} minus that other method which is best in the row, which these same figures chose, over the seeds "
            "that both have; below the pairs, minus the one with the best average."
        )
        header = Header("over best other", "text", "ours", better="↑")
        return [(header, [*(gain([pair]) for pair in self.pairs), gain(common)])], [Note("", text)]

    def _score(self, pair: str, method: str) -> Cell:
        score = self.results.score_info.get((pair, method))
        if score is None:
            return Cell("absent")
        failed = self._failed(pair, method, score) if score["failed"] else ()
        if score["state"] == "done":
            fewer = score["n"] < self.most_seeds
            self.fewer |= bool(fewer)
            marks = (("*",) if fewer else ()) + failed
            sd = score["sd"] if self.choices.sd else np.nan
            return Cell("value", score["mean"], sd, self.decimals, marks=marks)
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
        return (FAILED,)

    def _rank(self, row: list[Cell], higher_is_better: bool, besides: str = "") -> list[Cell]:
        """Mark the best of the competing methods, ``besides`` one."""
        ranked = [
            name in self.competing and name != besides and np.isfinite(cell.value) and cell.coverage is None
            for name, cell in zip(self.methods, row, strict=True)
        ]
        return mark_best(row, ranked, higher_is_better)

    # Rows under the pairs.

    def _summaries(self, teacher: bool) -> list[tuple[Header, list[Cell]]]:
        names = list(self.methods)
        if not names:
            return []
        suffix = "" if len(self.common) == len(self.means) else f" ({len(self.common)} of {len(self.means)} pairs)"
        suffix = suffix if self.common else ""

        def header(title: str, better: str) -> Header:
            return Header(title, "summary", "summary", better=better)

        average = [self._mean("value", self.means[name], name, self.decimals) for name in names]
        average = self._rank(average, self.metric.higher_is_better)
        of_teacher = self._mean("value", self.results.pairs["teacher_value"], "", self.decimals)
        rows = [(header(f"average{suffix}", self.up), [*([of_teacher] if teacher else []), *average])]
        blank = [Cell("empty")] if teacher else []
        if reference := self.results.reference():
            over = self.results.gains(reference)
            gains = [self._mean("gain", over[name], name, self.decimals + 1) for name in names]
            gains = self._rank(gains, True, besides=reference)
            title = f"average gain over {self.methods[reference]['display']}{suffix}"
            rows.append((header(title, "↑"), [*blank, *gains]))
        ranks = self._ranks(names)
        if ranks:
            row = [*blank, *self._rank(ranks, higher_is_better=False)]
            rows.append((header(f"average rank{suffix}", "↓"), row))
        if "scratch" in self.means and self.competing:
            rows.append((header("pairs harmed", "↓"), [*blank, *(self._harmed(name) for name in names)]))
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
        return Cell("count", coverage=(int((gain < -RESOLUTION).sum()), len(gain)))

    # Notes.

    def _notes(self) -> list[Note]:
        notes = []
        if self.fewer:
            notes.append(Note("*", f"fewer seeds than the others (which have {self.most_seeds})."))
        for reason, where in self.failures.items():
            notes.append(Note(FAILED, f"failed: {join_names(where)}: {reason}"))
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


def _records(results: Results, published: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """One row per pair x method, plain numbers; below them published figures, whose state is ``published``."""
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
    shown = tidy[_CSV_COLUMNS].reset_index(drop=True)
    if not published:
        return shown
    facts = shown.drop_duplicates(["pair", "method"]).set_index(["pair", "method"])
    claimed = (
        facts.loc[[*published]]
        .reset_index()
        .assign(
            mean=[claim["published_top1"] for claim in published.values()],
            reason=[claim["source"] for claim in published.values()],
            **dict.fromkeys(("sd", "n", "teacher_value"), np.nan),
            state="published",
            fidelity="",
        )
    )
    return pd.concat([shown, claimed[_CSV_COLUMNS]], ignore_index=True)
