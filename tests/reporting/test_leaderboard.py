"""The ranking: by hand, against scipy, and what must not change it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from kdbench.errors import KdbenchError
from kdbench.reporting.costs import count_text, student_costs
from kdbench.reporting.frame import collect
from kdbench.reporting.html.words import summary
from kdbench.reporting.leaderboard import Leaderboard, Standing, build_leaderboard
from kdbench.reporting.prose import paragraph
from kdbench.reporting.text.leaderboard import (
    leaderboard_markdown,
    leaderboard_rich,
    leaderboard_table,
    leaderboard_text,
)
from tests.reporting import factory

P1, P2, P3 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny", "swin_tiny--resmlp_12"


def by_name(board: Leaderboard) -> dict[str, Standing]:
    return {standing.method: standing for standing in board.standings}


def many(pairs: int = 9, seed: int = 0, methods: tuple[str, ...] = ("dkd", "ofa", "tas")) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    figures = {}
    for i in range(pairs):
        base = draw.normal(80, 3)
        figures[f"t{i % 3}--s{i}"] = {"scratch": base - 2, "kd": base} | {
            m: base + draw.normal(0.5, 1) for m in methods
        }
    return factory.frame(figures)


def test_gains_ranks_wins_and_harms_by_hand():
    standings = by_name(build_leaderboard(factory.small()))
    assert list(standings) == ["ofa", "dkd", "kd", "tas", "scratch"]
    assert [s.rank for s in standings.values()] == [1, 2, 3, 4, None]
    assert [s.gain for s in standings.values()] == pytest.approx([1.5, 1 / 3, 0, -2 / 3, -10 / 3])
    assert [s.average_rank for s in standings.values()][:4] == [2.0, 2.5, 3.0, 2.5]
    assert np.isnan(standings["scratch"].average_rank)
    assert [(s.wins, s.ties, s.losses) for s in standings.values()] == [
        (2, 0, 1), (2, 0, 1), (None, None, None), (2, 0, 1), (0, 0, 3)
    ]  # fmt: skip
    assert [s.harmed for s in standings.values()] == [(0, 3), (0, 3), (0, 3), (1, 3), None]
    assert standings["ofa"].gain_over_scratch == pytest.approx((6 + 4.5 + 4) / 3)
    assert (standings["ofa"].left_out_low, standings["ofa"].left_out_high) == (0.75, 2.75)
    assert standings["ofa"].gains == ((P1, 3.0), (P2, 2.5), (P3, -1.0))


def test_the_mean_over_seeds_comes_first():
    frame = factory.frame({P1: {"kd": [80.0], "ofa": [81.0]}, P2: {"kd": [70.0] * 3, "ofa": [76.0, 77.0, 78.0]}})
    assert by_name(build_leaderboard(frame))["ofa"].gain == pytest.approx((1 + 7) / 2)


def test_p_values_of_few_nets_agree_with_scipy():
    board = build_leaderboard(many())
    p_values = {}
    for standing in board.standings:
        if standing.method in ("kd", "scratch"):
            continue
        gains = np.array([gain for _, gain in standing.gains])
        assert np.isnan(standing.low)  # of three teachers
        p_values[standing.method] = stats.wilcoxon(gains, method="exact").pvalue
        assert standing.p == pytest.approx(p_values[standing.method])
    names = sorted(p_values, key=p_values.__getitem__)
    running = 0.0
    for place, name in enumerate(names):
        running = max(running, min(1.0, p_values[name] * (len(names) - place)))
        assert by_name(board)[name].p_holm == pytest.approx(running)


def test_an_interval_and_its_p_need_four_teachers_and_four_students():
    draw = np.random.default_rng(0)
    figures = {
        f"t{i}--s{j}": {
            "kd": 70.0,
            "ofa": 70 + draw.normal(0.5, 0.4),
            "dkd": 70 + draw.normal(0, 0.4),
            "crd": 70 + draw.normal(),
        }
        for i in range(4)
        for j in range(4)
    }
    board = build_leaderboard(factory.frame(figures))
    found = by_name(board)
    for name in ("ofa", "dkd", "crd"):
        own = found[name]
        low, high = sorted((own.low, own.high))
        assert low < own.gain < high
        assert own.all_low < own.low
        assert (own.p < 0.05) == (own.low > 0 or own.high < 0)
        assert own.attainable
    assert "p: that the mean gain over KD is zero" in "\n".join(board.notes)
    assert "limits for all 3 methods at once (Bonferroni t) are all_low and all_high" in "\n".join(board.notes)
    assert "(the interval, Holm's correction)" in " ".join(summary(board))
    few = build_leaderboard(factory.frame({pair: row for pair, row in figures.items() if not pair.startswith("t3")}))
    assert np.isnan(by_name(few)["ofa"].low)
    assert "No interval: with 3 teachers and 4 students none would cover what it says" in "\n".join(few.notes)


def test_significance_that_so_few_pairs_cannot_show_is_said():
    # Five pairs: the smallest two-sided p is 2/32 = 0.0625. Six pairs and one method: 0.03125.
    five, six = build_leaderboard(many(5, methods=("ofa",))), build_leaderboard(many(6, methods=("ofa",)))
    assert (by_name(five)["ofa"].smallest_p, by_name(six)["ofa"].smallest_p) == (0.0625, 0.03125)
    assert (by_name(five)["ofa"].attainable, by_name(six)["ofa"].attainable) == (False, True)
    assert any("not attainable with 5 pairs" in note for note in five.notes)
    assert not any("not attainable" in note for note in six.notes)
    # Two methods double it: 0.0625 again.
    assert not by_name(build_leaderboard(many(6, methods=("ofa", "dkd"))))["ofa"].attainable
    assert "n.a." in leaderboard_text(five)


def test_the_order_of_the_rows_changes_nothing():
    assert build_leaderboard(many().sample(frac=1, random_state=0)) == build_leaderboard(many())


def test_another_method_changes_neither_gains_nor_p_values():
    few, more = build_leaderboard(many()), by_name(build_leaderboard(many(methods=("dkd", "ofa", "tas", "zzz"))))
    frame = many()
    extra = frame[(frame["method"] == "ofa") & (frame["pair"] != frame["pair"].iloc[0])].assign(
        method="zzz", method_display="ZZZ", method_family="hint"
    )
    more = by_name(build_leaderboard(pd.concat([frame, extra])))
    assert more["zzz"].rank is None
    for standing in few.standings:
        again = more[standing.method]
        for field in ("gain", "low", "high", "p", "wins", "ties", "losses", "harmed", "left_out_low", "left_out_high"):
            assert getattr(again, field) == pytest.approx(getattr(standing, field), nan_ok=True)
        assert again.rank == standing.rank


def test_a_method_that_lacks_a_pair_is_shown_but_not_ranked():
    frame = factory.small()
    board = build_leaderboard(frame[~((frame["method"] == "ofa") & (frame["pair"] == P3))])
    last = board.standings[-1]
    assert (last.method, last.rank, last.pairs, last.gain) == ("ofa", None, 2, 2.75)
    assert [s.rank for s in board.standings if s.rank] == [1, 2, 3]
    assert any("OFA (2 of 3 pairs)" in note for note in board.notes)


def test_equal_methods_share_a_rank():
    frame = factory.frame({P1: {"kd": 80.0, "ofa": 81.0, "dkd": 81.0, "crd": 79.0}})
    assert [(s.method, s.rank) for s in build_leaderboard(frame).standings] == [
        ("dkd", 1), ("ofa", 1), ("kd", 3), ("crd", 4)
    ]  # fmt: skip


def test_gains_within_the_band_of_the_metric_are_ties():
    frame = factory.frame({P1: {"kd": 80.0, "ofa": 80.2}, P2: {"kd": 80.0, "ofa": 80.3}})
    ofa = by_name(build_leaderboard(frame))["ofa"]
    assert (ofa.wins, ofa.ties, ofa.losses) == (1, 1, 0)
    frame = frame.assign(nll=[1.0, 0.99, 1.0, 0.98])
    ofa = by_name(build_leaderboard(frame, metric="nll"))["ofa"]
    assert (ofa.wins, ofa.ties, ofa.losses) == (1, 1, 0)


def test_lower_is_better_turns_the_sign():
    board = build_leaderboard(factory.small(), metric="nll")
    assert board.standings[0].method == "ofa"
    assert board.standings[0].gain == pytest.approx(0.015)  # in the factory 1.5 points of top-1 are 0.015 nats
    assert any("positive is better" in note for note in board.notes)


def test_without_kd_gains_are_over_scratch_and_it_is_said():
    frame = factory.small()
    board = build_leaderboard(frame[frame["method"] != "kd"])
    assert board.reference == "scratch"
    assert by_name(board)["ofa"].gain == pytest.approx((6 + 4.5 + 4) / 3)
    assert board.notes[0].startswith("kd has no results here: gains are counted from From scratch")


def test_without_kd_and_scratch_methods_are_ordered_by_their_mean():
    frame = factory.small()
    board = build_leaderboard(frame[~frame["method"].isin(["kd", "scratch"])])
    assert (board.reference, [s.method for s in board.standings]) == ("", ["ofa", "dkd", "tas"])
    assert board.standings[0].mean == pytest.approx(225.5 / 3)
    lower = build_leaderboard(frame[~frame["method"].isin(["kd", "scratch"])], metric="nll")
    assert [s.method for s in lower.standings] == ["ofa", "dkd", "tas"]
    assert "ordered by their mean" in leaderboard_text(board)


def test_step_time_is_a_ratio_within_pair_seed_and_device():
    frame = factory.small()
    ofa = frame["method"] == "ofa"
    frame.loc[ofa, "step_seconds"] = [0.02, 0.02, 0.03, 0.02, 0.02, 0.02]
    assert by_name(build_leaderboard(frame))["ofa"].step_ratio == pytest.approx(2.0)
    frame.loc[ofa, "device"] = "another"
    assert np.isnan(by_name(build_leaderboard(frame))["ofa"].step_ratio)
    frame.loc[ofa, "device"] = "cpu"
    frame.loc[frame["method"] == "scratch", "step_seconds"] = 0.0
    assert np.isnan(by_name(build_leaderboard(frame))["ofa"].step_ratio)


def test_cost_is_summed_and_what_inference_keeps_is_said():
    frame = factory.small().assign(inference_extra_parameters=0.0, student_gmacs=1.8, inference_images_per_second=500.0)
    ofa = frame["method"] == "ofa"
    frame.loc[ofa, ["train_seconds", "peak_memory_bytes"]] = [1800.0, 3 * 2**20]
    frame.loc[ofa, ["inference_extra_parameters", "student_gmacs", "inference_images_per_second"]] = [2e6, 2.5, 1.0]
    board = build_leaderboard(frame)
    standing = by_name(board)["ofa"]
    assert (standing.hours, standing.peak_memory, standing.inference_parameters) == (3.0, 3 * 2**20, 2e6)
    assert np.isnan(by_name(board)["kd"].peak_memory)
    # What a method keeps at inference is no property of the student.
    assert {(c.gmacs, c.images_per_second, c.device) for c in student_costs(collect(frame))} == {(1.8, 500.0, "cpu")}
    text = leaderboard_text(board)
    assert "Larger at inference than the student alone, by parameters that the method keeps: OFA (up to 2 M)." in text
    assert "ResNet18 (11 M parameters, 1.8 GMACs, 500 images/s on cpu)" in text
    assert "inference" not in leaderboard_text(build_leaderboard(factory.small().drop(columns="student_parameters")))


def test_one_pair_and_two_pairs_are_handled():
    one = build_leaderboard(factory.frame({P1: {"scratch": 70.0, "kd": 80.0, "ofa": 81.0}}))
    ofa = by_name(one)["ofa"]
    assert (ofa.gain, ofa.p, ofa.attainable) == (1.0, 1.0, False)
    assert np.isnan([ofa.low, ofa.high, ofa.left_out_low]).all()
    assert any(note.startswith("One pair") for note in one.notes)
    two = by_name(build_leaderboard(factory.frame({P1: {"kd": 80.0, "ofa": 81.0}, P2: {"kd": 80.0, "ofa": 83.0}})))[
        "ofa"
    ]
    assert (two.gain, np.isnan(two.high)) == (2.0, True)
    for board in (one,):
        assert "nan" not in leaderboard_text(board).lower()


def test_notes_say_few_seeds_and_reconstructions():
    notes = " ".join(build_leaderboard(factory.small()).notes)
    assert "Only two seeds" in notes
    assert "Reconstructions: FBT." in notes
    assert "One seed" in " ".join(build_leaderboard(many()).notes)
    three = factory.frame({P1: {"kd": [80.0, 81.0, 82.0], "ofa": [81.0, 82.0, 83.0]}})
    assert "Over 3 seeds (0, 1, 2)." in build_leaderboard(three).notes


@pytest.mark.parametrize(
    "frame", [pd.DataFrame(), factory.frame({P1: {"kd": None, "ofa": None}})], ids=["none", "planned"]
)
def test_an_empty_store_says_so_in_one_line(frame):
    board = build_leaderboard(frame)
    assert board.standings == ()
    assert leaderboard_text(board).startswith("No results yet")
    assert len(leaderboard_text(board).splitlines()) == 1
    assert "No results yet" in leaderboard_markdown(board)
    leaderboard_rich(board)


def test_methods_with_fewer_seeds_are_named():
    frame = factory.small()
    assert not any(note.startswith("Some pairs") for note in build_leaderboard(frame).notes)
    one = frame.index[(frame["method"] == "ofa") & (frame["seed"] == 1)][0]
    notes = build_leaderboard(frame.drop(one)).notes
    assert any(note.startswith("Some pairs have fewer than 2 seeds: OFA.") for note in notes)


def test_different_protocols_are_refused():
    frame = pd.concat([factory.small(), factory.small().assign(protocol="paper")])
    with pytest.raises(KdbenchError, match="more than one protocol"):
        build_leaderboard(frame)


def test_markdown_tables_are_whole_even_with_odd_names():
    frame = factory.small()
    frame.loc[frame["method"] == "ofa", "method_display"] = "a|b_*c* <i> $x$"
    text = leaderboard_markdown(build_leaderboard(frame, command="kdbench leaderboard toy"))
    tables = [part.splitlines() for part in text.replace("\\|", "").split("\n\n") if part.startswith("|")]
    assert len(tables) == 2  # the ranking and the cost
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert text.startswith("<!-- kdbench leaderboard toy (results ")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_cuts_no_figure(width):
    frame = factory.small()
    frame.loc[frame["method"] == "ofa", "method_display"] = "[red]OFA[/red]"
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    try:
        console.print(leaderboard_rich(build_leaderboard(frame), width))
    finally:
        console.file.close()
    text = console.export_text()
    for part in ("2/0/1", "n.a.", "[red]", "0/3"):
        assert part in text


@pytest.mark.parametrize(
    ("count", "text"), [(0.0, "0"), (999.0, "999"), (1234567.0, "1.23 M"), (12e3, "12 k"), (np.nan, "")]
)
def test_counts_read(count, text):
    assert count_text(count) == text


def hypothesis(method: str, when: str = "2026-01-01T00:00:00Z", against: str = "kd") -> dict[str, str]:
    return {"method": method, "against": against, "split": "test", "declared": when}


def test_what_was_declared_is_corrected_apart_and_the_rest_called_exploratory():
    plain = many()
    late = hypothesis("tas", "2026-03-02T00:00:00Z")  # the factory's cells end the day before
    text = json.dumps([hypothesis("ofa"), hypothesis("crd"), hypothesis("dkd", against="scratch"), late])
    board, free = build_leaderboard(plain.assign(declared=text)), by_name(build_leaderboard(plain))
    found = by_name(board)
    assert board.declared == ("crd", "ofa")
    # CRD has no results and counts: Holm over two, its p being 1.
    assert found["ofa"].p_holm == pytest.approx(min(1.0, 2 * found["ofa"].p))
    assert found["ofa"].smallest_p == pytest.approx(2 * 2.0**-8)
    for name in ("dkd", "tas"):
        assert (found[name].p, found[name].p_holm) == (free[name].p, free[name].p_holm)
    kinds = {name: found[name].hypothesis for name in ("ofa", "dkd", "tas", "kd")}
    assert kinds == {"ofa": "declared", "dkd": "exploratory", "tas": "exploratory", "kd": ""}
    assert (
        "Declared before the run (2026-01-01): OFA, crd over KD; DKD over From scratch. Everything else is exploratory."
        in board.caption.replace("crd, OFA", "OFA, crd")
    )
    notes = "\n".join(board.notes)
    assert (
        "with Holm's correction over what was declared before the run alone (crd, OFA); of the others, which are exploratory"
        in notes
    )
    assert "Declared only after a first result was there, and so exploratory: FBT." in notes
    records = leaderboard_table(board).records.set_index("method")
    assert records["hypothesis"].to_dict() | kinds == records["hypothesis"].to_dict()
    assert "exploratory" in leaderboard_text(board)
    assert "hypothesis" not in leaderboard_text(build_leaderboard(plain))
    assert "the 2 methods that were declared before the run" in paragraph(board, "ofa")
    assert "which was not declared before the run" in paragraph(board, "dkd")


def test_two_pairs_and_one_teacher_per_pair_are_said():
    frame = factory.frame({P1: {"kd": [80.0] * 3, "ofa": [81.0] * 3}, P2: {"kd": [80.0] * 3, "ofa": [81.0] * 3}})
    board = build_leaderboard(frame)
    assert any(note.startswith("Two pairs: how far pairs differ is poorly known") for note in board.notes)
    said = "Each pair has one trained teacher, whose own chance no spread over seeds shows."
    assert said in board.caption
    several = frame.assign(teacher_checksum=[str(seed) for seed in frame["seed"]])
    assert said not in build_leaderboard(several).caption
