"""Intervals, tests and counts, against values by hand and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from kdbench.reporting import statistics


def test_the_interval_is_students_t():
    half = 4.302652729749462 * np.sqrt(4 / 3) / np.sqrt(3)  # t(0.975, 2) from a table; sd of (1, -1, 1) is sqrt(4/3)
    assert statistics.t_interval([1.0, -1.0, 1.0]) == pytest.approx((1 / 3 - half, 1 / 3 + half))


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(1, 2, 11)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.t_interval(values) == pytest.approx((expected.low, expected.high))


def test_few_or_equal_values_give_no_false_interval():
    one, none, equal = (statistics.t_interval(v) for v in ([2.0], [], [2.0, 2.0]))
    assert np.isnan([*one, *none]).all()
    assert equal == (2.0, 2.0)


@pytest.mark.parametrize("function", [statistics.t_interval, statistics.signed_rank])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(function, bad):
    with pytest.raises(ValueError, match="finite"):
        function([1.0, bad])


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 12, 20])
def test_without_ties_the_signed_rank_test_is_scipys_exact_one(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    assert statistics.signed_rank(values)[0] == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, abs=1e-12)


@pytest.mark.parametrize(
    "values", [[1, 1, 1, -1, 2], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1, -1], [3, 3, -3, 1, 0, 2], [0.1 + 0.2, -0.3, 1, 2]]
)
def test_with_ties_the_signed_rank_test_counts_all_signs(values):
    kept = np.round(np.array([v for v in values if v != 0], float), 6)
    ranks = stats.rankdata(np.abs(kept))
    seen = ranks[kept > 0].sum()
    sums = np.array([ranks[np.array(s)].sum() for s in itertools.product([False, True], repeat=kept.size)])
    expected = min(1.0, 2 * min((sums <= seen + 1e-9).mean(), (sums >= seen - 1e-9).mean()))
    assert statistics.signed_rank(values)[0] == pytest.approx(expected)


def test_the_smallest_possible_p_is_reached_by_differences_of_one_sign():
    for n in range(1, 12):
        p, smallest = statistics.signed_rank(np.arange(1.0, n + 1))
        assert p == pytest.approx(smallest) == pytest.approx(min(1.0, 2 * 0.5**n))


def test_no_difference_at_all_gives_p_one():
    assert statistics.signed_rank([0.0, 0.0, 1e-13]) == (1.0, 1.0)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04, made to rise: 0.04, 0.06, 0.06, 0.06.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_edge_of_the_tie_band_is_a_tie():
    gains = [0.3, 93.4 - 93.2, 0.0, -0.2, -0.21]
    assert statistics.wins_ties_losses(gains, 0.2) == (1, 3, 1)
    assert statistics.wins_ties_losses([0.1, 0.0, -0.1], 0.0) == (1, 1, 1)


def test_leaving_out_a_student_or_a_teacher_by_hand():
    gains, students, teachers = [3.0, 2.5, -1.0], ["a", "b", "c"], ["t", "u", "t"]
    assert statistics.leave_one_out(gains, students, teachers) == (0.75, 2.75)
    assert np.isnan(statistics.leave_one_out([1.0, 2.0], ["a", "a"], ["t", "t"])).all()


def test_equal_values_share_the_mean_of_their_places():
    values = np.array([[84.0, 85.0, 87.0, 80.0], [65.0, 66.0, 64.0, 66.0]])
    assert statistics.ranks_in_rows(values, True).tolist() == [[3, 2, 1, 4], [3, 1.5, 4, 1.5]]
    assert statistics.ranks_in_rows(values, False).tolist() == [[2, 3, 4, 1], [2, 3.5, 1, 3.5]]
    assert (statistics.ranks_in_rows(values, True) == stats.rankdata(-values, axis=1)).all()
