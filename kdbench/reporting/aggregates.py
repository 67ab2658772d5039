"""Aggregates over pairs and seeds that rliable made usual (Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021, arXiv:2108.13264): probability of improvement, interquartile mean, performance profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdbench.reporting.statistics import RESOLUTION

#: One array of seeds for each pair.
ByPair = Sequence[np.ndarray]


def probability_of_improvement(first: ByPair, second: ByPair) -> float:
    """How often a run of the first beats a run of the second on the same pair (section 4.3, P(X > Y)).

    1/M sum_m 1/(N_m K_m) sum_i sum_j S(x_mi, y_mj) over M pairs and all two-sets of their seeds; S is 1 for larger, 1/2 for equal, 0 for
    smaller: the mean over pairs of Mann and Whitney's U / (N K).

    Args:
        first, second: figures, larger is better, for the same pairs; no array is empty.
    """
    shares = []
    for x, y in zip(first, second, strict=True):
        apart = np.subtract.outer(x, y)
        shares.append(((apart > RESOLUTION) + 0.5 * (np.abs(apart) <= RESOLUTION)).mean())
    return float(np.mean(shares))


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of all runs of all pairs together (section 4.3, IQM: a mean trimmed by 25 % at both ends).

    As ``scipy.stats.trim_mean(values, 0.25)``: of n values, int(n / 4) are left out at each end.
    """
    ordered = np.sort(values, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def performance_profile(gains: ByPair, levels: np.ndarray) -> np.ndarray:
    """Share of runs above each level (section 4.2, eq. for the run-score distribution): 1/M sum_m 1/N_m sum_n [x_mn > level]."""
    return np.mean([(pair[:, None] > levels).mean(axis=0) for pair in gains], axis=0)
