"""Methods ranked by their mean gain over KD: intervals, tests, wins and harms, cost. One protocol at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import counted
from kdbench.reporting import statistics
from kdbench.reporting.caption import (
    RECONSTRUCTION_NOTE,
    build_caption,
    data_notes,
    join_names,
    nothing_text,
    results_hash,
    seeds_text,
)
from kdbench.reporting.choices import Choices, arranged, renamed
from kdbench.reporting.costs import count_text, hours, number_or_nan, student_costs, students_note
from kdbench.reporting.frame import Results, collect, fill_frame, matched
from kdbench.reporting.grid import Header
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
        notes=tuple(_notes(board)),
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
        corrected = statistics.holm([p for p, _ in self.tests.values()])
        self.p_holm = dict(zip(self.tests, corrected, strict=True))
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
            known |= {"p": p, "p_holm": self.p_holm[name], "smallest_p": min(1.0, smallest * len(self.tests))}
        return known

    def _crossed(self, gains: pd.Series) -> statistics.CrossedMean | None:
        pairs = self.results.pairs.loc[gains.index]
        return statistics.crossed_mean(gains.to_numpy(), pairs["teacher"].tolist(), pairs["student"].tolist())

    def _score(self, name: str) -> float:
        score = self.gains[name].mean() if self.reference else self.sign * self.means[name].mean()
        return round(score, 9) if np.isfinite(score) else -np.inf


def _failures_as_scratch(results: Results, reference: str) -> dict[str, tuple[float, int]]:
    """Of each method with failed cells: its gain when they count as scratch on the same pair and seed, and how many those are."""
    done = results.cells[results.cells["value"].notna()]
    key = ["pair", "seed"]
    failed = results.cells[results.cells["state"] == "failed"].drop(columns="value")
    failed = failed[failed["method"] != reference].merge(done.loc[done["method"] == "scratch", [*key, "value"]], on=key)
    apart = matched(pd.concat([done, failed]), reference, ["value"])
    means = results.metric.sign * apart.groupby(["method", "pair"])["value"].mean().groupby("method").mean()
    counts = failed["method"].value_counts()
    return {
        name: (float(means[name]), int(counts[name]))
        for name in results.method_info
        if name in counts and name in means
    }


def _step_ratios(cells: pd.DataFrame) -> dict[str, float]:
    """Median step time by method, over that of scratch in the same pair, seed and device."""
    keys = ["pair", "seed", "device"]
    done = cells.loc[(cells["state"] == "done") & (cells["step_seconds"] > 0), [*keys, "method", "step_seconds"]]
    scratch = done.loc[done["method"] == "scratch", [*keys, "step_seconds"]]
    both = done.merge(scratch, on=keys, suffixes=("", "_scratch"))
    return dict((both["step_seconds"] / both["step_seconds_scratch"]).groupby(both["method"]).median())


def _notes(board: Leaderboard) -> list[str]:
    """What must be said in words under the ranking."""
    results, pairs = board.results, board.pairs
    seeds = results.seeds
    notes = [_rule(board)]
    few = {1: "One seed: the spread between seeds is unknown", 2: "Only two seeds: their spread is poorly known"}
    n = int(results.scores["n"].max())
    notes.append(f"{few[n]}; intervals are over pairs alone." if n in few else f"Over {seeds_text(seeds)}.")
    counts = results.scores["n"][results.scores["n"] > 0]
    if counts.min() < n:
        fewer = [
            results.method_info[name]["title"] for name in sorted(set(counts.index[counts < n].map(lambda k: k[1])))
        ]
        notes.append(
            f"Some pairs have fewer than {n} seeds: {join_names(fewer)}. Gains compare the seeds that both have."
        )
    if board.reference:
        notes.append(_interval_note(board))
        notes += _test_notes(board)
    ranked_out = [
        f"{s.display} ({s.pairs} of {pairs} pairs)" for s in board.standings if s.rank is None and not s.baseline
    ]
    if ranked_out:
        notes.append(
            f"Not ranked, because pairs are missing: {join_names(ranked_out)}. What they show is over the pairs they have."
        )
    for state in ("failed", "skipped"):
        bad = results.scores[results.scores[state] > 0].groupby("method")[state].sum()
        if len(bad):
            affected = [f"{results.method_info[str(name)]['title']} ({count})" for name, count in bad.items()]
            notes.append(f"Cells {state}: {join_names(affected)}.")
    if board.reference and (instead := _failures_as_scratch(results, board.reference)):
        counted_in = [
            f"{results.method_info[name]['title']} {gain:+.{board.decimals}f} ({counted(cells, 'cell')})"
            for name, (gain, cells) in instead.items()
        ]
        notes.append(f"Gain with each failed cell counted as training from scratch: {join_names(counted_in)}.")
    if any(s.harmed for s in board.standings):
        notes.append("Harmed: pairs on which the method is worse than training from scratch with the same seeds.")
    if any(s.chances for s in board.standings):
        notes.append(
            "Better/equal/worse: probabilities in % for another pair like these (Bayesian signed-rank test; equal: a tie). They take "
            "pairs as independent, which those with a teacher or a student in common are not, and so say too much."
        )
    if any(np.isfinite(s.step_ratio) for s in board.standings):
        notes.append("Step: median step time over that of scratch, same pair, seed and device.")
    if any(np.isfinite(s.hours) for s in board.standings):
        notes.append(
            "Hours: of training, all cells of the method together, each its share of its cohort. Peak memory: of a whole "
            "cohort's process. Extra parameters: trained beside the student and then dropped."
        )
    kept = [s for s in board.standings if s.inference_parameters > 0]
    if kept:
        larger = join_names(f"{s.display} (up to {count_text(s.inference_parameters)})" for s in kept)
        notes.append(f"Larger at inference than the student alone, by parameters that the method keeps: {larger}.")
    if students := students_note(board.students):
        notes.append(students)
    named = [s.display for s in board.standings if s.reconstruction]
    if named:
        notes.append(f"Reconstructions: {join_names(named)}. {RECONSTRUCTION_NOTE}")
    return notes + data_notes(results)


def _rule(board: Leaderboard) -> str:
    over = counted(board.pairs, "pair")
    if not board.reference:
        return f"Neither kd nor scratch has results here: methods are ordered by their mean over {over}."
    rule = (
        f"Gain: over {board.reference_display} with the same seed, mean over seeds, per pair, then the mean over {over}"
    )
    if not board.metric.higher_is_better:
        rule += " (sign turned, so that positive is better)"
    band = f"±{board.metric.tie_band:g} {board.metric.difference_unit}".strip()
    text = f"{rule}; a gain within {band} is a tie."
    if board.reference != "kd" and not board.results.baseline:
        text = f"kd has no results here: gains are counted from {board.reference_display}. {text}"
    return text


def _interval_note(board: Leaderboard) -> str:
    if board.pairs < 2:
        return "One pair: no interval over pairs can be given, and nothing can be said of other pairs."
    left_out = "Left out: range of the mean gain without one student or one teacher."
    nets = [board.results.pairs[name].nunique() for name in ("teacher", "student")]
    if not any(np.isfinite(s.low) for s in board.standings):
        few = f"{counted(nets[0], 'teacher')} and {counted(nets[1], 'student')}"
        return f"No interval: with {few} none would cover what it says ({statistics.LEAST_NETS} of each are needed). {left_out}"
    return (
        "Interval: 95 %, were teachers, students and pairs drawn anew (crossed random effects), for one method alone. Shrunken: the "
        f"gain as far as it is more than chance among so many. {left_out}"
    )


def _test_notes(board: Leaderboard) -> list[str]:
    tested = [s for s in board.standings if s.p is not None]
    if not tested:
        return []
    kind = f"Wilcoxon's signed-rank test against {board.reference_display}, exact, two-sided, zeros ranked (Pratt)"
    if any(np.isfinite(s.low) for s in board.standings):
        kind = f"that the mean gain over {board.reference_display} is zero, two-sided, by the interval"
    every = " (all that the store holds, shown or not)" if board.tests > len(tested) else ""
    notes = [f"p: {kind}, with Holm's correction over {counted(board.tests, 'method')}{every}."]
    beyond = [s for s in tested if not s.attainable]
    if beyond:
        least = min(s.smallest_p for s in beyond if s.smallest_p is not None)
        named = [_differing(s) for s in beyond if len(beyond) < len(tested) or _zeros(s)]
        who = f" ({join_names(named)})" if named else ""
        count = counted(max(s.pairs for s in beyond), "pair")
        text = f"n.a.: significance is not attainable with {count}{who}: even the smallest possible p is {least:.2g}"
        notes.append(f"{text} after correction, above {statistics.ALPHA:g}. That is no evidence of equality.")
    return notes


def _zeros(standing: Standing) -> int:
    return sum(abs(gain) <= statistics.RESOLUTION for _, gain in standing.gains)


def _differing(standing: Standing) -> str:
    """A method, and how many of its gains are not zero where some are."""
    zeros, pairs = _zeros(standing), standing.pairs
    return f"{standing.display}: only {pairs - zeros} of {pairs} gains differ from zero" if zeros else standing.display
