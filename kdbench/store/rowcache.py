"""Rows of finished cells, remembered between readings of a large run directory, each with the identity of its two files.

Ten thousand cells are twenty thousand small files: parsing and checking them takes longer than everything that a table does with
them. A row is taken from the cache only while ``config.json`` and ``result.json`` are the very files that it was read from:
inode, size, and the times of the last write and of the last change of the inode, which no program can set. Files that were
touched in the last seconds are not remembered, since a second change within one tick of the clock would not show. The cache is
JSON and may be deleted at any time; where it cannot be written there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from kdbench.store.files import write_bytes
from kdbench.store.layout import CONFIG_FILE, RESULT_FILE, ROWS_FILE, cell_paths

#: Fewer rows than this are read anew as quickly.
LEAST = 500
#: Seconds for which a file must have been left alone.
SETTLED = 3.0

#: Path -> (signature, values in the order of the columns).
Rows = dict[str, tuple[list[int], list[Any]]]


def read_rows(
    root: Path,
    suite: str | None,
    protocol: str | None,
    read: Callable[[Path, str], Mapping[str, Any]],
    columns: Sequence[str],
    least: int = LEAST,
    settled: float = SETTLED,
) -> list[list[Any]]:
    """All rows below a run directory, in the order of their folders; None where a row lacks a column.

    Args:
        root: the run directory.
        suite, protocol: only these.
        read: from the run directory and the path of a cell to its row; a row with ``state`` "done" depends on ``config.json``
            and ``result.json`` alone.
        least: rows that are worth remembering.
        settled: seconds for which a file must have been left alone.
    """
    paths = list(cell_paths(root, suite, protocol))
    remember = len(paths) >= least
    key = _key(columns)
    cache = _load(root / ROWS_FILE, key, len(columns)) if remember else {}
    before = (time.time() - settled) * 1e9
    rows: list[list[Any]] = []
    kept: Rows = {}
    new = 0
    for path in paths:
        signature = _signature(f"{root}/{path}") if remember else None
        known = cache.get(path)
        if known is not None and known[0] == signature:
            rows.append(known[1])
            kept[path] = known
            continue
        row = read(root, path)
        rows.append([row.get(column) for column in columns])
        if signature is not None and row["state"] == "done" and max(signature[2:4] + signature[6:8]) < before:
            kept[path] = (signature, rows[-1])
            new += 1
    if remember and new >= least:
        with contextlib.suppress(OSError):  # a directory that may only be read
            write_bytes(root / ROWS_FILE, json.dumps({"key": key, "rows": kept}).encode())
    return rows


def _signature(folder: str) -> list[int] | None:
    """Identity of the two files that a finished cell's row comes from; None where one is not there."""
    try:
        config, result = os.stat(f"{folder}/{CONFIG_FILE}"), os.stat(f"{folder}/{RESULT_FILE}")
    except OSError:
        return None
    return [
        *(config.st_ino, config.st_size, config.st_mtime_ns, config.st_ctime_ns),
        *(result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns),
    ]


def _key(columns: Sequence[str]) -> str:
    """Changes with the columns and with the code of this package, so that no older code's rows are taken."""
    digest = hashlib.sha256(json.dumps([*columns]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _load(path: Path, key: str, width: int) -> Rows:
    """The rows in the file; empty where there is none, or a damaged one, or one of other code."""
    try:
        found = from_json(path.read_bytes(), cache_strings="all")  # in less than half of json's time
        whole = found["key"] == key and all(len(values) == width for _, values in found["rows"].values())
        return dict(found["rows"]) if whole else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
