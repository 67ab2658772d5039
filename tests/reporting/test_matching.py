"""What is compared with what, and what a caption says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.reporting.caption import coverage_text
from kdbench.reporting.frame import collect
from kdbench.reporting.leaderboard import Leaderboard, Standing, build_leaderboard
from kdbench.reporting.plots import scatter, teacher
from kdbench.reporting.ranks import rank_diagram
from kdbench.reporting.table import build_table
from kdbench.reporting.text.latex import write_latex
from kdbench.store.rows import ABSENT, STALE
from tests.conftest import Said
from tests.reporting import factory
from tests.reporting.large import large_plan, write_large

P = "swin_tiny--resnet18"


def unmatched() -> pd.DataFrame:
    """KD with three seeds, OFA with the last alone, on which it is a point worse; scratch with the first two."""
    rows = [factory.cell(P, "kd", top1, seed) for seed, top1 in enumerate((60.0, 70.0, 80.0))]
    rows += [factory.cell(P, "scratch", top1, seed) for seed, top1 in enumerate((59.0, 69.0))]
    rows += [factory.cell(P, "ofa", 79.0, 2), factory.cell(P, "dkd", 90.0, 3)]
    return pd.DataFrame([{**row, "teacher_top1": 85.0, "agreement": row["top1"] / 2} for row in rows])


def standing(board: Leaderboard, method: str) -> Standing:
    return next(s for s in board.standings if s.method == method)


def notes(frame: pd.DataFrame) -> str:
    """Of the table; the leaderboard says the same."""
    said = [note.text for note in build_table(frame).notes]
    assert set(build_leaderboard(frame).notes) >= {text for text in said if "eacher" in text or "Planned" in text}
    return "\n".join(said)


def test_gains_are_over_the_seeds_that_both_have() -> None:
    board = build_leaderboard(unmatched())
    assert standing(board, "ofa").gain == pytest.approx(-1)
    assert standing(board, "scratch").gain == pytest.approx(-1)
    assert np.isnan(standing(board, "dkd").gain)  # no seed in common: no gain
    assert np.isnan(standing(board, "ofa").gain_over_scratch)
    assert standing(board, "kd").gain_over_scratch == pytest.approx(1)
    table = build_table(unmatched())
    row = next(i for i, header in enumerate(table.rows) if header.title.startswith("average gain"))
    found = {header.title: cell.value for header, cell in zip(table.columns, table.cells[row], strict=True)}
    assert (found["OFA"], found["From scratch"]) == (pytest.approx(-1), pytest.approx(-1))
    points = scatter.agreement_points(board.results, board).set_index("method")
    assert points["value"].to_dict() == {"ofa": pytest.approx(-1), "scratch": pytest.approx(-1)}
    assert points["agreement"]["ofa"] == pytest.approx(-0.5)
    over_scratch = teacher.teacher_points(board.results, board)
    assert {name: found.gain.tolist() for name, found in over_scratch.items()} == {"kd": [pytest.approx(1)]}


def test_ranks_are_over_the_seeds_that_all_have() -> None:
    rows = [factory.cell(P, "kd", top1, seed) for seed, top1 in enumerate((60.0, 80.0))]
    rows += [factory.cell(P, "ofa", top1, seed) for seed, top1 in enumerate((61.0, 81.0))] + [
        factory.cell(P, "dkd", 79.0, 1)
    ]
    diagram = rank_diagram(collect(pd.DataFrame(rows)))
    assert diagram is not None
    assert dict(zip(diagram.methods, diagram.ranks, strict=True)) == {"ofa": 1, "kd": 2, "dkd": 3}


def test_cells_of_different_teachers_of_one_name_are_not_compared() -> None:
    rows = [
        factory.cell(P, name, 70.0 + 3 * seed, seed, teacher_checksum=f"t{seed}")
        for name in ("kd", "scratch")
        for seed in (0, 1)
    ]
    rows += [
        factory.cell(P, "ofa", 72.0, 0, teacher_checksum="t0"),
        factory.cell(P, "ofa", 93.0, 1, teacher_checksum="other"),
    ]
    frame = pd.DataFrame(rows)
    board = build_leaderboard(frame)
    assert standing(board, "ofa").gain == pytest.approx(2)
    assert standing(board, "ofa").gain_over_scratch == pytest.approx((2 + 20) / 2)  # scratch has no teacher
    assert "Different teachers of one name (weights differ) taught the cells of Swin-T → ResNet18 (3)" in notes(frame)


def test_coverage_counts_what_is_planned() -> None:
    rows = [factory.cell(P, name, 70.0) for name in ("scratch", "kd")] + [factory.cell(P, "ofa")]
    rows += [
        factory.cell(P, "dkd", state=ABSENT, reason=""),
        factory.cell(P, "kd", seed=1, state=ABSENT, reason=f"{STALE}: x"),
    ]
    results = collect(pd.DataFrame(rows))
    assert coverage_text(results) == "Coverage: 2 of 5 planned cells done; 3 not run."
    assert "dkd" not in results.method_info
    assert "Planned, but without a cell here: DKD." in notes(pd.DataFrame(rows))
    assert "Of 1 planned cell the store has results of another configuration alone, which are not shown: KD." in notes(
        pd.DataFrame(rows)
    )


def chosen(frame: pd.DataFrame, methods: set[str]) -> pd.DataFrame:
    return frame.assign(shown=frame["method"].isin(methods))


def test_choosing_methods_says_so_and_makes_no_p_smaller() -> None:
    draw = np.random.default_rng(0)
    names = ("dkd", "ofa", "crd", "fitnet", "tas")
    figures = {
        f"t{i}--s{i}": {"kd": 70.0, "scratch": 60.0} | {n: 70 + draw.normal(1, 0.5) for n in names} for i in range(9)
    }
    frame = factory.frame(figures)
    whole, part = build_leaderboard(frame), build_leaderboard(chosen(frame, {"kd", "ofa"}))
    assert [s.method for s in part.standings] == ["ofa", "kd"]
    assert standing(part, "ofa").p_holm == standing(whole, "ofa").p_holm
    assert standing(part, "ofa").harmed == (0, 9)
    assert "Chosen: 2 of 7 methods of the store." in part.caption
    assert "over 5 methods (all that the store holds, shown or not)" in "\n".join(part.notes)
    assert "Chosen" not in whole.caption


def test_a_brief_protocol_a_weak_teacher_and_changed_settings_are_said_everywhere() -> None:
    rows = [
        factory.cell(P, name, 70.0, teacher_top1=33.0, teacher_expected=95.0, conclusive=False)
        for name in ("scratch", "kd")
    ]
    rows += [{**rows[0], **factory.cell(P, "ofa", 71.0), "settings": "ofa_weight = 2 (--set ofa)"}]
    frame = pd.DataFrame(rows).fillna({"settings": ""})
    table, board = build_table(frame), build_leaderboard(frame)
    for caption in (table.caption, board.caption):
        assert "Protocol short is too brief for conclusions." in caption
    assert "Weak teachers, from which little can be learnt: Swin-T 33.0 % (expected: at least 95 %)." in notes(frame)
    assert "OFA ‡" in [header.title for header in table.columns]
    assert "OFA ‡" in [s.display for s in board.standings]
    assert r"$\ddagger$" in write_latex(table)


def test_failures_are_counted_as_scratch_in_a_second_figure() -> None:
    pairs = [f"t{i}--s{i}" for i in range(2)]
    rows = [factory.cell(p, name, top1) for p in pairs for name, top1 in (("kd", 70.0), ("scratch", 60.0))]
    rows += [factory.cell(pairs[0], "ofa", 72.0), factory.cell(pairs[1], "ofa", state="failed", reason="diverged")]
    board = build_leaderboard(pd.DataFrame(rows))
    assert standing(board, "ofa").gain == pytest.approx(2)
    assert "Gain with each failed cell counted as training from scratch: OFA -4.00 (1 cell)." in board.notes


def test_what_gains_are_counted_from_is_not_ranked_among_them() -> None:
    frame = factory.frame({P: {"scratch": 60.0, "kd": 70.0, "ofa": 69.0, "dkd": 68.0}})
    table = build_table(frame)
    row = next(i for i, header in enumerate(table.rows) if header.title.startswith("average gain"))
    assert {header.title: cell.best for header, cell in zip(table.columns, table.cells[row], strict=True)} == {
        "Teacher": 0, "From scratch": 0, "KD": 0, "OFA": 1, "DKD": 2,
    }  # fmt: skip


def test_labels_of_latex_differ_by_content_and_not_by_figures() -> None:
    def label(methods: tuple[str, ...], top1: float = 70.0) -> str:
        return build_table(factory.frame({P: dict.fromkeys(methods, top1)})).label

    assert label(("kd", "ofa")) == label(("kd", "ofa"), 71.0) != label(("kd", "dkd"))


def test_zeros_are_named_where_they_make_significance_unattainable() -> None:
    figures = {f"t{i}--s{i}": {"kd": 70.0, "ofa": 70.0 + max(0, i - 2), "dkd": 70.1 + i} for i in range(8)}
    said = "\n".join(build_leaderboard(factory.frame(figures)).notes)
    assert "(OFA: only 5 of 8 gains differ from zero)" in said


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_large(tmp_path / "runs", large_plan(cells=60), cells=60)
    return tmp_path / "runs"


def test_a_protocol_without_cells_says_what_there_is(kdbench: Callable[..., Said], runs: Path) -> None:
    said = kdbench("table", "digits", "--protocol", "smoke", "--out", runs)
    assert (said.status, said.out) == (1, "")
    assert (
        "holds no cell of suite digits, protocol smoke, split test; it holds 60 cells of digits --protocol" in said.err
    )
    assert kdbench("table", "digits", "--protocol", "smokey", "--out", runs).status == 2


@pytest.mark.slow
def test_the_format_is_that_of_the_files_ending(kdbench: Callable[..., Said], runs: Path, tmp_path: Path) -> None:
    begins = {"a.tex": "%", "a.csv": "suite,", "a.md": "<!--", "a.html": "<!--", "a.json": "{"}
    for verb in ("table", "leaderboard"):
        for name, beginning in (begins | ({"a.csv": "method,"} if verb == "leaderboard" else {})).items():
            file = tmp_path / name
            assert kdbench(verb, "digits", "--out", runs, "--to", file).status == 0
            assert file.read_text().startswith(beginning), (verb, name)
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"kd", "scratch"}
    for name, form in (("x.tex", "csv"), ("x.md", "latex")):
        said = kdbench("table", "digits", "--out", runs, "--to", tmp_path / name, "--format", form)
        assert said.status == 2
        assert f"by its ending, and --format says {form}" in said.err
        assert not (tmp_path / name).exists()
    assert kdbench("leaderboard", "digits", "--out", runs, "--to", tmp_path / "x.png", "--format", "csv").status == 2


def test_cells_that_were_never_run_are_counted(kdbench: Callable[..., Said], runs: Path) -> None:
    plan = large_plan(cells=60)
    methods = sorted({cell.method for cell in plan.cells})
    said = kdbench("table", "digits", "--out", runs, "--methods", ",".join(methods[:3]), "--seeds", "0,1,2,3,4,5,6,7")
    assert said.status == 0
    assert " not run." in said.out


@pytest.mark.slow
def test_no_pdf_has_type_3_fonts(runs: Path, tmp_path: Path, kdbench: Callable[..., Said]) -> None:
    kdbench("leaderboard", "digits", "--out", runs, "--to", tmp_path / "board.pdf")
    content = (tmp_path / "board.pdf").read_bytes()
    assert b"/Type3" not in content
    assert b"/TrueType" in content or b"/Type42" in content or b"/CIDFontType2" in content
