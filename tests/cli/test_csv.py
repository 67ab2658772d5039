"""A CSV file in the place of a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.store.rows import load_results
from tests.conftest import Said
from tests.few import few
from tests.reporting.large import large_plan, write_large


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """A run directory, and a file that holds its cells."""
    runs, file = tmp_path / "runs", tmp_path / "cells.csv"
    write_large(runs, large_plan(cells=60), cells=60)
    load_results(runs).to_csv(file, index=False)
    return runs, file


@pytest.mark.parametrize(
    "words", few([["table"], ["leaderboard"], ["table", "--format", "latex"], ["table", "--methods", "kd,scratch"]], 2)
)
def test_a_csv_file_gives_the_same_tables(
    kdbench: Callable[..., Said], stores: tuple[Path, Path], words: list[str]
) -> None:
    runs, file = (kdbench(*words, "digits", "--out", store) for store in stores)
    assert (file.status, file.err) == (0, "")
    assert file.out.replace(str(stores[1]), "STORE") == runs.out.replace(str(stores[0]), "STORE")


def test_a_table_of_an_older_kdbench_is_read_beside_cells_that_are_not_run(
    kdbench: Callable[..., Said], stores: tuple[Path, Path]
) -> None:
    load_results(stores[1]).drop(columns=["variant_of", "settings", "plugin_metrics"]).iloc[:-1].to_csv(
        stores[1], index=False
    )
    said = kdbench("table", "digits", "--methods", "*", "--out", stores[1])
    assert (said.status, said.err) == (0, "")
    assert "not run" in said.out


def test_pairs_and_seeds_choose_rows_of_a_csv_file(kdbench: Callable[..., Said], stores: tuple[Path, Path]) -> None:
    rows = load_results(stores[1])
    pair, seed = rows["pair"].iloc[0], int(rows["seed"].max())
    said = kdbench("table", "digits", "--out", stores[1], "--pairs", pair, "--seeds", seed, "--format", "csv")
    assert said.status == 0
    assert pair in said.out
    assert not [other for other in rows["pair"].unique() if other != pair and other in said.out]


@pytest.mark.slow
def test_plots_and_report_of_a_csv_file_do_without_curves_and_predictions(
    kdbench: Callable[..., Said], stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.reporting.plots import draw

    monkeypatch.setattr(draw, "PLOTS", {name: draw.PLOTS[name] for name in ("ranks", "curves", "calibration")})
    said = kdbench("plots", "digits", "--out", stores[1], "--to", tmp_path / "plots", "--format", "svg")
    assert (said.status, said.err) == (0, "")
    captions = (tmp_path / "plots" / "captions.md").read_text()
    assert captions.count("(not drawn)") == 2
    said = kdbench("report", "digits", "--out", stores[1], "--to", tmp_path / "report.html")
    assert (said.status, said.err) == (0, "")


@pytest.mark.parametrize("verb", ["classes", "status", "run"])
def test_what_needs_more_than_rows_says_so(kdbench: Callable[..., Said], stores: tuple[Path, Path], verb: str) -> None:
    said = kdbench(verb, "digits", "--out", stores[1])
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"kdbench: run directory {stores[1]} is not a directory; only table, leaderboard,")
    assert said.err.count("\n") == 1
