"""Two methods within one pair: against values by hand, scipy, and drawing the images one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.inference import within_pair
from kdbench.reporting import paired
from kdbench.reporting.frame import collect
from kdbench.store.reading import Outcomes
from tests.reporting import factory
from tests.reporting.stored import write_store

PAIR = "swin_tiny--resnet18"


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """(1, N): right or wrong on images of which so many are right for both, only the first, only the second, neither."""
    a = [1] * both + [1] * first + [0] * second + [0] * neither
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return np.array([a], bool), np.array([b], bool)


def test_one_seeds_sign_test_is_mcnemars_the_exact_binomial_of_the_discordant_images():
    # Two-sided: 2 x (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024.
    assert paired.sign_test_over_images(*outcomes(80, 8, 2, 10)) == pytest.approx(112 / 1024)


def test_the_sign_test_does_not_depend_on_order_of_methods_or_on_concordant_images():
    a, b = outcomes(5, 9, 3, 2)
    p = paired.sign_test_over_images(a, b)
    assert p == paired.sign_test_over_images(b, a) == paired.sign_test_over_images(*outcomes(5000, 9, 3, 900))
    assert p == pytest.approx(stats.binomtest(9, 12).pvalue)


def test_methods_that_never_or_equally_differ_have_p_one():
    assert paired.sign_test_over_images(*outcomes(10, 0, 0, 5)) == 1.0
    assert paired.sign_test_over_images(*outcomes(10, 4, 4, 5)) == 1.0


def test_repeating_a_seed_does_not_make_a_difference_more_certain():
    once = outcomes(50, 15, 6, 9)
    thrice = tuple(np.repeat(x, 3, axis=0) for x in once)
    assert paired.sign_test_over_images(*thrice) == pytest.approx(paired.sign_test_over_images(*once))
    assert paired.bootstrap_difference(*thrice) == pytest.approx(paired.bootstrap_difference(*once))


def test_seeds_that_disagree_about_an_image_cancel():
    first = np.array([[1, 1, 0], [0, 1, 0]], bool)
    second = np.array([[0, 0, 0], [1, 0, 0]], bool)
    # Image 0: one seed each way. Image 1 favours the first in both. Image 2: no favourite. One image decides: p = 1.
    assert paired.sign_test_over_images(first, second) == 1.0


def test_the_bootstrap_interval_agrees_with_drawing_images_one_by_one():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 400)) < 0.8, rng.random((2, 400)) < 0.75
    difference, low, high = paired.bootstrap_difference(a, b)
    per_image = (a.astype(float) - b).mean(axis=0)
    drawn = [100 * per_image[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert difference == pytest.approx(100 * (a.mean() - b.mean()))
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.2)


def test_the_bootstrap_interval_agrees_with_the_normal_one_for_many_images():
    a, b = outcomes(7000, 900, 600, 1500)
    difference, low, high = paired.bootstrap_difference(a, b)
    # A paired difference has variance (b + c - (b - c)^2 / n) / n^2.
    error = 1.959964 * np.sqrt(1500 - 300**2 / 10_000) / 100
    assert difference == pytest.approx(3.0)
    assert (low, high) == (pytest.approx(3 - error, abs=0.05), pytest.approx(3 + error, abs=0.05))


def test_the_bootstrap_is_the_same_each_time_and_turns_with_its_arguments():
    a, b = outcomes(50, 15, 6, 9)
    assert paired.bootstrap_difference(a, b) == paired.bootstrap_difference(a, b)
    forth, back = paired.bootstrap_difference(a, b), paired.bootstrap_difference(b, a)
    assert forth[0] == -back[0]
    assert forth[1] == pytest.approx(-back[2], abs=1.3)


@pytest.mark.parametrize("function", [paired.bootstrap_difference, paired.sign_test_over_images])
def test_outcomes_of_different_images_are_refused(function):
    with pytest.raises(ValueError, match="one shape"):
        function(np.ones((1, 4), bool), np.ones((1, 5), bool))


@pytest.mark.parametrize(("count", "said"), [(1, "One seed"), (2, "Two seeds"), (3, ""), (9, "")])
def test_fewer_than_three_seeds_are_said(count, said):
    note = paired.seeds_note(count)
    assert bool(note) == bool(said)
    assert note.startswith(said)


def test_the_interval_over_seeds_and_images_has_the_two_intervals_as_its_limits():
    rng = np.random.default_rng(3)
    once = rng.random((2, 1, 2000)) < [[[0.8]], [[0.7]]]
    a, b = np.repeat(once, 3, axis=1)  # seeds that agree: images alone are chance
    assert paired.over_seeds_and_images(a, b) == pytest.approx(paired.bootstrap_difference(a, b)[1:], abs=0.2)
    apart = [0.0, 1.0, 5.0]  # the first is right on its first 30, 31, 35 percent of images, the second on 30 always
    b = np.zeros((3, 1000), bool)
    b[:, :300] = True
    a = np.arange(1000) < 300 + 10 * np.array(apart)[:, None]
    low, high = paired.over_seeds_and_images(a, b)
    by_seed = stats.ttest_1samp(apart, 0).confidence_interval()
    assert (low, high) == pytest.approx((by_seed.low, by_seed.high), abs=0.15)
    assert np.isnan(paired.over_seeds_and_images(a[:1], b[:1])).all()


@pytest.mark.parametrize(("seed_sd", "image_effect"), [(0.0, 0.0), (0.03, 0.0), (0.0, 0.8), (0.03, 0.8)])
def test_the_interval_over_seeds_and_images_covers_what_it_says(seed_sd, image_effect):
    found = within_pair(seeds=3, seed_sd=seed_sd, image_effect=image_effect, draws=1000)
    assert 0.92 <= found["seeds and images"] <= 0.98


def test_two_methods_are_compared_from_their_files(tmp_path):
    figures = {PAIR: {"scratch": [70.0, 71.0, 72.0], "kd": [80.0, 81.0, 82.0], "ofa": [90.0, 91.0, 95.0]}}
    results = collect(write_store(tmp_path, factory.frame(figures)))
    found = paired.compare_methods(results, Outcomes(tmp_path), PAIR, "ofa", "kd")
    assert (found.seeds, found.notes) == ((0, 1, 2), ())
    assert found.difference == pytest.approx(11.0)
    assert found.over_images[0] < 11.0 < found.over_images[1]
    expected = stats.ttest_rel([90, 91, 95], [80, 81, 82]).confidence_interval()
    assert found.over_seeds == pytest.approx((expected.low, expected.high))
    # Which images are right is drawn anew for each seed: they share next to nothing, and seeds alone are chance.
    assert found.over_both == pytest.approx(found.over_seeds, abs=0.5)
    assert found.only_first - found.only_second == pytest.approx((20 + 20 + 26) / 3)
    assert paired.comparable(results, "kd") == [(PAIR, "scratch"), (PAIR, "ofa")]


def test_seeds_are_matched_and_those_of_one_method_said(tmp_path):
    results = collect(write_store(tmp_path, factory.frame({PAIR: {"kd": [80.0], "ofa": [90.0, 50.0]}})))
    found = paired.compare_methods(results, Outcomes(tmp_path), PAIR, "ofa", "kd")
    assert (found.seeds, found.difference) == ((0,), pytest.approx(10.0))
    assert found.notes[0].startswith("One seed")
    assert found.notes[1] == "Seeds that only one of the two has are left out: 1."


def test_missing_damaged_and_foreign_predictions_are_not_compared(tmp_path):
    frame = write_store(tmp_path, factory.frame({PAIR: {"kd": 80.0, "ofa": 90.0, "dkd": 85.0}}))
    results = collect(frame)
    paths = {row.method: tmp_path / row.path / "predictions.npz" for row in frame.itertuples()}
    paths["ofa"].write_bytes(paths["ofa"].read_bytes()[:100])
    seven = np.ones(7, int)
    np.savez(paths["dkd"], correct=seven > 0, probability=seven, predicted=seven, label=seven)
    for name in ("ofa", "dkd"):
        assert paired.compare_methods(results, Outcomes(tmp_path), PAIR, name, "kd") is None
