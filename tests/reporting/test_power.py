"""The gain that a design can show: by hand, against scipy, and against what the committed simulation study found."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kdbench.reporting import power
from kdbench.reporting.statistics import LEAST_NETS
from kdbench.suite.suite import load_suite, split_pair

STUDY = json.loads((Path(__file__).parents[2] / "results/benchmarks/inference.json").read_text())
NINE = [*itertools.product("abc", "xyz")]


def test_of_enough_nets_it_is_students_t_times_the_standard_error():
    pairs = [*itertools.product("abcd", "vwxyz")]
    by_teacher, by_student = 0.25 / 4, 0.25 / 5
    own = (0.25 + 2 * 0.09 / 3) / 20
    variance = by_teacher + by_student + own
    freedom = variance**2 / (by_teacher**2 / 3 + by_student**2 / 4 + own**2 / 12)
    t = stats.t(freedom)
    expected = (t.ppf(1 - 0.05 / 2 / 7) + t.ppf(0.8)) * np.sqrt(variance)
    assert power.detectable_gain(pairs, 3, 7) == pytest.approx(expected)
    # more seeds, fewer tests: a smaller gain is found
    assert power.detectable_gain(pairs, 5, 7) < expected
    assert power.detectable_gain(pairs, 3, 2) < expected


@pytest.mark.parametrize("suite", ["cifar100", "imagenet1k", "cifar100-classic"])
def test_the_power_that_it_rests_on_is_what_the_study_found(suite, monkeypatch):
    pairs = [split_pair(pair) for pair in load_suite(suite).pairs]
    assert min(len({*names}) for names in zip(*pairs, strict=True)) >= LEAST_NETS
    assert STUDY["spreads"] == power.SPREADS
    found = STUDY["rows"][f"{suite}, students and teachers"]["found"]
    monkeypatch.setattr(power, "POWER", found)
    assert power.detectable_gain(pairs, STUDY["seeds"], 1) == pytest.approx(STUDY["gain"], abs=0.15)


def test_of_few_nets_it_is_the_signed_rank_tests_by_drawing():
    gain = power.detectable_gain(NINE, 3, 1)
    assert gain is not None
    rng = np.random.default_rng(5)
    draws = rng.normal(gain, np.sqrt(0.25 + 2 * 0.09 / 3), (400, 3, 3))
    draws += rng.normal(0, 0.5, (400, 3, 1)) + rng.normal(0, 0.5, (400, 1, 3))
    p = stats.wilcoxon(draws.reshape(400, 9), axis=1, method="exact").pvalue
    assert np.mean(p <= 0.05) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("pairs", "tests", "attainable"), [(5, 1, False), (6, 1, True), (6, 2, False), (9, 12, True), (9, 13, False)]
)
def test_where_nothing_can_become_significant_there_is_none(pairs, tests, attainable):
    # 2^(1 - n) * tests <= 0.05
    assert (power.detectable_gain(NINE[:pairs], 3, tests) is not None) == attainable
