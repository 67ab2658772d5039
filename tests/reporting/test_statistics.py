"""Intervals, tests and counts, against values by hand and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from kdbench.reporting import statistics
from kdbench.reporting.statistics import CrossedMean, better_equal_worse, crossed_mean, shrunken


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


def test_zeros_are_ranked_and_then_dropped_by_hand():
    # The others have ranks 4, 5, 6, -7; of their 16 signs five give 7 or less: none, 4, 5, 6, 7. Smallest: 2 / 16.
    assert statistics.signed_rank([0, 0, 0, 1, 2, 3, -4]) == pytest.approx((0.625, 0.125))


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


def test_the_crossed_mean_of_a_whole_grid_is_that_of_the_analysis_of_variance() -> None:
    """Balanced two-way layout (Searle, Casella and McCulloch 1992, table 4.11), effects large enough for no estimate to be negative."""
    draw = np.random.default_rng(1)
    a, b = 5, 6
    grid = draw.normal(0, 2, (a, 1)) + draw.normal(0, 2, (1, b)) + draw.normal(0, 1, (a, b))
    rows, columns = grid.mean(axis=1, keepdims=True), grid.mean(axis=0, keepdims=True)
    of_rows = b * ((rows - grid.mean()) ** 2).sum() / (a - 1)
    of_columns = a * ((columns - grid.mean()) ** 2).sum() / (b - 1)
    rest = ((grid - rows - columns + grid.mean()) ** 2).sum() / ((a - 1) * (b - 1))
    parts = [(of_rows - rest) / b / a, (of_columns - rest) / a / b, rest / (a * b)]
    assert min(parts) > 0
    teachers, students = zip(*((f"t{i}", f"s{j}") for i in range(a) for j in range(b)), strict=True)
    found = crossed_mean(grid.ravel(), teachers, students)
    assert found is not None
    assert (found.mean, found.variance) == (pytest.approx(grid.mean()), pytest.approx(sum(parts)))
    freedom = sum(parts) ** 2 / (
        parts[0] ** 2 / (a - 1) + parts[1] ** 2 / (b - 1) + parts[2] ** 2 / (a * b - a - b + 1)
    )
    assert found.freedom == pytest.approx(max(freedom, 4))
    low, high = found.interval()
    half = stats.t.ppf(0.975, found.freedom) * found.variance**0.5
    assert (low, high) == (pytest.approx(grid.mean() - half), pytest.approx(grid.mean() + half))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(grid.mean()) / found.variance**0.5, found.freedom))
    assert crossed_mean(grid[:3].ravel(), teachers[: 3 * b], students[: 3 * b]) is None


def test_shrinking_draws_towards_the_middle_as_far_as_chance_spreads() -> None:
    noise = [CrossedMean(mean, 1.0, 5.0) for mean in (-1.0, 0.0, 1.0)]
    assert shrunken(noise) == [0.0, 0.0, 0.0]  # a variance of 1 is what chance gives
    apart = [CrossedMean(mean, 1.0, 5.0) for mean in (-2.0, 0.0, 2.0)]
    assert shrunken(apart) == pytest.approx([-1.5, 0.0, 1.5])  # (4 - 1) / 4


def test_chances_of_better_equal_and_worse() -> None:
    for values, wanted in (([1.0] * 9, 0), ([0.05] * 9, 1), ([-1.0] * 9, 2)):
        chances = better_equal_worse(values, 0.2)
        assert sum(chances) == pytest.approx(1)
        assert chances[wanted] > 0.95
    mirrored = better_equal_worse([1.0, -0.5, 0.3, -0.1], 0.2), better_equal_worse([-1.0, 0.5, -0.3, 0.1], 0.2)
    assert mirrored[0] == pytest.approx(mirrored[1][::-1], abs=0.02)
