"""Aggregates over pairs and seeds, against scipy and values by hand; gains at equal hours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.inference import profile_band
from kdbench.reporting import aggregates
from kdbench.reporting.frame import collect
from kdbench.reporting.hours import gains_at_equal_hours, value_within, with_equal_hours
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.plots.runs import profile_gains
from kdbench.reporting.plots.stored import curves_by_hours, learning_curves
from kdbench.reporting.statistics import crossed_mean
from kdbench.reporting.text.leaderboard import leaderboard_table, leaderboard_text
from kdbench.store.reading import Outcomes
from tests.reporting import factory
from tests.reporting.stored import write_store

P1, P2, P3 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny", "swin_tiny--resmlp_12"


def test_the_probability_of_improvement_is_the_mean_of_mann_and_whitneys_u():
    draw = np.random.default_rng(0)
    first = [draw.integers(0, 6, 4).astype(float) for _ in range(5)]
    second = [draw.integers(0, 6, 3).astype(float) for _ in range(5)]
    expected = [stats.mannwhitneyu(x, y).statistic / (x.size * y.size) for x, y in zip(first, second, strict=True)]
    assert aggregates.probability_of_improvement(first, second) == pytest.approx(np.mean(expected))
    assert aggregates.probability_of_improvement(first, first) == pytest.approx(0.5)


@pytest.mark.parametrize("size", range(1, 14))
def test_the_interquartile_mean_is_scipys_trimmed_mean(size):
    values = np.random.default_rng(size).normal(size=size)
    assert aggregates.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_a_performance_profile_counts_runs_within_pairs_first():
    gains = [np.array([1.0, 3.0]), np.array([2.0])]
    levels = np.array([0.0, 1.0, 1.5, 2.0, 3.0])
    assert aggregates.performance_profile(gains, levels).tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]
    assert profile_band(gains, levels, ["a", "b"], ["x", "y"]) is None


def test_a_profiles_band_is_the_interval_of_a_leaderboard_at_each_level_on_the_scale_of_arcsines():
    pairs = [(teacher, student) for teacher in "abcd" for student in "wxyz"]
    teachers, students = zip(*pairs, strict=True)
    gains = [*np.random.default_rng(0).normal(0.5, 1, (16, 3))]
    levels = np.array([-9.0, 0.0, 0.7])
    band = profile_band(gains, levels, teachers, students)
    assert band is not None
    shares = [(pair > 0.7).mean() for pair in gains]
    mean = crossed_mean(shares, teachers, students)
    assert mean is not None
    # d arcsin(sqrt(s)) = ds / (2 sqrt(s (1 - s)))
    low, high = mean.interval()
    half = (high - low) / 2 / (2 * np.sqrt(mean.mean * (1 - mean.mean)))
    middle = np.arcsin(np.sqrt(mean.mean))
    assert (band[0][2], band[1][2]) == pytest.approx((np.sin(middle - half) ** 2, np.sin(middle + half) ** 2))
    # no run of any pair is below: as of 16 independent pairs
    assert (band[0][0], band[1][0]) == pytest.approx((np.cos(stats.t.ppf(0.975, 15) / 8) ** 2, 1.0))


def test_a_leaderboards_aggregates_are_over_the_seeds_that_both_have():
    figures = {P1: {"kd": [60.0, 70.0, 80.0], "ofa": [61.0, 75.0]}, P2: {"kd": [50.0], "ofa": [50.0]}}
    board = build_leaderboard(factory.frame(figures))
    ofa = next(s for s in board.standings if s.method == "ofa")
    # P1: 61 > 60; 61 < 70; 75 > 60; 75 > 70: 3 of 4; P2: equal. The gains are 1, 5, 0.
    assert ofa.improvement == pytest.approx((0.75 + 0.5) / 2)
    assert ofa.iqm == pytest.approx(2.0)
    assert {"improvement", "iqm", "equal_hours"} <= {*leaderboard_table(board).records}
    assert "IQM" not in leaderboard_text(board)
    profile = profile_gains(board.results, board)["ofa"]
    assert {pair: gains.tolist() for pair, gains in profile.items()} == {P1: [1.0, 5.0], P2: [0.0]}
    lower = build_leaderboard(factory.frame(figures), metric="nll")  # in the factory a point of top-1 is 0.01 nats less
    assert next(s for s in lower.standings if s.method == "ofa").improvement == pytest.approx((0.75 + 0.5) / 2)


def test_a_gain_at_equal_hours_is_that_of_the_epochs_that_fit(tmp_path):
    frame = factory.frame({P1: {"kd": [80.0], "ofa": [90.0], "dkd": [85.0], "crd": [90.0], "tas": [90.0]}})
    seconds = {"kd": 3600.0, "ofa": 7200.0, "dkd": 1800.0, "crd": 3600.0, "tas": 3600 * 5.1}
    frame["train_seconds"] = frame["method"].map(seconds)
    frame.loc[frame["method"] == "crd", "device"] = "another"
    frame = write_store(tmp_path, frame, epochs=5)
    outcomes, results = Outcomes(tmp_path), collect(frame)
    paths = frame.set_index("method")["path"]
    found = gains_at_equal_hours(results, outcomes, "kd")
    # OFA takes twice as long: two of its five epochs fit; DKD half as long: all five; CRD ran elsewhere; of FBT not one is over.
    assert found["ofa"] == (pytest.approx(outcomes.history(paths["ofa"])["top1"][1] - 80.0), 1)
    assert found["dkd"] == (pytest.approx(outcomes.history(paths["dkd"])["top1"][4] - 80.0), 1)
    assert not {"crd", "tas"} & {*found}
    board = with_equal_hours(build_leaderboard(frame), outcomes)
    assert next(s.equal_hours for s in board.standings if s.method == "ofa") == found["ofa"][0]
    assert gains_at_equal_hours(collect(frame, select="best"), outcomes, "kd") == {}
    curves = curves_by_hours(results, learning_curves(results, board, outcomes))[P1]
    assert curves["ofa"].epochs == pytest.approx(np.arange(1, 6) * 2 / 5)


def test_the_value_within_a_share_of_the_time_is_the_last_whole_epochs():
    history = {"epoch": [2, 4, 6], "top1": [10.0, 20.0, 30.0]}
    shares = [0.3, 1 / 3, 0.99, 1.0, 5.0]
    assert [value_within(history, "top1", share) for share in shares] == pytest.approx(
        [np.nan, 10.0, 20.0, 30.0, 30.0], nan_ok=True
    )
    assert np.isnan(value_within(history, "nll", 1.0))
