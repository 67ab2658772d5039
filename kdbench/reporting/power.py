"""The gain that a design can show: of so many pairs of nets, seeds and tested methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kdbench.reporting.statistics import ALPHA, LEAST_NETS, crossed_freedom

#: Standard deviations in points, of an effect of teachers or students, of a pair, of one seed, as ``python -m benchmarks.inference``
#: draws them.
SPREADS = {"net": 0.5, "pair": 0.5, "seed": 0.3}
#: Probability with which a gain is to be found.
POWER = 0.8
_DRAWS = 2000
#: Points beyond which nothing is looked for.
_LARGEST = 20.0


def detectable_gain(pairs: Sequence[tuple[str, str]], seeds: int, tests: int) -> float | None:
    """The gain in points that the leaderboard's test calls significant with probability ``POWER``, were noise that of ``SPREADS``.

    Of enough nets (``crossed_mean``): (t_{1 - ALPHA / (2 tests)} + t_{POWER}) times the standard error of the mean gain, in which teachers,
    students, pairs and seeds, the reference's too, have their parts (Cohen 1988, ch. 2, with Student's t). Of fewer: by drawing gains for
    the exact signed-rank test. The level is Bonferroni's, which Holm's correction never falls below.

    Args:
        pairs: (teacher, student), each once.
        seeds: of each pair.
        tests: methods that are tested.

    Returns:
        None where no gain, however large, can become significant.
    """
    codes = [np.unique(names, return_inverse=True)[1] for names in zip(*pairs, strict=True)]
    counts = [np.bincount(code) for code in codes]
    alone = SPREADS["pair"] ** 2 + 2 * SPREADS["seed"] ** 2 / seeds
    level = ALPHA / tests
    if min(map(len, counts)) < LEAST_NETS:
        return _by_ranks(codes, alone, level)
    from scipy.special import stdtrit

    by_net = [SPREADS["net"] ** 2 * float(((count / len(pairs)) ** 2).sum()) for count in counts]
    variance = sum(by_net) + alone / len(pairs)
    freedom = crossed_freedom(variance, by_net, counts)
    return float((stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, POWER)) * math.sqrt(variance))


def _by_ranks(codes: Sequence[np.ndarray], alone: float, level: float) -> float | None:
    """By bisection over draws of gains, the same for every candidate."""
    size = codes[0].size
    critical = _critical_sum(size, level)
    if critical < 0:
        return None
    rng = np.random.default_rng(0)
    noise = rng.normal(0, math.sqrt(alone), (_DRAWS, size))
    for code in codes:
        noise += rng.normal(0, SPREADS["net"], (_DRAWS, code.max() + 1))[:, code]

    def found(gain: float) -> float:
        gains = noise + gain
        ranks = np.abs(gains).argsort(axis=1).argsort(axis=1) + 1
        return float((np.where(gains < 0, ranks, 0).sum(axis=1) <= critical).mean())

    low, high = 0.0, _LARGEST
    if found(high) < POWER:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return high


def _critical_sum(size: int, level: float) -> int:
    """The largest sum of the ranks of one sign whose exact two-sided p is at most ``level``; -1 where even zero is not."""
    ways = np.ones(1)
    for rank in range(1, size + 1):
        ways = np.convolve(ways, np.r_[1.0, np.zeros(rank - 1), 1.0]) / 2
    return int((2 * ways.cumsum() <= level * (1 + 1e-9)).sum()) - 1
