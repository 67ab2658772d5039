"""The report's summary in words: what was run, which method leads, how sure that is, what it costs and harms."""

from __future__ import annotations

import numpy as np

from kdbench.errors import counted
from kdbench.reporting.caption import coverage_text, join_names
from kdbench.reporting.leaderboard import Leaderboard, Standing
from kdbench.reporting.paired import seeds_note
from kdbench.reporting.statistics import ALPHA
from kdbench.reporting.text.leaderboard import signed_text


def summary(board: Leaderboard) -> list[str]:
    """Sentences for people who read nothing else."""
    results = board.results
    if board.message:
        return [board.message]
    identity = results.identity()
    dataset = next((title for title in results.cells["dataset_title"] if title), identity["dataset"])
    sentences = [f"{results.metric.title} on {dataset}, protocol {identity['protocol']}. {coverage_text(results)}"]
    ranked = [s for s in board.standings if s.rank is not None]
    if board.reference and ranked:
        sentences.append(_leader(board, ranked))
        sentences += [sentence for sentence in (_significant(board), _harmed(board)) if sentence]
    elif ranked:
        sentences.append(
            f"{ranked[0].display} has the highest mean, {ranked[0].mean:.{board.decimals}f}; there is no baseline to "
            "count gains from."
        )
    if cost := _cost(board):
        sentences.append(cost)
    if note := seeds_note(int(results.scores["n"].max())):
        sentences.append(f"{note} Intervals in the leaderboard are over pairs.")
    return sentences


def _leader(board: Leaderboard, ranked: list[Standing]) -> str:
    first = ranked[0]
    pairs = counted(board.pairs, "pair")
    if first.method == board.reference:
        second = next((s for s in ranked if s.method != board.reference), None)
        next_one = f" The next is {second.display}, {_gain(board, second)} from it." if second else ""
        return f"No method has a higher mean than {first.display} over {pairs}.{next_one}"
    tied = [s.display for s in ranked if s.rank == 1]
    who = f"{join_names(tied)} have" if len(tied) > 1 else f"{first.display} has"
    interval = ""
    if np.isfinite(first.low):
        low, high = signed_text(first.low, board.decimals), signed_text(first.high, board.decimals)
        interval = f" (95 % interval over pairs: {low} to {high})"
    rec = " It is our reconstruction of the published method." if first.reconstruction and len(tied) == 1 else ""
    gain = _gain(board, first)
    return f"{who} the highest mean gain over {board.reference_display}: {gain} over {pairs}{interval}.{rec}"


def _gain(board: Leaderboard, standing: Standing) -> str:
    return f"{signed_text(standing.gain, board.decimals)} {board.metric.difference_unit}".strip()


def _significant(board: Leaderboard) -> str:
    tested = [s for s in board.standings if s.p_holm is not None]
    if not tested:
        return ""
    if not any(s.attainable for s in tested):
        return (
            f"With {counted(board.pairs, 'pair')} no difference from {board.reference_display} can "
            "become significant, whatever its size: take the order as a description of these pairs, not as a finding."
        )
    sure = [s for s in tested if s.attainable and s.p_holm is not None and s.p_holm <= ALPHA]
    better, worse = ([_called(s) for s in sure if sign * s.gain > 0] for sign in (1, -1))
    by_interval = any(np.isfinite(s.low) for s in tested)
    test = ("the interval" if by_interval else "Wilcoxon's test over pairs") + ", Holm's correction"
    if not sure:
        return f"No method differs significantly from {board.reference_display} ({test})."
    parts = [f"better: {join_names(better)}"] * bool(better) + [f"worse: {join_names(worse)}"] * bool(worse)
    return f"Significantly different from {board.reference_display} ({test}): {'; '.join(parts)}."


def _called(standing: Standing) -> str:
    """With what was not declared before the run marked, where something was."""
    return f"{standing.display} (exploratory)" if standing.hypothesis == "exploratory" else standing.display


def _harmed(board: Leaderboard) -> str:
    harmful = sorted(
        (s for s in board.standings if s.harmed and s.harmed[0] and not s.baseline),
        key=lambda s: -(s.harmed[0] / s.harmed[1] if s.harmed else 0),
    )
    if not harmful:
        return (
            "No method harms any pair: all are at least as good as training from scratch."
            if any(s.harmed for s in board.standings)
            else ""
        )
    named = [f"{s.display} ({s.harmed[0]} of {s.harmed[1]})" for s in harmful if s.harmed]
    return f"Worse than training from scratch on some pairs: {join_names(named, 5)}."


def _cost(board: Leaderboard) -> str:
    timed = [s for s in board.standings if np.isfinite(s.step_ratio) and not s.baseline]
    if len(timed) < 2:
        return ""
    cheap, dear = min(timed, key=lambda s: s.step_ratio), max(timed, key=lambda s: s.step_ratio)
    return (
        f"A training step takes from {cheap.step_ratio:.2f} ({cheap.display}) to {dear.step_ratio:.2f} ({dear.display}) "
        "times as long as one from scratch."
    )
