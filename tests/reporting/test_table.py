"""The typed table: figures, what is best, what is missing, summaries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kdbench.reporting.table import Cell, Table, build_table
from tests.reporting import factory

P1, P2, P3 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny", "swin_tiny--resmlp_12"


def cell_of(table: Table, row: str, column: str) -> Cell:
    rows = [header.title for header in table.rows]
    columns = [header.title for header in table.columns]
    return table.cells[rows.index(row)][columns.index(column)]


def row_of(table: Table, start: str) -> dict[str, Cell]:
    place = next(i for i, header in enumerate(table.rows) if header.title.startswith(start))
    return dict(zip([header.title for header in table.columns], table.cells[place], strict=True))


def with_rows(*rows: dict) -> pd.DataFrame:
    return pd.concat([factory.small(), pd.DataFrame(list(rows))], ignore_index=True)


def test_rows_are_pairs_by_student_family_and_columns_are_methods_by_family():
    table = build_table(factory.small())
    assert [(h.title, h.group) for h in table.rows[:3]] == [
        ("Swin-T → ResNet18", "CNN students"),
        ("ConvNeXt-T → DeiT-T", "ViT students"),
        ("Swin-T → ResMLP-S12", "MLP students"),
    ]
    assert [(h.title, h.group) for h in table.columns] == [
        ("Teacher", "baseline"),
        ("From scratch", "baseline"),
        ("KD", "logits"),
        ("DKD", "logits"),
        ("FBT", "hybrid"),
        ("OFA", "hybrid"),
    ]
    assert [h.title for h in table.columns if h.reconstruction] == ["FBT"]


def test_methods_that_carry_kd_are_named():
    rows = [factory.cell(P1, name, top1=80.0, carries_kd=name != "crd") for name in ("fitnet-kd", "crd")]
    texts = [note.text for note in build_table(with_rows(*rows)).notes]
    assert "KD's loss is part of theirs: FitNet + KD." in texts
    assert not any("KD's loss" in note.text for note in build_table(factory.small()).notes)


def test_variants_and_settings_of_single_rows_are_told():
    rows = [
        factory.cell(P1, "w1", top1=80.0, method_display="Half", variant_of="ofa", settings="ofa_weight = 0.5"),
        factory.cell(P1, "dkd", top1=80.0, settings="beta = 2.0 (--set dkd)"),
        factory.cell(P2, "dkd", top1=80.0),
    ]
    (text,) = [note.text for note in build_table(with_rows(*rows)).notes if "Settings" in note.text]
    assert "Half (ofa, ofa_weight = 0.5)" in text
    assert f"DKD on {P1} (beta = 2.0 (--set dkd))" in text


def test_a_cell_holds_mean_sd_and_n():
    cell = cell_of(build_table(factory.small()), "Swin-T → ResNet18", "OFA")
    assert (cell.kind, cell.value) == ("value", 87.0)
    assert cell.sd == pytest.approx(np.sqrt(2))
    assert np.isnan(cell_of(build_table(factory.frame({P1: {"kd": 90.0}})), "Swin-T → ResNet18", "KD").sd)


def test_summaries_by_hand():
    table = build_table(factory.small())
    average, gain, rank, harmed = (
        row_of(table, t) for t in ("average", "average gain", "average rank", "pairs harmed")
    )
    assert [average[m].value for m in ("Teacher", "From scratch", "KD", "OFA")] == pytest.approx(
        [95.0, 211 / 3, 221 / 3, 225.5 / 3]
    )
    assert [gain[m].value for m in ("From scratch", "KD", "DKD", "OFA", "FBT")] == pytest.approx(
        [-10 / 3, 0, 1 / 3, 1.5, -2 / 3]
    )
    assert [rank[m].value for m in ("KD", "DKD", "OFA", "FBT")] == [3.0, 2.5, 2.0, 2.5]
    assert [harmed[m].coverage for m in ("KD", "DKD", "OFA", "FBT")] == [(0, 3), (0, 3), (0, 3), (1, 3)]
    assert {rank["Teacher"].kind, rank["From scratch"].kind, harmed["From scratch"].kind, gain["Teacher"].kind} == {
        "empty"
    }


def test_methods_is_the_transposed_table_with_the_same_emphasis():
    pairs, methods = build_table(factory.small()), build_table(factory.small(), "methods")
    assert methods.rows == pairs.columns
    assert methods.columns == pairs.rows
    same = [[c.best for c in row] for row in methods.transposed().cells] == [[c.best for c in r] for r in pairs.cells]
    assert same


def test_best_and_second_are_marked_and_baselines_take_no_part():
    frame = factory.frame({P1: {"scratch": 99.0, "kd": 90.0, "ofa": 91.0, "dkd": 89.0}})
    row = row_of(build_table(frame), "Swin-T")
    assert {name: cell.best for name, cell in row.items()} == {
        "Teacher": 0, "From scratch": 0, "KD": 2, "DKD": 0, "OFA": 1
    }  # fmt: skip


def test_ties_at_printed_precision_share_their_place():
    frame = factory.frame({P1: {"kd": 90.01, "ofa": 90.04, "dkd": 89.0, "crd": 88.96, "fitnet": 88.0}})
    row = row_of(build_table(frame), "Swin-T")
    assert {name: cell.best for name, cell in row.items() if name != "Teacher"} == {
        "KD": 1, "OFA": 1, "DKD": 2, "CRD": 2, "FitNet": 0
    }  # fmt: skip


@pytest.mark.parametrize(("metric", "best"), [("top1", "OFA"), ("nll", "OFA"), ("agreement", "OFA")])
def test_the_direction_follows_the_metric(metric, best):
    # In the factory the nll falls as the accuracy rises.
    row = row_of(build_table(factory.frame({P1: {"scratch": 80.0, "kd": 83.0, "ofa": 90.0}}), metric=metric), "Swin-T")
    assert [name for name, cell in row.items() if cell.best == 1] == [best]
    gain = row_of(build_table(factory.frame({P1: {"kd": 83.0, "ofa": 90.0}}), metric=metric), "average gain")
    assert gain["OFA"].value > 0


def test_one_method_alone_is_not_called_best():
    table = build_table(factory.frame({P1: {"scratch": 80.0, "kd": 90.0}}))
    assert not table.ranked
    assert cell_of(table, "Swin-T → ResNet18", "KD").best == 0


def test_missing_failed_and_unsupported_cells_are_told_apart():
    table = build_table(
        with_rows(
            factory.cell(P1, "crd", state="failed", reason="loss is NaN\nTraceback"),
            factory.cell(P2, "crd", 73.0),
            factory.cell(P3, "crd", state="skipped", reason="no stages"),
            factory.cell(P1, "fitnet"),
        )
    )
    assert [cell_of(table, header.title, "CRD").kind for header in table.rows[:3]] == ["failed", "value", "unsupported"]
    assert [cell_of(table, header.title, "FitNet").kind for header in table.rows[:3]] == ["absent"] * 3
    notes = {note.mark: note.text for note in table.notes if note.mark}
    assert notes["×"] == "failed: CRD on Swin-T → ResNet18: loss is NaN"
    assert notes["a"] == "not applicable: no stages"
    assert "fewer seeds" in notes["*"]
    assert cell_of(table, "ConvNeXt-T → DeiT-T", "CRD").marks == ("*",)


def test_a_cell_with_a_failed_seed_shows_the_others_and_says_so():
    table = build_table(with_rows(factory.cell(P1, "crd", 80.0), factory.cell(P1, "crd", seed=1, state="failed")))
    cell = cell_of(table, "Swin-T → ResNet18", "CRD")
    assert (cell.kind, cell.marks) == ("value", ("*", "×"))
    assert any("1 of 2 seeds" in note.text for note in table.notes)


def test_one_reason_has_one_footnote():
    rows = [factory.cell(p, m, state="skipped", reason="same") for p in (P1, P2) for m in ("crd", "fitnet")]
    table = build_table(with_rows(*rows))
    assert [note.mark for note in table.notes if note.text == "not applicable: same"] == ["a"]


def test_averages_are_over_the_pairs_that_all_compared_methods_have():
    frame = with_rows(factory.cell(P1, "crd", 90.0, 0), factory.cell(P2, "crd", 90.0, 0))
    table = build_table(frame)
    average = row_of(table, "average (2 of 3 pairs)")
    assert average["KD"].value == pytest.approx((84 + 72) / 2)
    assert average["CRD"].value == 90.0
    assert average["Teacher"].value == 95.0
    assert {cell.coverage for cell in average.values()} == {None}
    assert row_of(table, "average rank (2 of 3 pairs)")["CRD"].value == 1.0


def test_a_method_with_few_pairs_shows_its_coverage_and_is_not_ranked():
    average = row_of(build_table(with_rows(factory.cell(P2, "crd", 99.0))), "average")
    assert (average["CRD"].value, average["CRD"].coverage, average["CRD"].best) == (99.0, (1, 3), 0)
    assert (average["KD"].value, average["KD"].coverage) == (pytest.approx(221 / 3), None)


def test_methods_without_a_common_pair_are_not_compared():
    frame = factory.frame({P1: {"kd": 90.0}, P2: {"ofa": 80.0}})
    table = build_table(frame)
    average = row_of(table, "average")
    assert (average["KD"].coverage, average["OFA"].coverage) == ((1, 2), (1, 2))
    assert not any(cell.best for row in table.cells for cell in row)
    assert "average rank" not in [header.title for header in table.rows]
    assert any("they do not compare" in note.text for note in table.notes)


def test_without_kd_gains_are_over_scratch_and_without_both_there_are_none():
    frame = factory.small()
    no_kd = build_table(frame[frame["method"] != "kd"])
    assert row_of(no_kd, "average gain over From scratch")["OFA"].value == pytest.approx((6 + 4.5 + 4) / 3)
    neither = build_table(frame[~frame["method"].isin(["kd", "scratch"])])
    assert [h.title for h in neither.rows if h.kind == "summary"] == ["average", "average rank"]


def test_results_with_only_a_baseline_make_a_table():
    table = build_table(factory.frame({P1: {"scratch": 80.0}, P2: {"scratch": 70.0}}))
    assert row_of(table, "average")["From scratch"].value == 75.0
    assert row_of(table, "average")["From scratch"].coverage is None


def test_metrics_without_a_teachers_figure_have_no_teacher_column():
    assert "Teacher" not in [h.title for h in build_table(factory.small(), metric="ece").columns]
    assert cell_of(build_table(factory.small(), metric="top5"), "Swin-T → ResNet18", "Teacher").value == 99.5


def test_the_order_of_the_rows_changes_nothing():
    tables = [build_table(factory.small().sample(frac=1, random_state=seed)) for seed in range(3)]
    assert tables[0] == tables[1] == tables[2] == build_table(factory.small())


@pytest.mark.parametrize(
    "frame",
    [pd.DataFrame(), factory.small().iloc[:0], factory.frame({P1: {"kd": None}}), factory.frame({P1: {"kd": np.nan}})],
    ids=["no columns", "no rows", "planned only", "no figure"],
)
@pytest.mark.parametrize("layout", ["pairs", "methods"])
def test_a_store_without_figures_gives_one_line(frame, layout):
    table = build_table(frame, layout)
    assert table.message
    assert "\n" not in table.message
    assert table.cells == ()


def test_records_are_plain_numbers_one_row_per_pair_and_method():
    frame = with_rows(factory.cell(P1, "crd", state="failed", reason="NaN"))
    records = build_table(frame).records
    assert len(records) == 16
    row = records[(records["pair"] == P1) & (records["method"] == "ofa")].iloc[0]
    assert (row["mean"], row["n"], row["state"], row["teacher_value"]) == (87.0, 2, "done", 95.0)
    failed = records[records["method"] == "crd"].iloc[0]
    assert (failed["n"], failed["state"], failed["reason"]) == (0, "failed", "NaN")
    assert np.isnan(failed["mean"])
    assert records[["mean", "sd", "n"]].dtypes.map(lambda t: t.kind).isin(["f", "i"]).all()
