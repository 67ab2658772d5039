"""Intervals and tests over pairs, compared with scipy.stats in the tests: importing that costs half a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Floats: TypeAlias = "Sequence[float] | np.ndarray"

#: Level of significance.
ALPHA = 0.05
#: Teachers, and students, below which no interval over pairs is given.
LEAST_NETS = 4
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
    return t_interval_of(float(data.mean()), float(data.std(ddof=1)), data.size)


def t_interval_of(mean: float, sd: float, n: int) -> tuple[float, float]:
    """``t_interval`` of n values with this mean and sample standard deviation."""
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975) * sd / math.sqrt(n))
    return mean - half, mean + half


@dataclass(frozen=True)
class CrossedMean:
    """A mean over pairs, with the variance that comes from drawing teachers, students and pairs anew.

    Attributes:
        mean: of the values.
        variance: of the mean.
        freedom: degrees of freedom of that variance.
    """

    mean: float
    variance: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + level) / 2) * math.sqrt(self.variance))
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p that the mean is zero: below 1 - level exactly where the interval of that level leaves zero out."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.mean) / math.sqrt(self.variance)))


def crossed_mean(values: Floats, teachers: Sequence[str], students: Sequence[str]) -> CrossedMean | None:
    """Mean of values that share teachers and students: value = mean + effect of the teacher + of the student + of the pair.

    The three variances are estimated without bias from the squared differences of pairs that share a teacher, a student, or
    neither (method of moments; Searle, Casella and McCulloch 1992, ch. 5); the variance of the mean follows from how often each
    teacher and student occurs. It is never taken smaller than 0.85 of that of independent values, since the estimate can be negative.
    Degrees of freedom: Satterthwaite 1946. ``python -m benchmarks.inference`` measures what this covers.

    Returns:
        None with fewer than ``LEAST_NETS`` teachers or students: nothing that covers what it says can be had from so few.

    Raises:
        ValueError: for a value that is not finite.
    """
    data = _finite(values)
    of_teacher, of_student = (np.unique(np.asarray(names), return_inverse=True)[1] for names in (teachers, students))
    counts = [np.bincount(codes) for codes in (of_teacher, of_student)]
    if min(len(count) for count in counts) < LEAST_NETS:
        return None
    n = data.size
    same_teacher, same_student = (codes[:, None] == codes for codes in (of_teacher, of_student))
    squares = (data[:, None] - data) ** 2 / 2
    shares = [same_teacher & ~same_student, same_student & ~same_teacher, ~same_teacher & ~same_student]
    if not all(share.any() for share in shares):
        return None
    of_one_teacher, of_one_student, apart = (float(squares[share].mean()) for share in shares)
    parts = [  # of the variance of the mean: teachers, students, pairs
        (apart - of_one_teacher) * float(((counts[0] / n) ** 2).sum()),
        (apart - of_one_student) * float(((counts[1] / n) ** 2).sum()),
        (of_one_teacher + of_one_student - apart) / n,
    ]
    variance = max(sum(parts), 0.85 * float(data.var(ddof=1)) / n)
    if variance <= 0:
        return None
    by_net = [min(max(part, 0.0), variance) for part in parts[:2]]
    return CrossedMean(float(data.mean()), variance, crossed_freedom(variance, by_net, counts))


def crossed_freedom(variance: float, by_net: Sequence[float], counts: Sequence[np.ndarray]) -> float:
    """Satterthwaite's degrees of freedom of the variance of a mean over pairs.

    Args:
        variance: of the mean.
        by_net: its parts from teachers and from students; the pairs' own is the rest.
        counts: in how many pairs each teacher is, and each student.
    """
    rest = max(variance - sum(by_net), 0.0)
    spread = sum(part**2 / (len(count) - 1) for part, count in zip(by_net, counts, strict=True))
    spread += rest**2 / max(int(counts[0].sum()) - sum(map(len, counts)) + 1, 1)
    return max(variance**2 / spread, min(map(len, counts)) - 1)


def shrunken(means: Sequence[CrossedMean]) -> list[float]:
    """Means drawn towards their common mean as far as chance alone would spread them (empirical Bayes: Efron and Morris 1973)."""
    values = np.array([mean.mean for mean in means])
    variances = np.array([mean.variance for mean in means])
    if values.size < 3:
        return values.tolist()
    true = max(0.0, float(values.var(ddof=1) - variances.mean()))
    return (values.mean() + true / (true + variances) * (values - values.mean())).tolist()


def better_equal_worse(values: Floats, band: float) -> tuple[float, float, float]:
    """Probabilities that a value of another pair like these is above ``band``, within it, or below (Bayesian signed-rank test).

    Benavoli, Corani, Demsar and Zaffalon (JMLR 18, 2017), section 4.2: Dirichlet weights on the pairs and on one value of zero with
    weight 0.5, 20,000 draws with a fixed seed; of each draw, which of the three regions has most of the mass of the means of two.
    Pairs count as independent.

    Raises:
        ValueError: for a value that is not finite.
    """
    data = np.concatenate([[0.0], _finite(values)])
    sums = data[:, None] + data
    weights = np.random.default_rng(20_170_101).dirichlet([0.5, *[1.0] * (data.size - 1)], 20_000)
    inside = np.abs(sums) <= 2 * band + RESOLUTION
    regions = [(sums > 0) & ~inside, inside, (sums < 0) & ~inside]
    masses = np.stack([((weights @ region) * weights).sum(axis=1) for region in regions])
    shares = np.bincount(masses.argmax(axis=0), minlength=3) / weights.shape[0]
    return float(shares[0]), float(shares[1]), float(shares[2])


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
    import pandas as pd

    return pd.DataFrame(np.round(_finite(values) / RESOLUTION)).rank(axis=1, ascending=not higher_is_better).to_numpy()


def _finite(values: Floats) -> np.ndarray:
    data = np.asarray(values, float)
    if not np.isfinite(data).all():
        raise ValueError(f"expected finite values, got {data[~np.isfinite(data)][0]}")
    return data
