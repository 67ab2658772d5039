"""A run directory and the folders in it: written so that results are final or absent, their state read once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell
from kdbench.store import folders
from kdbench.store.claims import ClaimLostError
from kdbench.store.files import write_bytes
from kdbench.store.folders import CellFolder, CellState, Store
from kdbench.store.layout import FORMAT
from kdbench.store.result import CellResult, TeacherResult, read_record, write_record
from kdbench.store.rows import load_results
from tests.records import cell_result, teacher_result

# The run directory


def test_run_directory_is_made_only_when_it_is_to_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    store.check()
    assert not store.root.exists()
    store.check(writable=True)
    assert json.loads((store.root / "format.json").read_text()) == {"format": FORMAT}
    store.check(writable=True)
    assert os.listdir(store.root) == ["format.json"]


@pytest.mark.parametrize("found", [FORMAT + 1, "2", None])
def test_run_directory_of_a_newer_format_is_refused(store: Store, found: Any) -> None:
    (store.root / "format.json").write_text(json.dumps({"format": found}))
    with pytest.raises(KdbenchError, match="newer kdbench"):
        store.check()
    with pytest.raises(KdbenchError, match="newer kdbench"):
        load_results(store.root)


def test_run_directory_with_a_damaged_marker_is_refused(store: Store) -> None:
    (store.root / "format.json").write_text("{")
    with pytest.raises(KdbenchError, match="damaged"):
        store.check()


def test_file_in_place_of_the_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for path in (tmp_path / "runs", tmp_path / "runs" / "inner"):
        with pytest.raises(KdbenchError, match="run directory"):
            Store(path).check(writable=True)


@pytest.mark.parametrize("exists", [True, False])
def test_run_directory_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    store = Store(tmp_path / "runs")
    if exists:
        store.check(writable=True)
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> Any:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(KdbenchError, match=r"cannot be written \(Permission denied\)"):
        store.check(writable=True)


def test_result_that_is_there_is_not_replaced_but_a_damaged_one_is(store: Store, cells: tuple[Cell, ...]) -> None:
    folder = store.cell(cells[0])
    first, other = cell_result(cells[0], 90.0), cell_result(cells[0], 80.0)
    folder.finish(first)
    with pytest.raises(ClaimLostError, match="was written by another process"):
        folder.finish(other)
    assert read_record(folder.result, CellResult) == first
    folder.result.write_bytes(b"{")
    folder.finish(other)
    assert read_record(folder.result, CellResult) == other
    assert os.listdir(folder.path) == ["result.json"]


# Cells


def test_state_of_a_cell_follows_its_files(store: Store, cells: tuple[Cell, ...]) -> None:
    cell = cells[0]
    folder = store.cell(cell)
    assert folder.state() == "planned"
    folder.prepare(cell)
    assert folder.state() == "planned"
    write_bytes(folder.checkpoint(1), b"x")
    assert folder.state() == "interrupted"
    folder.fail("exception", "why", 1)
    assert (folder.state(), folder.failure().reason, folder.failure().epoch) == ("failed", "why", 1)
    write_record(folder.result, cell_result(cell))
    assert folder.look() == CellState("done", cell_result(cell))
    folder.result.write_bytes(folder.result.read_bytes()[:-20])
    assert folder.is_damaged()
    assert folder.look() == CellState("failed", problem=f"{folder.result}: its checksum does not match")


def test_scan_reads_each_result_once(store: Store, cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in cells[:5]:
        store.cell(cell).prepare(cell)
        store.cell(cell).finish(cell_result(cell))
    read: list[Path] = []

    def count(path: Path, kind: Any, real: Callable[..., Any] = read_record) -> Any:
        read.append(path)
        return real(path, kind)

    monkeypatch.setattr(folders, "read_record", count)
    found = store.scan(cells)
    assert [found[cell.folder].state for cell in cells] == ["done"] * 5 + ["planned"] * 7
    assert found[cells[0].folder].result == cell_result(cells[0])
    assert sorted(read) == sorted(store.cell(cell).result for cell in cells)


@pytest.mark.parametrize(("kind", "kept"), [("crash", 1), ("teacher", 1), ("exception", 0), ("non-finite loss", 0)])
def test_forgotten_failure_goes_on_from_a_checkpoint_only_if_the_process_died(
    store: Store, cells: tuple[Cell, ...], kind: str, kept: int
) -> None:
    folder = store.cell(cells[0])
    write_bytes(folder.checkpoint(1), b"x")
    folder.fail(kind, "why", 1)
    folder.forget_failure()
    assert not folder.failed.exists()
    assert len(folder.checkpoints()) == kept


def test_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    positions = [(3, 0), (3, 7), (3, 1000), (12, 0), (100, 0)]
    for position in positions[::-1]:
        write_bytes(folder.checkpoint(*position), b"")
    assert folder.checkpoints() == [folder.checkpoint(*position) for position in positions]


def test_log_keeps_every_line_with_its_time(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path / "new")
    folder.say("one\ntwo")
    folder.say("three")
    lines = folder.log.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["one", "two", "three"]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)


def test_preparing_a_cell_again_mends_its_configuration_and_keeps_its_result(
    store: Store, cells: tuple[Cell, ...]
) -> None:
    folder = store.cell(cells[0])
    folder.prepare(cells[0])
    folder.finish(cell_result(cells[0]))
    folder.config.write_bytes(folder.config.read_bytes()[:-30])
    folder.prepare(cells[0])
    row = load_results(store.root).iloc[0]
    assert (row["state"], row["top1"]) == ("done", 90.0)


def test_teachers_result_counts_only_together_with_its_weights(store: Store, cells: tuple[Cell, ...]) -> None:
    teacher = cells[0].teacher
    folder = store.teacher_folder(teacher)
    assert store.result_of_teacher(teacher) is None
    write_record(folder.result, teacher_result(teacher))
    assert store.result_of_teacher(teacher) is None
    write_bytes(folder.weights, b"x")
    found = store.result_of_teacher(teacher)
    assert found == read_record(folder.result, TeacherResult) == teacher_result(teacher)
    assert found.top1 == 95.0
    folder.result.write_bytes(b"{")
    assert store.result_of_teacher(teacher) is None
