"""A run directory as a table that never loses a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.metrics import BUILT_IN
from kdbench.plugins.registry import catalog
from kdbench.reporting.frame import fill_frame
from kdbench.store.claims import Claims
from kdbench.store.files import write_bytes, write_json
from kdbench.store.folders import Store
from kdbench.store.result import Definition, write_record
from kdbench.store.rows import COLUMNS, load_results, planned_results
from kdbench.suite.suite import load_suite
from tests.records import cell_result

KINDS = {
    "done": "done",
    "failed": "failed",
    "skipped": "skipped",
    "planned": "planned",
    "running": "running",
    "interrupted": "planned",
    "result cut": "planned",
    "config cut": "planned",
    "config and result cut": "planned",
    "another's result": "planned",
}


def fill(store: Store, cells: tuple[Cell, ...]) -> dict[str, Cell]:
    """One cell of every kind, by what it is."""
    named = dict(zip(KINDS, cells, strict=False))
    for cell in named.values():
        store.cell(cell).prepare(cell)
    for kind in ("done", "result cut", "config cut", "config and result cut"):
        write_record(store.cell(named[kind]).result, cell_result(named[kind], best=91.0))
    store.cell(named["failed"]).fail("exception", "ValueError: why", 1)
    write_json(store.cell(named["skipped"]).skipped, {"reason": "impossible"})
    write_bytes(store.cell(named["interrupted"]).checkpoint(1), b"x")
    Claims().take(store.cell(named["running"]).path)
    write_json(store.cell(named["another's result"]).result, {"metrics": {}})
    for kind in named:
        folder = store.cell(named[kind])
        for path in (folder.config, folder.result):
            if kind.endswith("cut") and path.stem in kind:
                path.write_bytes(path.read_bytes()[:-30])
    return named


def test_table_has_a_row_for_every_cell_whatever_its_state(store: Store, cells: tuple[Cell, ...]) -> None:
    named = fill(store, cells)
    frame = load_results(store.root)
    assert list(frame.columns) == COLUMNS
    rows = frame.set_index("path")
    found = {kind: rows.loc[cell.folder] for kind, cell in named.items()}
    assert len(frame) == len(found)
    assert {kind: row["state"] for kind, row in found.items()} == KINDS
    assert found["done"]["reason"] == ""
    assert found["planned"]["reason"] == ""
    assert found["failed"]["reason"] == "ValueError: why"
    assert found["skipped"]["reason"] == "impossible"
    why = {
        "result cut": "result.json: its checksum does not match",
        "config cut": "config.json: its checksum does not match",
        "config and result cut": "config.json: its checksum does not match",
        "another's result": "result.json: hash: Field required",
    }
    lines = {kind: f"{named[kind].folder}/{text}" for kind, text in why.items()}
    assert sorted(frame.attrs["damaged"]) == sorted(lines.values())
    for kind, line in lines.items():
        assert found[kind]["reason"] == f"damaged: {line}; kdbench run trains the cell again"
    for kind, cell in named.items():  # also of a damaged configuration it is known whose it was
        columns = ["suite", "protocol", "pair", "teacher", "student", "method", "seed", "config_hash"]
        own = ["tiny", "seeds", cell.pair, cell.teacher.name, cell.student, cell.method, cell.seed, cell.hash]
        assert found[kind][columns].tolist() == own


def test_table_holds_plain_numbers_of_fixed_types(store: Store, cells: tuple[Cell, ...]) -> None:
    fill(store, cells)
    frame = load_results(store.root)
    numbers = [
        *BUILT_IN,
        *(f"best_{name}" for name in BUILT_IN),
        "teacher_top1",
        "step_seconds",
        "epochs",
        "best_epoch",
    ]
    assert set(frame[numbers].dtypes) == {pd.Series([0.5]).dtype}
    assert frame["seed"].dtype == "int64"
    done = frame[frame["state"] == "done"].iloc[0]
    assert (done["top1"], done["best_top1"], done["best_epoch"], done["teacher_top1"]) == (90.0, 91.0, 1, 95.0)
    assert (done["epochs"], done["student_parameters"], done["commit"]) == (2, 1000, "abc")
    assert (done["teacher_display"], done["student_display"], done["teacher_family"]) == ("Tiny CNN", "vit", "cnn")
    assert json.loads(done["hyperparameters"]) == {}
    rest = frame[frame["state"] != "done"]
    assert rest[list(BUILT_IN)].isna().all(axis=None)


def test_metrics_of_plugins_are_columns_and_come_with_their_definitions(store: Store, cells: tuple[Cell, ...]) -> None:
    mine = Definition(title="Mine", unit="s", higher_is_better=False, decimals=2, tie_band=0.1)
    for cell, extra in zip(cells, ({"mine": mine}, {}), strict=False):
        store.cell(cell).prepare(cell)
        store.cell(cell).finish(cell_result(cell, extra=extra))
    frame = load_results(store.root).set_index("path")
    assert list(frame.columns[-2:]) == ["mine", "best_mine"]
    assert frame[["mine", "best_mine"]].loc[cells[0].folder].tolist() == [0.5, 0.5]
    assert frame["mine"].isna().loc[cells[1].folder]
    assert json.loads(frame["plugin_metrics"].loc[cells[0].folder]) == {"mine": mine.model_dump()}


def test_table_of_some_suite_or_protocol_alone(store: Store, cells: tuple[Cell, ...]) -> None:
    fill(store, cells)
    assert len(load_results(store.root, "tiny", "seeds")) == 10
    assert load_results(store.root, "other").empty
    assert load_results(store.root, "tiny", "short").empty


def test_empty_run_directory_gives_an_empty_table_with_all_columns(store: Store) -> None:
    frame = load_results(store.root)
    assert frame.empty
    assert list(frame.columns) == COLUMNS
    assert frame["top1"].dtype == "float64"


def test_missing_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="does not exist; kdbench run makes it"):
        load_results(tmp_path / "nowhere")


def test_folders_of_others_in_the_run_directory_do_no_harm(store: Store) -> None:
    write_bytes(store.root / "a" / "b" / "x--y" / "kd" / "seedy-1" / "config.json", b"{}")
    write_bytes(store.root / "notes.txt", b"mine")
    assert load_results(store.root).empty


def test_a_csv_file_of_the_table_gives_the_table_again(store: Store, cells: tuple[Cell, ...], tmp_path: Path) -> None:
    fill(store, cells)
    mine = Definition(title="Mine", unit="s", higher_is_better=False, decimals=2, tie_band=0.1)
    last = cells[len(KINDS)]
    store.cell(last).prepare(last)
    store.cell(last).finish(cell_result(last, top1=100 / 3, extra={"mine": mine}))
    file, again = tmp_path / "cells.csv", tmp_path / "again.csv"
    frame = load_results(store.root)
    frame.to_csv(file, index=False)
    read = load_results(file)
    pd.testing.assert_frame_equal(fill_frame(read), fill_frame(frame))
    read.to_csv(again, index=False)
    assert again.read_bytes() == file.read_bytes()
    assert len(load_results(file, "tiny", "seeds")) == len(frame)
    assert load_results(file, "other").empty


def test_a_csv_file_of_an_older_version_lacks_columns_and_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("suite,protocol,pair,method,seed,state,top1\ntiny,short,a--b,kd,0,done,50.5\n")
    row = load_results(file).iloc[0]
    assert (row["top1"], row["seed"], row["state"]) == (50.5, 0, "done")
    assert pd.isna(row["top5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,top1\n1,2\n", "has no column 'suite'"),
        ('suite,protocol,pair,method,seed,state\n"tiny', "cannot be read as CSV"),
        ("", "cannot be read as CSV"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "cells.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KdbenchError, match=message) as found:
        load_results(file)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("suite", "size"), [("digits", 32), ("cifar100-32", 32), ("cifar100", 224), ("imagenet1k", 224)]
)
def test_rows_have_the_size_of_the_images(suite: str, size: int, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    cells = make_plan(load_suite(suite), Request(methods=("kd",)), catalog()).cells[:1]
    store.cell(cells[0]).prepare(cells[0])
    stored, planned = load_results(store.root), planned_results(cells)
    assert (stored["image_size"] == size).all()
    pd.testing.assert_frame_equal(stored, planned)
