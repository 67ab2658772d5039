"""What a leaderboard holds: a standing for each method, and what stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdbench.plugins.metrics import Metric
from kdbench.reporting import statistics
from kdbench.reporting.costs import StudentCost
from kdbench.reporting.frame import Results
from kdbench.reporting.grid import Header, Note


@dataclass(frozen=True)
class Standing:
    """One method's row. Gains are in the metric's unit, positive when better; NaN or None where there is none.

    Attributes:
        rank: place by mean gain, equal ones share it; None for baselines and for methods that lack pairs.
        mean: mean of the metric over the method's pairs (means over seeds first).
        gain, low, high: mean gain over the reference, over the pairs that both have, and its 95 % interval (``crossed_mean``).
        all_low, all_high: limits for all methods of the board at once (Bonferroni t).
        improvement: probability that a run of it beats one of the reference on the same pair (``probability_of_improvement``).
        iqm: interquartile mean of the gains per seed, over all pairs and seeds.
        equal_hours, equal_hours_pairs: mean gain where it may take no more hours than the reference, and over how many pairs.
        shrunken: the gain, drawn towards the mean of all methods' as far as chance spreads them.
        chances: that on another pair it is better, equal or worse, by the tie band.
        gains: (pair, gain) for each of those pairs.
        average_rank: mean place among the ranked methods, over all pairs.
        wins, ties, losses: pairs against the reference, by the tie band.
        p, p_holm: of a gain of zero, by the interval, or by Wilcoxon's signed-rank test where there is none; alone and with Holm's
            correction over the methods, of a declared one over those that were declared.
        hypothesis: ``"declared"`` before its results, or ``"exploratory"``; empty where none was declared.
        smallest_p: the smallest ``p_holm`` that this many pairs can give.
        harmed: (pairs worse than from scratch, pairs that have both).
        gain_over_scratch: mean over the pairs that both have.
        left_out_low, left_out_high: range of ``gain`` when all pairs of one student or of one teacher are left out.
        step_ratio: median over pairs and seeds of step time relative to scratch in the same pair, seed and device.
        extra_parameters: median over cells of the method's own trainable parameters.
        inference_parameters: the most that inference needs beyond the student's own, over cells.
        hours: of training, all cells together; ``peak_memory``: the most that a cell's process took, in bytes.
        pairs: pairs behind ``gain``.
        cells: (done, planned).
    """

    method: str
    display: str
    family: str
    reconstruction: bool
    baseline: bool
    cells: tuple[int, int]
    rank: int | None = None
    mean: float = np.nan
    gain: float = np.nan
    low: float = np.nan
    high: float = np.nan
    all_low: float = np.nan
    all_high: float = np.nan
    shrunken: float = np.nan
    improvement: float = np.nan
    iqm: float = np.nan
    equal_hours: float = np.nan
    equal_hours_pairs: int = 0
    chances: tuple[float, float, float] | None = None
    gains: tuple[tuple[str, float], ...] = ()
    average_rank: float = np.nan
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    p: float | None = None
    p_holm: float | None = None
    smallest_p: float | None = None
    hypothesis: str = ""
    harmed: tuple[int, int] | None = None
    gain_over_scratch: float = np.nan
    left_out_low: float = np.nan
    left_out_high: float = np.nan
    step_ratio: float = np.nan
    extra_parameters: float = np.nan
    inference_parameters: float = np.nan
    hours: float = np.nan
    peak_memory: float = np.nan
    pairs: int = 0

    @property
    def attainable(self) -> bool:
        """Whether this many pairs could show a difference at all."""
        return self.smallest_p is not None and self.smallest_p <= statistics.ALPHA


@dataclass(frozen=True)
class Leaderboard:
    """The ranking of one suite and protocol.

    ``results`` are what it is of; ``reference`` is the method that gains are counted from, empty when the ranking is by mean;
    ``message`` replaces it all when there is no figure.
    """

    results: Results = field(repr=False, compare=False)
    reference: str
    reference_display: str
    standings: tuple[Standing, ...]
    pairs: int
    caption: str
    notes: tuple[str, ...]
    command: str
    results_hash: str
    message: str = ""
    students: tuple[StudentCost, ...] = ()
    #: For how many methods p is corrected: those that the store holds for these pairs and seeds, shown or not.
    tests: int = 0
    #: Methods whose gain over the reference was declared before its results; p of these is corrected over them alone.
    declared: tuple[str, ...] = ()
    #: Published figures: without rank, interval and test, each with the title of its row; and where they come from.
    published: tuple[tuple[Standing, Header], ...] = ()
    sources: tuple[Note, ...] = ()
    claims: tuple[Mapping[str, Any], ...] = ()

    @property
    def metric(self) -> Metric:
        return self.results.metric

    @property
    def decimals(self) -> int:
        """One more than in tables: gains are smaller than figures."""
        return self.metric.decimals + 1

    def score(self, standing: Standing) -> float:
        """What methods are ordered by: the gain, or the mean where there is nothing to count gains from."""
        return standing.gain if self.reference else standing.mean
