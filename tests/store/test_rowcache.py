"""Remembered rows: the same table as without them, and never an old one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdbench.store import rowcache, rows
from kdbench.store.files import encode_json, read_json
from kdbench.store.layout import ROWS_FILE
from kdbench.store.rows import read_frame
from tests.reporting.large import large_plan, write_large

CELLS = 60


def load(root: Path, *choice: str, least: int = 10, settled: float = -10.0) -> pd.DataFrame:
    """Read a small directory whose rows are remembered all the same."""
    return read_frame(root, *choice, least=least, settled=settled)


def read_anew(root: Path) -> pd.DataFrame:
    (root / ROWS_FILE).unlink(missing_ok=True)
    return load(root)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "runs"
    write_large(root, large_plan(cells=CELLS), cells=CELLS)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "runs"))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The configurations that are parsed."""
    found: list[Path] = []

    def read(path: Path, real: Callable[[Path], Any] = read_json) -> Any:
        found.append(path)
        return real(path)

    monkeypatch.setattr(rows, "read_json", read)
    return found


def change(path: Path, top1: float) -> None:
    """Another result of the same length, in place, with the time of its last write put back."""
    before = path.stat()
    content = read_json(path)
    content["metrics"]["last"]["top1"] = top1
    path.write_bytes(encode_json(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_reading_parses_no_file_and_gives_the_same_table(root: Path, parsed: list[Path]) -> None:
    first = load(root)
    assert len(parsed) == CELLS
    parsed.clear()
    second = load(root)
    assert parsed == []
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(second, read_anew(root))
    assert {type(value) for value in second["dirty"]} == {bool}


def test_a_part_of_the_directory_is_taken_from_the_rows_of_the_whole(root: Path, parsed: list[Path]) -> None:
    whole = load(root)
    parsed.clear()
    pd.testing.assert_frame_equal(load(root, "digits", "short"), whole)
    assert len(load(root, "digits", "paper")) == 0
    assert parsed == []


def test_a_changed_file_is_read_again_even_with_its_old_time_and_size(root: Path) -> None:
    row = load(root).iloc[7]
    path, other = row["path"], float("1" + str(row["top1"])[1:])
    stamp = (root / path / "result.json").stat()
    change(root / path / "result.json", other)
    after = (root / path / "result.json").stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (stamp.st_mtime_ns, stamp.st_ino, stamp.st_size)
    again = load(root)
    assert again["top1"][7] == other != row["top1"]
    pd.testing.assert_frame_equal(again, read_anew(root))


def test_damaged_lost_failed_and_new_cells_are_seen(root: Path) -> None:
    paths = load(root)["path"]
    (root / paths[0] / "result.json").write_text("{")
    (root / paths[1] / "result.json").unlink()
    shutil.rmtree(root / paths[2])
    new = root / paths[3].replace("seed0", "seed77")
    shutil.copytree(root / paths[3], new)
    again = load(root)
    states = dict(zip(again["path"], again["state"], strict=True))
    assert [states.get(path) for path in paths[:4]] == ["planned", "planned", None, "done"]
    assert len(again) == CELLS
    pd.testing.assert_frame_equal(again, read_anew(root))


def test_files_that_were_just_written_are_not_remembered(root: Path) -> None:
    load(root, settled=60.0)
    assert not (root / ROWS_FILE).exists()


def test_few_cells_are_not_worth_a_file(root: Path) -> None:
    load(root, least=CELLS + 1)
    assert not (root / ROWS_FILE).exists()


def test_rows_of_other_code_are_not_taken(root: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[Path]) -> None:
    load(root)
    parsed.clear()
    monkeypatch.setattr(rowcache, "_key", lambda columns: "another")
    load(root)
    assert len(parsed) == CELLS


@pytest.mark.parametrize("damage", [b"", b"[]", b"nonsense" * 100, b"\xff", b'{"key": "", "rows": {}}'])
def test_a_damaged_cache_is_as_none(root: Path, damage: bytes) -> None:
    first = load(root)
    content = (root / ROWS_FILE).read_bytes()
    short = json.loads(content)
    next(iter(short["rows"].values()))[1].pop()
    for harm in (damage, content[: len(content) // 2], content[:-50], json.dumps(short).encode()):
        (root / ROWS_FILE).write_bytes(harm)
        pd.testing.assert_frame_equal(load(root), first)


def test_a_directory_that_cannot_be_written_is_read_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "read only", str(path))

    monkeypatch.setattr(rowcache, "write_bytes", refuse)
    assert len(load(root)) == CELLS
