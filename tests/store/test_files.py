"""Files that are whole or absent, and JSON with a checksum."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.store.files import DamagedFileError, read_json, write_bytes, write_json


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_a_file_that_is_written_once_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"first", once=True)
    with pytest.raises(FileExistsError):
        write_bytes(path, b"second", once=True)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


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
        "import os, sys; from pathlib import Path; from kdbench.store.files import write_json\n"
        "path = Path(sys.argv[1]); write_json(path, {'a': 1})\n"
        "os.replace = lambda *a: os._exit(9); write_json(path, {'a': 2})"
    )
    path = tmp_path / "x.json"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    assert read_json(path) == {"a": 1}


def test_json_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "ä"], "b": {"c": 0.1}}
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


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_number_that_is_not_finite_is_damage_even_under_a_sound_checksum(tmp_path: Path, number: bytes) -> None:
    body = b'{\n "top1": ' + number
    checksum = hashlib.sha256(body).hexdigest().encode()
    (tmp_path / "x.json").write_bytes(body + b',\n "file_checksum": "' + checksum + b'"\n}\n')
    with pytest.raises(DamagedFileError, match="is no number of JSON"):
        read_json(tmp_path / "x.json")
