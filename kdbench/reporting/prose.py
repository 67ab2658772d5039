"""A paragraph for the section on experiments: what was compared and tested, what was found, and what cannot be said."""

from __future__ import annotations

import numpy as np

from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.reporting.caption import seeds_text
from kdbench.reporting.standing import Leaderboard, Standing
from kdbench.reporting.statistics import ALPHA


def paragraph(board: Leaderboard, ours: str = "") -> str:
    """Sentences from the numbers of a leaderboard.

    Args:
        board: from ``build_leaderboard``.
        ours: the method that they are about; empty: the one that leads.

    Raises:
        UnknownNameError: if the board has no such method.
        KdbenchError: if it is what gains are counted from.
    """
    if board.message:
        return board.message
    results, standings = board.results, {standing.method: standing for standing in board.standings}
    if ours and ours not in standings:
        raise UnknownNameError("method", ours, [*standings])
    if ours and ours == board.reference:
        raise KdbenchError(
            f"{ours} is what gains are counted from, and has none; name another --ours or another --baseline"
        )
    identity = results.identity()
    dataset = next((title for title in results.cells["dataset_title"] if title), identity["dataset"])
    epoch = "last" if results.select == "last" else f"best {identity['split']}"
    nets = [counted(results.pairs[name].nunique(), name) for name in ("teacher", "student")]
    methods = counted(sum(not standing.baseline for standing in board.standings), "method")
    text = [
        f"We compare {methods} on {counted(len(results.pairs), 'teacher-student pair')} ({', '.join(nets)}) on {dataset} "
        f"({identity['split']} split; suite {identity['suite']}, protocol {identity['protocol']}), over {seeds_text(results.seeds)}, and "
        f"report {results.metric.title[0].lower()}{results.metric.title[1:]} at the {epoch} epoch."
    ]
    if not board.reference:
        return f"{text[0]} Neither KD nor training from scratch was run, so that no gain is counted and nothing was tested."
    text.append(
        f"A gain is the difference from {board.reference_display} on the same pair and seed, averaged over seeds and then over pairs; "
        f"within {board.metric.tie_band:g} {board.metric.difference_unit}".rstrip()
        + " it counts as a tie."
    )
    about = (
        standings[ours] if ours else next((s for s in board.standings if s.rank and s.method != board.reference), None)
    )
    if about is None or not np.isfinite(about.gain):
        return " ".join([*text, "No method has a gain to report."])
    return " ".join([*text, _tested(board, about), _found(board, about), *_unsaid(board, about)])


def _tested(board: Leaderboard, about: Standing) -> str:
    if about.p is None:
        return "Nothing was tested."
    if np.isfinite(about.low):
        kind = "by a mean with crossed random effects of teachers, students and pairs"
    else:
        kind = "by Wilcoxon's exact signed-rank test (zeros by Pratt)"
    over = counted(board.tests, "method")
    if about.hypothesis == "declared":
        over = f"the {counted(len(board.declared), 'method')} that were declared before the run"
    elif about.hypothesis:
        over += ", an exploratory test, which was not declared before the run"
    return (
        f"That the mean gain is zero was tested {kind}, two-sided, at a level of {ALPHA:g} with Holm's correction over "
        f"{over} (n = {counted(about.pairs, 'pair')})."
    )


def _found(board: Leaderboard, about: Standing) -> str:
    decimals, unit = board.decimals, board.metric.difference_unit
    spread = f"95 % interval [{about.low:+.{decimals}f}, {about.high:+.{decimals}f}]" if np.isfinite(about.low) else ""
    p = f"p = {about.p_holm:.3g} after correction" if about.p_holm is not None and about.attainable else ""
    details = "; ".join(filter(None, (spread, p)))
    text = f"{about.display} gains {about.gain:+.{decimals}f} {unit}".rstrip() + f" over {board.reference_display}"
    text += f" ({details})" if details else ""
    if about.wins is not None:
        text += f": it is better on {about.wins}, equal on {about.ties} and worse on {about.losses} of {counted(about.pairs, 'pair')}"
    if about.harmed:
        text += f", and worse than training from scratch on {about.harmed[0]} of {about.harmed[1]}"
    if np.isfinite(about.left_out_low):
        text += (
            f"; without any one student or teacher the gain lies between {about.left_out_low:+.{decimals}f} and "
            f"{about.left_out_high:+.{decimals}f}"
        )
    return f"{text}."


def _unsaid(board: Leaderboard, about: Standing) -> list[str]:
    """What these results do not show."""
    results, text = board.results, []
    if about.p is not None and not about.attainable:
        tests = len(board.declared) if about.hypothesis == "declared" else board.tests
        text.append(
            f"With {counted(about.pairs, 'pair')} and {counted(tests, 'method')} no difference could have been significant (the "
            f"smallest p is {about.smallest_p:.2g} after correction), which is no evidence that the methods are equal."
        )
    elif about.p_holm is not None and about.p_holm >= ALPHA:
        text.append("The difference is not significant, which is no evidence that the methods are equal.")
    if not np.isfinite(about.low):
        text.append("The pairs share too few teachers or students for an interval: nothing is said of other nets.")
    most = int(results.scores["n"].max())
    if most < 3:
        text.append(
            f"With {counted(most, 'seed')} the spread between seeds is {'unknown' if most == 1 else 'poorly known'}."
        )
    text.append("Every teacher is one trained net, whose draw no figure here accounts for.")
    if not results.cells["conclusive"].all():
        text.append(f"The protocol {results.identity()['protocol']} is too brief for conclusions about the methods.")
    return text
