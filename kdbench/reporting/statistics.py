"""Intervals and tests over pairs, compared with scipy.stats in the tests: importing that costs half a second."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

Floats: TypeAlias = "Sequence[float] | np.ndarray"

#: Differences closer than this are one value: what is left of rounding when percentages are subtracted.
RESOLUTION = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence limits; the limits are NaN with fewer than two values."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test: two-sided ``p``, non-zero differences ``n``, the smallest p that ``n`` can give."""

    p: float
    n: int
    smallest: float


def mean_interval(values: Floats, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values (finite; NaN is refused).

    Raises:
        ValueError: for a value that is not finite.
    """
    data = _finite(values)
    if data.size == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, np.nan, np.nan, 1)
    from scipy.special import stdtrit

    half = float(stdtrit(data.size - 1, 0.5 + level / 2) * data.std(ddof=1) / math.sqrt(data.size))
    return Interval(mean, mean - half, mean + half, data.size)


def signed_rank(differences: Floats) -> SignedRank:
    """Wilcoxon's signed-rank test that differences are symmetric about zero (Wilcoxon 1945), two-sided and exact.

    Zeros are dropped, as Wilcoxon did. The distribution over all signs is counted, given the ranks that occurred, so that
    ties in size are right too.

    Raises:
        ValueError: for a difference that is not finite.
    """
    data = np.round(_finite(differences) / RESOLUTION) * RESOLUTION
    data = data[data != 0]
    if data.size == 0:
        return SignedRank(1.0, 0, 1.0)
    smallest = min(1.0, 2.0 ** (1 - data.size))
    ranks = ranks_in_rows(np.abs(data)[None], higher_is_better=False)[0]
    p = _sign_flip_p(ranks, data > 0)
    return SignedRank(p, int(data.size), smallest)


def holm(p_values: Floats) -> list[float]:
    """Holm's step-down correction (Holm 1979); the order of the arguments is kept."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate((p.size - np.arange(p.size)) * p[order]))
    corrected = np.empty_like(stepped)
    corrected[order] = stepped
    return [float(value) for value in corrected]


def wins_ties_losses(gains: Floats, band: float) -> tuple[int, int, int]:
    """Count gains above ``band``, within it (its edge included), and below ``-band``."""
    data = np.asarray(gains, float)
    wins = int((data > band + RESOLUTION).sum())
    losses = int((data < -band - RESOLUTION).sum())
    return wins, int(data.size - wins - losses), losses


def leave_one_out(gains: Floats, *groupings: Sequence[Hashable]) -> tuple[float, float]:
    """Smallest and largest mean when all values of one group are left out, over all groups of all groupings.

    NaN twice when nothing can be left out (every grouping has one group).
    """
    data = np.asarray(gains, float)
    means = []
    for grouping in groupings:
        labels = list(grouping)
        for group in set(labels):
            kept = np.array([label != group for label in labels], bool)
            if kept.any():
                means.append(float(data[kept].mean()))
    return (min(means), max(means)) if means else (np.nan, np.nan)


def ranks_in_rows(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Rank the columns within each row, 1 for the best; equal values share the mean of their places. No NaN allowed."""
    return pd.DataFrame(np.round(_finite(values) / RESOLUTION)).rank(axis=1, ascending=not higher_is_better).to_numpy()


def _sign_flip_p(ranks: np.ndarray, positive: np.ndarray) -> float:
    """Two-sided p of the sum of positive ranks when each sign is a fair coin: counts the sign patterns of each sum."""
    doubled = np.round(2 * ranks).astype(int)  # mean ranks of ties are halves; doubled they are whole numbers
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: ways.size - rank]
        ways = (ways + shifted) / 2
    total = int(doubled[positive].sum())
    nearer = min(total, int(doubled.sum()) - total)  # the distribution is symmetric: the lower tail serves for both
    return min(1.0, 2 * float(ways[: nearer + 1].sum()))


def _finite(values: Floats) -> np.ndarray:
    data = np.asarray(values, float)
    if not np.isfinite(data).all():
        raise ValueError(f"expected finite values, got {data[~np.isfinite(data)][0]}")
    return data
