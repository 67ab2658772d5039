"""Checks of the frame, and means over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.plugins.metrics import BUILT_IN
from kdbench.reporting.caption import build_caption, coverage_text, data_notes, provenance_text, results_hash
from kdbench.reporting.frame import collect, common_pairs, split_frame
from tests.reporting import factory

PAIR = "swin_tiny--resnet18"


def test_mean_sd_and_n_are_those_of_the_seeds_done():
    scores = collect(factory.frame({PAIR: {"kd": [90.0, 92.0, 94.0], "ofa": [91.0]}})).scores
    kd, ofa = scores.loc[(PAIR, "kd")], scores.loc[(PAIR, "ofa")]
    assert (kd["mean"], kd["sd"], kd["n"]) == (92.0, 2.0, 3)
    assert (ofa["mean"], ofa["n"]) == (91.0, 1)
    assert np.isnan(ofa["sd"])


@pytest.mark.parametrize("metric", BUILT_IN)
def test_best_reads_the_column_of_the_best_epoch(metric):
    frame = factory.frame({PAIR: {"kd": 90.0}}).assign(**{metric: 1.0, f"best_{metric}": 2.0})
    assert collect(frame, metric, "last").scores["mean"].item() == 1.0
    assert collect(frame, metric, "best").scores["mean"].item() == 2.0


@pytest.mark.parametrize("state", ["failed", "skipped", "planned", "running", "stale"])
def test_a_figure_of_a_cell_that_is_not_done_is_not_used(state):
    results = collect(pd.DataFrame([factory.cell(PAIR, "kd", 90.0, state=state)]))
    assert results.empty
    assert results.scores["state"].item() == {"failed": "failed", "skipped": "skipped"}.get(state, "planned")


def test_a_done_cell_without_a_figure_counts_as_unmeasured():
    results = collect(factory.frame({PAIR: {"kd": [90.0, np.nan]}}))
    score = results.scores.loc[(PAIR, "kd")]
    assert (score["mean"], score["n"], score["done"]) == (90.0, 1, 2)
    assert any("1 finished cells hold no" in note for note in data_notes(results))


@pytest.mark.parametrize("column", ["suite", "protocol", "dataset", "split"])
def test_results_of_different_suites_protocols_data_sets_and_splits_are_never_pooled(column):
    frame = factory.small()
    frame.loc[frame.index[:3], column] = "other"
    with pytest.raises(KdbenchError, match=f"more than one {column}"):
        collect(frame)
    parts = split_frame(frame)
    assert [len(part) for part in parts] in ([3, len(frame) - 3], [len(frame) - 3, 3])
    assert not any(collect(part).empty for part in parts)


def test_only_the_required_columns_are_needed():
    frame = factory.small()[["suite", "protocol", "pair", "teacher", "student", "method", "seed", "state", "top1"]]
    assert collect(frame).means().loc[PAIR, "kd"] == 84.0


def test_unknown_metrics_are_refused_with_the_nearest_name():
    with pytest.raises(KdbenchError, match="did you mean 'top1'"):
        collect(factory.small(), metric="top-1")


def test_an_older_result_of_the_same_cell_is_left_out_and_said():
    frame = factory.frame({PAIR: {"kd": 90.0}})
    older = frame.assign(top1=50.0, finished="2025-01-01T00:00:00", config_hash="older")
    for order in ([frame, older], [older, frame]):
        results = collect(pd.concat(order))
        assert results.scores["mean"].item() == 90.0
        assert any("1 older results" in note for note in data_notes(results))


def test_a_newer_plan_does_not_hide_a_finished_result():
    frame = factory.frame({PAIR: {"kd": 90.0}})
    stale = frame.assign(state="planned", top1=np.nan, finished="", config_hash="zzz")
    results = collect(pd.concat([frame, stale]))
    assert results.scores["mean"].item() == 90.0
    assert results.superseded == 0


def test_settings_that_differ_between_seeds_are_said():
    frame = factory.frame({PAIR: {"kd": [90.0, 91.0]}})
    frame["hyperparameters"] = ['{"temperature": 1.0}', '{"temperature": 4.0}']
    assert any("Hyper-parameters differ" in note for note in data_notes(collect(frame)))


def test_rows_and_columns_have_one_order_whatever_the_order_of_the_frame():
    results = collect(factory.small())
    shuffled = collect(factory.small().sample(frac=1, random_state=3))
    assert list(results.methods.index) == list(shuffled.methods.index) == ["scratch", "kd", "dkd", "tas", "ofa"]
    assert list(results.pairs["student_family"]) == list(shuffled.pairs["student_family"]) == ["cnn", "vit", "mlp"]
    assert results_hash(results) == results_hash(shuffled)


def test_the_hash_changes_with_any_figure_and_with_nothing_else():
    frame = factory.small()
    changed = frame.copy()
    changed.loc[0, "top1"] += 1e-9
    assert results_hash(collect(frame)) != results_hash(collect(changed))
    assert results_hash(collect(frame)) == results_hash(collect(frame.assign(step_seconds=7.0)))


def test_titles_that_occur_twice_are_told_apart():
    frame = factory.frame({PAIR: {"kd": 90.0, "ofa": 91.0}}).assign(method_display="Same")
    assert list(collect(frame).methods["title"]) == ["Same (kd)", "Same (ofa)"]


def test_common_pairs_ignore_a_method_that_has_just_begun():
    means = pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 2, np.nan], "c": [np.nan, np.nan, 1.0]}, index=list("xyz"))
    assert common_pairs(means, ["a", "b", "c"]) == (["a", "b"], ["x", "y"])
    assert common_pairs(means, ["c"]) == (["c"], ["z"])
    assert common_pairs(means, []) == ([], [])


def test_the_caption_says_data_rule_spread_coverage_and_provenance():
    frame = pd.concat([factory.small(), pd.DataFrame([factory.cell(PAIR, "crd", state="failed")])])
    caption = build_caption(collect(frame))
    for part in (
        "Top-1 accuracy (%, higher is better) on digits, test split",
        "protocol short, 30 epochs, last epoch",
        "sample standard deviation over 2 seeds (0, 1)",
        "30 of 31 planned cells done; 1 failed",
        "Commit 0123456789, 2026-03-01, on cpu",
    ):
        assert part in caption
    best = build_caption(collect(frame, select="best"))
    assert "best test epoch" in best
    assert "optimistic" in best
    assert "lower is better" in build_caption(collect(frame, "nll"))


def test_the_caption_tells_dirty_and_mixed_provenance_and_one_seed():
    frame = factory.frame({PAIR: {"kd": 90.0, "ofa": 91.0}})
    frame["commit"], frame["dirty"] = ["a" * 40, "b" * 40], [True, None]
    frame["finished"] = ["2026-01-01T00:00:00", "2026-02-01T00:00:00"]
    results = collect(frame)
    assert provenance_text(results).startswith(
        "Commits aaaaaaaaaa, bbbbbbbbbb with uncommitted changes, 2026-01-01 to 2026-02-01"
    )
    assert "1 seed (0): no spread can be given" in build_caption(results)


def test_skipped_cells_are_not_counted_as_planned():
    frame = pd.DataFrame([factory.cell(PAIR, "kd", 90.0), factory.cell(PAIR, "crd", state="skipped")])
    assert coverage_text(collect(frame)) == "Coverage: 1 of 1 planned cells done; 1 more skipped as impossible."
