"""Remembered rows: the same table as without them, and never an old one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdbench.store import folders, rowcache
from kdbench.store.folders import load_results
from tests.reporting.large import _write, large_plan, write_large

CELLS = 60


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory small enough to be quick, whose rows are remembered all the same."""
    monkeypatch.setattr(rowcache, "LEAST", 10)
    monkeypatch.setattr(rowcache, "SETTLED", -10.0)
    write_large(tmp_path / "runs", large_plan(cells=CELLS), cells=CELLS)
    return tmp_path / "runs"


def read_anew(root: Path) -> pd.DataFrame:
    (root / rowcache.FILE).unlink(missing_ok=True)
    return load_results(root)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are parsed."""
    found: list[Path] = []

    def read(path: Path, real: Callable[[Path], Any] = folders.read_json) -> Any:
        found.append(path)
        return real(path)

    monkeypatch.setattr(folders, "read_json", read)
    return found


def change(path: Path, top1: float) -> None:
    """Another result of the same length, in place, with the time of its last write put back."""
    before = path.stat()
    content = json.loads(path.read_text())
    content.pop("file_checksum")
    content["metrics"]["last"]["top1"] = top1
    _write(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_reading_parses_no_file_and_gives_the_same_table(root: Path, parsed: list[Path]) -> None:
    first = load_results(root)
    assert len(parsed) == 2 * CELLS
    parsed.clear()
    second = load_results(root)
    assert parsed == []
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(second, read_anew(root))
    assert {type(value) for value in second["dirty"]} == {bool}


def test_a_part_of_the_directory_is_taken_from_the_rows_of_the_whole(root: Path, parsed: list[Path]) -> None:
    whole = load_results(root)
    parsed.clear()
    pd.testing.assert_frame_equal(load_results(root, "digits", "short"), whole)
    assert len(load_results(root, "digits", "paper")) == 0
    assert parsed == []


def test_a_changed_file_is_read_again_even_with_its_old_time_and_size(root: Path) -> None:
    row = load_results(root).iloc[7]
    path, other = row["path"], float("1" + str(row["top1"])[1:])
    stamp = (root / path / "result.json").stat()
    change(root / path / "result.json", other)
    after = (root / path / "result.json").stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (stamp.st_mtime_ns, stamp.st_ino, stamp.st_size)
    again = load_results(root)
    assert again["top1"][7] == other != row["top1"]
    pd.testing.assert_frame_equal(again, read_anew(root))


def test_damaged_lost_failed_and_new_cells_are_seen(root: Path) -> None:
    paths = load_results(root)["path"]
    (root / paths[0] / "result.json").write_text("{")
    (root / paths[1] / "result.json").unlink()
    shutil.rmtree(root / paths[2])
    new = root / paths[3].replace("seed0", "seed77")
    shutil.copytree(root / paths[3], new)
    again = load_results(root)
    states = dict(zip(again["path"], again["state"], strict=True))
    assert [states.get(path) for path in paths[:4]] == ["planned", "planned", None, "done"]
    assert len(again) == CELLS
    pd.testing.assert_frame_equal(again, read_anew(root))


def test_files_that_were_just_written_are_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcache, "SETTLED", 60.0)
    load_results(root)
    assert not (root / rowcache.FILE).exists()


def test_few_cells_are_not_worth_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcache, "LEAST", CELLS + 1)
    load_results(root)
    assert not (root / rowcache.FILE).exists()


def test_rows_of_other_code_are_not_taken(root: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[Path]) -> None:
    load_results(root)
    parsed.clear()
    monkeypatch.setattr(rowcache, "_key", lambda columns: "another")
    load_results(root)
    assert len(parsed) == 2 * CELLS


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"nonsense" * 100])
def test_a_damaged_cache_is_as_none(root: Path, damage: bytes) -> None:
    first = load_results(root)
    content = (root / rowcache.FILE).read_bytes()
    for harm in (damage, content[: len(content) // 2], content[:-50]):
        (root / rowcache.FILE).write_bytes(harm)
        pd.testing.assert_frame_equal(load_results(root), first)


def test_the_cache_holds_nothing_that_can_run(root: Path) -> None:
    load_results(root)
    with np.load(root / rowcache.FILE, allow_pickle=False) as stored:
        assert {stored[name].dtype.kind for name in stored} <= {"u", "i", "f"}


def test_a_directory_that_cannot_be_written_is_read_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "read only", str(path))

    monkeypatch.setattr(folders, "write_bytes", refuse)
    assert len(load_results(root)) == CELLS
