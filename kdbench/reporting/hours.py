"""Accuracy at equal hours: what a method has reached when it has taken as long as the reference takes in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kdbench.reporting.frame import Results
from kdbench.reporting.standing import Leaderboard
from kdbench.store.reading import Outcomes


def with_equal_hours(board: Leaderboard, outcomes: Outcomes) -> Leaderboard:
    """The board with ``equal_hours`` of every standing of which the store has histories and hours."""
    found = gains_at_equal_hours(board.results, outcomes, board.reference) if board.reference else {}
    standings = [
        replace(s, equal_hours=found[s.method][0], equal_hours_pairs=found[s.method][1]) if s.method in found else s
        for s in board.standings
    ]
    return replace(board, standings=tuple(standings))


def gains_at_equal_hours(results: Results, outcomes: Outcomes, reference: str) -> dict[str, tuple[float, int]]:
    """Of each method: mean gain over the reference at the reference's hours, and over how many pairs that is.

    A cell's hours are its share of its cohort's, the teacher's forward passes included; its epochs take equal parts of them. On each pair
    and seed, on one device, the figure of a method's last epoch within the hours of the reference is set against the reference's own
    last. A method that is faster has all its epochs, and none beyond. Where not one epoch is over by then there is no figure.
    """
    if results.select != "last":
        return {}
    done = results.cells[results.cells["value"].notna() & (results.cells["train_seconds"] > 0)]
    columns = ["pair", "method", "seed", "path", "train_seconds", "device", "value"]
    cells = {tuple(row[:3]): row[3:] for row in done[columns].itertuples(index=False, name=None)}
    gains: dict[str, dict[str, list[float]]] = {}
    for pair, method, seed in results.gains_by_seed(reference)[columns[:3]].itertuples(index=False, name=None):
        own, base = cells.get((pair, method, seed)), cells.get((pair, reference, seed))
        if own is None or base is None or own[2] != base[2]:
            continue
        reached = value_within(outcomes.history(own[0]), results.metric.name, base[1] / own[1])
        if np.isfinite(reached):
            gains.setdefault(method, {}).setdefault(pair, []).append(results.metric.sign * (reached - base[3]))
    return {
        method: (float(np.mean([np.mean(seeds) for seeds in found.values()])), len(found))
        for method, found in gains.items()
    }


def value_within(history: Mapping[str, Sequence[float]], metric: str, share: float) -> float:
    """A metric after the last epoch that is over within a share of all of a training's time; NaN where there is none."""
    epochs, values = (np.asarray(history.get(name, ()), float) for name in ("epoch", metric))
    if not values.size or values.size != epochs.size:
        return np.nan
    within = np.flatnonzero(epochs <= share * epochs.max() * (1 + 1e-9))
    return float(values[within[-1]]) if within.size else np.nan
