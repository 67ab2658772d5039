"""What must be said in words under a leaderboard: the rule, intervals, tests, gaps, cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.errors import counted
from kdbench.reporting import statistics
from kdbench.reporting.caption import RECONSTRUCTION_NOTE, data_notes, join_names, seeds_text, title_of
from kdbench.reporting.costs import count_text, students_note
from kdbench.reporting.frame import Results, matched
from kdbench.reporting.standing import Leaderboard, Standing


def board_notes(board: Leaderboard) -> list[str]:
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
    if board.pairs == 2:
        return (
            "Two pairs: how far pairs differ is poorly known, no interval over pairs is given, and little can be said of other pairs. Left "
            "out: the gain on each of the two alone."
        )
    nets = [board.results.pairs[name].nunique() for name in ("teacher", "student")]
    if not any(np.isfinite(s.low) for s in board.standings):
        few = f"{counted(nets[0], 'teacher')} and {counted(nets[1], 'student')}"
        return f"No interval: with {few} none would cover what it says ({statistics.LEAST_NETS} of each are needed). {left_out}"
    return (
        "Interval: 95 %, were teachers, students and pairs drawn anew (crossed random effects), for one method alone; limits for all "
        f"{counted(board.tests, 'method')} at once (Bonferroni t) are all_low and all_high in CSV and JSON. Shrunken: the gain as far as "
        f"it is more than chance among so many. {left_out}"
    )


def _test_notes(board: Leaderboard) -> list[str]:
    tested = [s for s in board.standings if s.p is not None]
    if not tested:
        return []
    kind = f"Wilcoxon's signed-rank test against {board.reference_display}, exact, two-sided, zeros ranked (Pratt)"
    if any(np.isfinite(s.low) for s in board.standings):
        kind = f"that the mean gain over {board.reference_display} is zero, two-sided, by the interval"
    every = " (all that the store holds, shown or not)" if board.tests > len(tested) else ""
    over = f"Holm's correction over {counted(board.tests, 'method')}{every}"
    if board.results.declared and not board.declared:
        over += f"; no gain over {board.reference_display} was declared before the run: all of it is exploratory"
    elif board.declared:
        names = join_names((title_of(board.results, name) for name in board.declared), 20)
        over = f"Holm's correction over what was declared before the run alone ({names}); of the others, which are exploratory, {over}"
    notes = [f"p: {kind}, with {over}."]
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
