"""Average ranks of methods, and which of them the pairs cannot tell apart: what a critical-difference diagram shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdbench.reporting.frame import Results, common_pairs
from kdbench.reporting.statistics import ALPHA, holm, ranks_in_rows, signed_rank


@dataclass(frozen=True)
class RankDiagram:
    """Methods from best to worst.

    Attributes:
        methods, titles: names and how they are shown.
        ranks: average rank over ``pairs`` pairs, 1 for the best.
        cliques: (first, last) positions of the largest groups of neighbours of which no two differ significantly.
        p_holm: (k, k), Wilcoxon's signed-rank test of each two methods, with Holm's correction over all of them.
        smallest_p: the smallest corrected p that so many pairs and methods can give.
    """

    methods: tuple[str, ...]
    titles: tuple[str, ...]
    ranks: tuple[float, ...]
    cliques: tuple[tuple[int, int], ...]
    p_holm: np.ndarray
    smallest_p: float
    pairs: int

    @property
    def attainable(self) -> bool:
        """Whether any difference could have been significant."""
        return self.smallest_p <= ALPHA


def rank_diagram(results: Results) -> RankDiagram | None:
    """Rank the competing methods over the pairs that all of them have; None when fewer than two can be compared.

    Cliques follow Benavoli, Corani and Mangili (JMLR 17, 2016): Wilcoxon's signed-rank test on the two methods alone,
    Holm's correction over all two-sets, in place of Nemenyi's mean-rank test, whose verdict on two methods depends on
    which others are in the pool. (The correction still counts the others.)
    """
    info = results.method_info
    compared, _ = common_pairs(results.means(), results.competing)
    means = results.common_means(compared) if len(compared) > 1 else pd.DataFrame()
    if means.empty:
        return None
    average = ranks_in_rows(means.to_numpy(), results.metric.higher_is_better).mean(axis=0)
    order = sorted(range(len(compared)), key=lambda i: (average[i], compared[i]))
    wide = results.by_seed([compared[i] for i in order]).loc[[*means.index]]
    k = len(order)
    first, second = np.triu_indices(k, 1)
    p = []
    for i in range(k - 1):  # each two over the seeds that both have
        apart = wide.iloc[:, i + 1 :].rsub(wide.iloc[:, i], axis=0).groupby("pair").mean()
        p += [signed_rank(apart[name].dropna().to_numpy())[0] for name in apart]
    p = holm(p)
    matrix = np.ones((k, k))
    matrix[first, second] = matrix[second, first] = p
    return RankDiagram(
        methods=tuple(compared[i] for i in order),
        titles=tuple(str(info[compared[i]]["title"]) for i in order),
        ranks=tuple(float(average[i]) for i in order),
        cliques=cliques(matrix > ALPHA),
        p_holm=matrix,
        smallest_p=min(1.0, 2.0 ** (1 - len(means)) * len(p)),
        pairs=len(means),
    )


def cliques(alike: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Largest runs first..last (two or more) in which every two are alike; a run inside another is left out.

    Args:
        alike: (k, k) bool, symmetric, in the order of the ranks.
    """
    found: list[tuple[int, int]] = []
    for start in range(len(alike)):
        end = start
        while end + 1 < len(alike) and alike[start : end + 1, end + 1].all():
            end += 1
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return tuple(found)
