"""Intervals and tests over pairs, compared with scipy.stats in the tests: importing that costs half a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

Floats: TypeAlias = "Sequence[float] | np.ndarray"

#: Level of significance.
ALPHA = 0.05
#: Differences closer than this are one value: what is left of rounding when percentages are subtracted.
RESOLUTION = 1e-9


def t_interval(values: Floats) -> tuple[float, float]:
    """Student's t interval of the mean of independent values, 95 %; NaN twice with fewer than two values.

    Raises:
        ValueError: for a value that is not finite.
    """
    data = _finite(values)
    if data.size < 2:
        return np.nan, np.nan
    from scipy.special import stdtrit

    mean = float(data.mean())
    half = float(stdtrit(data.size - 1, 0.975) * data.std(ddof=1) / math.sqrt(data.size))
    return mean - half, mean + half


def signed_rank(differences: Floats) -> tuple[float, float]:
    """Wilcoxon's signed-rank test that differences are symmetric about zero (Wilcoxon 1945), two-sided and exact.

    Zeros take part in the ranking and are then dropped (Pratt 1959). The distribution over all signs of the others is counted,
    given the ranks that occurred, so that ties in size are right too.

    Returns:
        p, and the smallest p that so many differences other than zero can give.

    Raises:
        ValueError: for a difference that is not finite.
    """
    data = np.round(_finite(differences) / RESOLUTION)
    if not data.any():
        return 1.0, 1.0
    ranks = ranks_in_rows(np.abs(data)[None] * RESOLUTION, higher_is_better=False)[0]
    ranks, data = ranks[data != 0], data[data != 0]
    doubled = np.round(2 * ranks).astype(int)  # mean ranks of ties are halves; doubled they are whole numbers
    ways = np.zeros(doubled.sum() + 1)  # share of the sign patterns by the sum of positive ranks
    ways[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: ways.size - rank]
        ways = (ways + shifted) / 2
    total = int(doubled[data > 0].sum())
    nearer = min(total, int(doubled.sum()) - total)  # the distribution is symmetric: the lower tail serves for both
    return min(1.0, 2 * float(ways[: nearer + 1].sum())), min(1.0, 2.0 ** (1 - data.size))


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


def leave_one_out(gains: Floats, *groupings: Sequence[str]) -> tuple[float, float]:
    """Smallest and largest mean when all values of one group are left out, over all groups of all groupings.

    NaN twice when nothing can be left out (every grouping has one group).
    """
    data = np.asarray(gains, float)
    labels = [np.asarray(grouping) for grouping in groupings]
    means = [float(data[own != group].mean()) for own in labels for group in set(own) if (own != group).any()]
    return (min(means), max(means)) if means else (np.nan, np.nan)


def ranks_in_rows(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Rank the columns within each row, 1 for the best; equal values share the mean of their places. No NaN allowed."""
    return pd.DataFrame(np.round(_finite(values) / RESOLUTION)).rank(axis=1, ascending=not higher_is_better).to_numpy()


def _finite(values: Floats) -> np.ndarray:
    data = np.asarray(values, float)
    if not np.isfinite(data).all():
        raise ValueError(f"expected finite values, got {data[~np.isfinite(data)][0]}")
    return data
