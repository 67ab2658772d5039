"""Results on disk: whole or absent, checked when they are read, gathered as a table that never loses a cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.claims import ClaimLostError, Claims
from kdbench.store.folders import (
    COLUMNS,
    FORMAT,
    METRICS,
    CellFolder,
    DamagedFileError,
    Store,
    load_results,
    read_json,
    write_bytes,
    write_json,
)
from tests.conftest import tiny_suite


def cells() -> tuple[Cell, ...]:
    """Twelve cells: three pairs, two methods, two seeds."""
    return make_plan(tiny_suite(), Request(protocol="seeds"), catalog()).cells


def result(cell: Cell, top1: float = 90.0) -> dict[str, Any]:
    """What the engine writes for a trained cell, as far as tables read it."""
    scores = {**dict.fromkeys(METRICS, 1.0), "top1": top1}
    return {
        "format": FORMAT,
        "kind": "cell",
        "hash": cell.hash,
        "metrics": {"last": {"epoch": 2, **scores}, "best": {"epoch": 1, **scores, "top1": top1 + 1}},
        "teacher": {"name": cell.teacher.name, "top1": 95.0, "top5": 100.0},
        "cost": {
            "student_parameters": 1000, "extra_parameters": 10, "step_seconds": 0.1,
            "train_seconds": 1.0, "peak_memory_bytes": 5, "steps": 10,
        },
        "provenance": {"device": "a processor", "commit": "abc", "dirty": False, "finished": "2026-01-01T00:00:00Z"},
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "runs")
    made.check(writable=True)
    return made


# Files


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_crash_before_the_rename_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from kdbench.store.folders import write_json\n"
        "path = Path(sys.argv[1]); write_json(path, {'a': 1})\n"
        "os.replace = lambda *a: os._exit(9); write_json(path, {'a': 2})"
    )
    path = tmp_path / "x.json"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    assert read_json(path) == {"a": 1}


def test_json_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "ä"], "b": {"c": float("inf")}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw.replace(b"90", b"91"),
        lambda raw: b"\x00" * len(raw),
        lambda raw: b"[1, 2]",
        lambda raw: b'{"top1": 90}',
        lambda raw: b"[" * 100_000,
    ],
)
def test_file_that_was_cut_or_altered_is_told_from_a_sound_one(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"top1": 90})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match="is damaged"):
        read_json(path)


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
    real = open

    def refuse(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "w" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *rest, **named)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(KdbenchError, match=r"cannot be written \(Permission denied\)"):
        store.check(writable=True)


def test_result_that_is_there_is_not_replaced_but_a_damaged_one_is(store: Store) -> None:
    folder = store.cell(cells()[0])
    folder.finish({"top1": 1})
    with pytest.raises(ClaimLostError, match="was written by another process"):
        folder.finish({"top1": 2})
    assert read_json(folder.result) == {"top1": 1}
    folder.result.write_bytes(b"{")
    folder.finish({"top1": 3})
    assert read_json(folder.result) == {"top1": 3}
    assert os.listdir(folder.path) == ["result.json"]


# Cells


def test_state_of_a_cell_follows_its_files(store: Store) -> None:
    cell = cells()[0]
    folder = store.cell(cell)
    assert folder.state() == "planned"
    folder.prepare(cell)
    assert folder.state() == "planned"
    write_bytes(folder.path / "checkpoint-00001.ckpt", b"x")
    assert folder.state() == "interrupted"
    write_json(folder.failed, {"kind": "exception", "reason": "why", "epoch": 1})
    assert (folder.state(), folder.failure()["reason"]) == ("failed", "why")
    write_json(folder.result, result(cell))
    assert folder.state() == "done"
    folder.result.write_bytes(folder.result.read_bytes()[:-20])
    assert folder.is_damaged()
    assert folder.state() == "failed"


@pytest.mark.parametrize(("kind", "kept"), [("crash", 1), ("teacher", 1), ("exception", 0), ("non-finite loss", 0)])
def test_forgotten_failure_goes_on_from_a_checkpoint_only_if_the_process_died(
    store: Store, kind: str, kept: int
) -> None:
    folder = store.cell(cells()[0])
    write_bytes(folder.path / "checkpoint-00001.ckpt", b"x")
    write_json(folder.failed, {"kind": kind, "reason": "why", "epoch": 1})
    folder.forget_failure()
    assert not folder.failed.exists()
    assert len(folder.checkpoints()) == kept


def test_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    for epoch in (12, 3, 100):
        write_bytes(tmp_path / f"checkpoint-{epoch:05d}.ckpt", b"")
    assert [path.name for path in folder.checkpoints()] == [f"checkpoint-{epoch:05d}.ckpt" for epoch in (3, 12, 100)]


def test_log_keeps_every_line_with_its_time(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path / "new")
    folder.say("one\ntwo")
    folder.say("three")
    lines = folder.log.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["one", "two", "three"]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)


# The table


def fill(store: Store) -> dict[str, Cell]:
    """One cell of every kind, by what it is."""
    kinds = (
        "done",
        "failed",
        "skipped",
        "planned",
        "running",
        "begun",
        "result cut",
        "config cut",
        "config and result cut",
        "other version",
    )
    named = dict(zip(kinds, cells(), strict=False))
    for cell in named.values():
        store.cell(cell).prepare(cell)
    for kind in ("done", "result cut", "config cut", "config and result cut"):
        write_json(store.cell(named[kind]).result, result(named[kind]))
    write_json(store.cell(named["failed"]).failed, {"kind": "exception", "reason": "ValueError: why", "epoch": 1})
    write_json(store.cell(named["skipped"]).skipped, {"reason": "impossible"})
    write_bytes(store.cell(named["begun"]).path / "checkpoint-00001.ckpt", b"x")
    Claims().take(store.cell(named["running"]).path)
    write_json(store.cell(named["other version"]).result, {"metrics": {}})
    for kind in named:
        folder = store.cell(named[kind])
        for path in (folder.config, folder.result):
            if kind.endswith("cut") and path.stem in kind:
                path.write_bytes(path.read_bytes()[:-30])
    return named


def test_table_has_a_row_for_every_cell_whatever_its_state(store: Store) -> None:
    named = fill(store)
    frame = load_results(store.root)
    assert list(frame.columns) == COLUMNS
    rows = frame.set_index("path")
    found = {kind: rows.loc[cell.folder] for kind, cell in named.items()}
    assert len(frame) == len(found)
    assert {kind: row["state"] for kind, row in found.items()} == {
        "done": "done",
        "failed": "failed",
        "skipped": "skipped",
        "planned": "planned",
        "running": "running",
        "begun": "planned",
        "result cut": "planned",
        "config cut": "planned",
        "config and result cut": "planned",
        "other version": "planned",
    }
    assert found["done"]["reason"] == ""
    assert found["planned"]["reason"] == ""
    assert found["failed"]["reason"] == "ValueError: why"
    assert found["skipped"]["reason"] == "impossible"
    assert "result.json is damaged" in found["result cut"]["reason"]
    assert "config.json is damaged" in found["config cut"]["reason"]
    assert "another version of kdbench (KeyError" in found["other version"]["reason"]
    for kind, cell in named.items():  # also of a damaged configuration it is known whose it was
        columns = ["suite", "protocol", "pair", "teacher", "student", "method", "seed", "config_hash"]
        own = ["tiny", "seeds", cell.pair, cell.teacher.name, cell.student, cell.method, cell.seed, cell.hash]
        assert found[kind][columns].tolist() == own


def test_table_holds_plain_numbers_of_fixed_types(store: Store) -> None:
    fill(store)
    frame = load_results(store.root)
    numbers = [
        *METRICS,
        *(f"best_{name}" for name in METRICS),
        "teacher_top1",
        "step_seconds",
        "extra_parameters",
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
    assert rest[list(METRICS)].isna().all(axis=None)


def test_table_of_some_suite_or_protocol_alone(store: Store) -> None:
    fill(store)
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


def test_preparing_a_cell_again_mends_its_configuration_and_keeps_its_result(store: Store) -> None:
    named = fill(store)
    cell = named["config cut"]
    store.cell(cell).prepare(cell)
    row = load_results(store.root).set_index("path").loc[cell.folder]
    assert (row["state"], row["top1"]) == ("done", 90.0)


def test_teachers_result_counts_only_together_with_its_weights(store: Store) -> None:
    teacher = cells()[0].teacher
    folder = CellFolder(store.teacher(teacher))
    assert store.result_of_teacher(teacher) is None
    write_json(folder.result, {"checksum": "x"})
    assert store.result_of_teacher(teacher) is None
    write_bytes(folder.path / "weights.safetensors", b"x")
    assert store.result_of_teacher(teacher) == {"checksum": "x"}
    folder.result.write_bytes(b"{")
    assert store.result_of_teacher(teacher) is None
