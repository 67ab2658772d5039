"""Larger run directories, and the verbs that read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.store.rows import load_results
from tests.reporting.large import large_plan, write_large


def test_a_written_store_is_read_back_as_planned(tmp_path: Path) -> None:
    plan = large_plan(cells=60)
    write_large(tmp_path / "runs", plan, cells=60)
    rows = load_results(tmp_path / "runs")
    assert set(rows["path"]) == {cell.folder for cell in plan.cells[:60]}
    assert (rows["state"] == "done").all()
    assert rows["top1"].between(50, 90.01).all()


@pytest.mark.slow
def test_report_and_plots_are_written_from_the_command_line(kdbench, tmp_path: Path, monkeypatch) -> None:
    from kdbench.reporting.plots import draw

    monkeypatch.setattr(draw, "PLOTS", {"ranks": draw.PLOTS["ranks"]})
    write_large(tmp_path / "runs", large_plan(cells=60), cells=60)
    said = kdbench("report", "digits", "--out", tmp_path / "runs", "--to", tmp_path / "r.html")
    assert (said.status, said.err) == (0, "")
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    said = kdbench("plots", "digits", "--out", tmp_path / "runs", "--to", tmp_path / "plots", "--format", "svg,pdf")
    assert (said.status, said.err) == (0, "")
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"captions.md", "ranks.svg", "ranks.pdf"}
    assert kdbench("plots", "digits", "--out", tmp_path / "runs").status == 2
    said = kdbench("plots", "digits", "--out", tmp_path / "runs", "--to", tmp_path / "p", "--format", "gif")
    assert (said.status, said.err) == (2, "kdbench: unknown format 'gif' in plots; valid: pdf, png, svg\n")
