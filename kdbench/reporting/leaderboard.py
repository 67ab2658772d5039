"""Methods ranked by their mean gain over KD: intervals, tests, wins and harms, cost. One protocol at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.reporting import aggregates, statistics
from kdbench.reporting.caption import build_caption, nothing_text, results_hash
from kdbench.reporting.choices import Choices, arranged, renamed
from kdbench.reporting.costs import hours, number_or_nan, student_costs
from kdbench.reporting.frame import Results, collect, fill_frame
from kdbench.reporting.grid import Header
from kdbench.reporting.notes import board_notes
from kdbench.reporting.published import published_columns, published_scores
from kdbench.reporting.standing import Leaderboard, Standing

_USUAL = Choices()


def build_leaderboard(
    frame: pd.DataFrame,
    metric: str = "top1",
    select: str = "last",
    choices: Choices = _USUAL,
    *,
    command: str = "",
) -> Leaderboard:
    """Rank the methods of one suite and protocol by their gain over KD.

    Gains are counted from scratch where KD has no figures; without both the methods are ordered by their mean.
    Everything about a method is computed from its own pairs and the reference's, so no other method changes it; only
    Holm's correction and the ranks depend on who else is there. A method that lacks a pair of the reference gets none.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        metric, select: as for ``build_table``.
        choices: of an author: the baseline, names, and whether published figures stand below.
        command: the command line that made the ranking, for its comment.

    Raises:
        KdbenchError: if the frame mixes suites, protocols, data sets or splits, or a name is unknown.
    """
    filled = fill_frame(frame)
    published = published_scores(collect(filled, metric, select)) if choices.published else {}
    results = arranged(collect(renamed(filled, choices.names), metric, select), choices)
    means = results.means()
    reference = results.reference()
    ranked_pairs = means[reference] if reference else means.mean(axis=1)
    builder = None if results.empty else _Builder(results, means, reference)
    board = Leaderboard(
        results,
        reference=reference,
        reference_display=results.method_info[reference]["display"] if reference else "",
        standings=builder.build() if builder else (),
        tests=len(builder.tests) if builder else 0,
        declared=tuple(builder.declared) if builder else (),
        pairs=int(ranked_pairs.notna().sum()),
        caption="" if results.empty else build_caption(results),
        notes=(),
        command=command,
        results_hash=results_hash(results),
        message=nothing_text(results) if results.empty else "",
        students=tuple(student_costs(results)),
    )
    if results.empty:
        return board
    columns, sources = published_columns(results, [*results.pair_info], [], published, results.metric.decimals)
    return replace(
        board,
        notes=tuple(board_notes(board)),
        published=tuple((_claimed(header, board, published), header) for header, _ in columns),
        sources=tuple(sources),
        claims=tuple(published.values()),
    )


def _claimed(header: Header, board: Leaderboard, published: Mapping[tuple[str, str], Mapping[str, Any]]) -> Standing:
    """A published method. Its gain is over the reference of the same papers, where they have it."""
    info = board.results.method_info
    method = next(name for _, name in published if info[name]["display"] == header.title)
    own = {pair: claim for (pair, name), claim in published.items() if name == method}
    gains = [
        claim["published_top1"] - published[pair, board.reference]["published_top1"]
        for pair, claim in own.items()
        if (pair, board.reference) in published and {*claim["papers"]} & {*published[pair, board.reference]["papers"]}
    ]
    return Standing(
        method=method,
        display=header.title,
        family="published",
        reconstruction=False,
        baseline=True,
        cells=(0, 0),
        mean=float(np.mean([claim["published_top1"] for claim in own.values()])),
        gain=float(np.mean(gains)) if gains else np.nan,
        pairs=len(gains) if gains else len(own),
    )


class _Builder:
    """Computes the standings from means (pairs x methods)."""

    def __init__(self, results: Results, means: pd.DataFrame, reference: str) -> None:
        self.results = results
        self.means = means
        self.reference = reference
        self.sign = results.metric.sign
        ranked_pairs = means[reference] if reference else means.mean(axis=1)
        pairs = ranked_pairs.index[ranked_pairs.notna()]
        #: Whether a method has all pairs; those that compete take a place.
        self.complete = means.loc[pairs].notna().all()
        self.whole = [name for name in results.competing if self.complete[name]]
        self.average: dict[str, float] = {}
        same = results.common_means(self.whole)
        if len(self.whole) > 1 and len(same):
            ranks = statistics.ranks_in_rows(same.to_numpy(), results.metric.higher_is_better)
            self.average = dict(zip(self.whole, ranks.mean(axis=0).tolist(), strict=True))
        self.over_scratch = results.gains("scratch")
        over = results.gains(reference) if reference else pd.DataFrame()
        self.gains = {str(name): over[name].dropna() for name in over}
        others = results.others.loc[results.others["method_family"] != "baseline", "method"].unique()
        tested = [
            name
            for name in (*results.competing, *sorted({*others} - {"scratch"}))
            if name != reference and len(self.gains.get(name, ()))
        ]
        crossed = {name: self._crossed(self.gains[name]) for name in tested}
        self.crossed = {name: mean for name, mean in crossed.items() if mean is not None}
        #: p, and the smallest that so many pairs can give: of the interval, or where there is none of the signed-rank test.
        self.tests = {
            name: (self.crossed[name].p, 0.0)
            if name in self.crossed
            else statistics.signed_rank(self.gains[name].to_numpy())
            for name in tested
        }
        self.declared = [each.method for each in results.declared if each.against == reference]
        corrected = statistics.holm([p for p, _ in self.tests.values()])
        self.p_holm = dict(zip(self.tests, corrected, strict=True))
        # A declared method without results counts all the same: who declared five tests five.
        of_declared = statistics.holm([self.tests.get(name, (1.0, 0.0))[0] for name in self.declared])
        self.p_holm |= {name: p for name, p in zip(self.declared, of_declared, strict=True) if name in self.tests}
        if reference:
            self.apart = dict(iter(results.gains_by_seed(reference).groupby("method")))
            self.by_seed = self.sign * results.by_seed([*self.gains])
        self.step_ratios = _step_ratios(results.cells)
        self.shrunken = dict(zip(self.crossed, statistics.shrunken([*self.crossed.values()]), strict=True))

    def build(self) -> tuple[Standing, ...]:
        """Whole methods and baselines first, by gain; then those that lack pairs; names decide between equals."""
        score = {name: self._score(name) for name in map(str, self.means)}
        order = sorted(score, key=lambda name: (not self.complete[name], -score[name], name))
        places = sorted((score[name] for name in self.whole), reverse=True)
        cells = {str(name): own for name, own in self.results.cells.groupby("method")}
        return tuple(
            self._standing(name, cells[name], places.index(score[name]) + 1 if name in self.whole else None)
            for name in order
        )

    def _standing(self, name: str, cells: pd.DataFrame, rank: int | None) -> Standing:
        method = self.results.method_info[name]
        done = cells[cells["value"].notna()]
        over_scratch = self.over_scratch[name].dropna() if name != "scratch" else pd.Series(dtype=float)
        harmed = int((over_scratch < -statistics.RESOLUTION).sum())
        return Standing(
            method=name,
            display=method["title"],
            family=method["family"],
            reconstruction=method["fidelity"] == "reconstruction",
            baseline=name not in self.results.competing,
            cells=(len(done), int((cells["state"] != "skipped").sum())),
            rank=rank,
            mean=float(self.means[name].mean()),
            average_rank=self.average.get(name, np.nan),
            harmed=(harmed, len(over_scratch)) if len(over_scratch) else None,
            gain_over_scratch=float(over_scratch.mean()) if len(over_scratch) else np.nan,
            step_ratio=self.step_ratios.get(name, np.nan),
            extra_parameters=number_or_nan(done["extra_parameters"].median()),
            inference_parameters=number_or_nan(done["inference_extra_parameters"].max()),
            hours=hours(done),
            peak_memory=number_or_nan(done["peak_memory_bytes"].max()),
            **(self._against_reference(name) if self.reference else {"pairs": int(self.means[name].notna().sum())}),
        )

    def _against_reference(self, name: str) -> dict[str, Any]:
        gains = self.gains[name]
        known: dict[str, Any] = {"pairs": len(gains)}
        if gains.empty:
            return known
        known |= {"gain": float(gains.mean()), "gains": tuple(gains.items())}
        if name == self.reference:
            return known
        values, pairs = gains.to_numpy(), self.results.pairs.loc[gains.index]
        crossed = self.crossed[name] if name in self.crossed else self._crossed(gains)
        if crossed is not None:
            known["low"], known["high"] = crossed.interval()
            known["all_low"], known["all_high"] = crossed.interval(1 - statistics.ALPHA / max(len(self.tests), 1))
        known["shrunken"] = self.shrunken.get(name, np.nan)
        band = self.results.metric.tie_band
        known["wins"], known["ties"], known["losses"] = statistics.wins_ties_losses(values, band)
        if len(gains) >= statistics.LEAST_NETS:
            known["chances"] = statistics.better_equal_worse(values, band)
        left_out = statistics.leave_one_out(values, pairs["student"].tolist(), pairs["teacher"].tolist())
        known["left_out_low"], known["left_out_high"] = left_out
        if name in self.tests:
            p, smallest = self.tests[name]
            family = len(self.declared) if name in self.declared else len(self.tests)
            known |= {"p": p, "p_holm": self.p_holm[name], "smallest_p": min(1.0, smallest * family)}
            if self.results.declared:
                known["hypothesis"] = "declared" if name in self.declared else "exploratory"
        apart = self.apart[name]
        known["iqm"] = aggregates.interquartile_mean(apart["value"].to_numpy())
        runs = self.by_seed.loc[pd.MultiIndex.from_frame(apart[["pair", "seed"]]), [name, self.reference]]
        own, base = zip(*(found.to_numpy().T for _, found in runs.groupby("pair")), strict=True)
        known["improvement"] = aggregates.probability_of_improvement(own, base)
        return known

    def _crossed(self, gains: pd.Series) -> statistics.CrossedMean | None:
        pairs = self.results.pairs.loc[gains.index]
        return statistics.crossed_mean(gains.to_numpy(), pairs["teacher"].tolist(), pairs["student"].tolist())

    def _score(self, name: str) -> float:
        score = self.gains[name].mean() if self.reference else self.sign * self.means[name].mean()
        return round(score, 9) if np.isfinite(score) else -np.inf


def _step_ratios(cells: pd.DataFrame) -> dict[str, float]:
    """Median step time by method, over that of scratch in the same pair, seed and device."""
    keys = ["pair", "seed", "device"]
    done = cells.loc[(cells["state"] == "done") & (cells["step_seconds"] > 0), [*keys, "method", "step_seconds"]]
    scratch = done.loc[done["method"] == "scratch", [*keys, "step_seconds"]]
    both = done.merge(scratch, on=keys, suffixes=("", "_scratch"))
    return dict((both["step_seconds"] / both["step_seconds_scratch"]).groupby(both["method"]).median())
