"""Rows of finished cells, remembered between readings of a large run directory, each with the identity of its two files.

Ten thousand cells are twenty thousand small files: to parse them and check their checksums takes longer than everything that a
table does with them. A row is taken from the cache only while ``config.json`` and ``result.json`` are the very files that it was
read from: inode, size, and the times of the last write and of the last change of the inode, which no program can set. Files
that were touched in the last seconds are not remembered, since a second change within one tick of the clock would not show.
The cache holds numbers and texts, no code; it may be deleted at any time, and where it cannot be written there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.store.layout import CONFIG_FILE, RESULT_FILE, ROWS_FILE, cell_paths

#: Fewer rows than this are read anew as quickly.
LEAST = 500
#: Seconds for which a file must have been left alone.
SETTLED = 3.0

Row = Mapping[str, Any]
_NOTHING = float("nan")


@dataclass(frozen=True)
class Cache:
    """Rows by column. ``index``: path -> row; ``signatures``: (n, 8); ``numbers``: (n, numeric columns), NaN where absent;
    ``codes``: (n, other columns), positions in ``words`` of that column.
    """

    index: Mapping[str, int]
    signatures: np.ndarray
    numbers: np.ndarray
    codes: np.ndarray
    words: Sequence[Sequence[Any]]


def read_rows(
    root: Path,
    suite: str | None,
    protocol: str | None,
    read: Callable[[Path, str], Row],
    columns: Sequence[str],
    numbers: Sequence[str],
    write: Callable[[Path, bytes], None],
    least: int = LEAST,
    settled: float = SETTLED,
) -> dict[str, list[Any]]:
    """All rows below a run directory, by column, in the order of their folders.

    Args:
        root: the run directory.
        suite, protocol: only these.
        read: from the run directory and the path of a cell to its row; a row with ``state`` "done" depends on ``config.json``
            and ``result.json`` alone.
        columns: names of all columns; ``numbers`` those that hold real numbers.
        write: writes a file atomically.
        least: rows that are worth remembering.
        settled: seconds for which a file must have been left alone.
    """
    others = [name for name in columns if name not in set(numbers)]
    folders = list(cell_paths(root, suite, protocol))
    key = _key(columns)
    cache = _load(root / ROWS_FILE, key, len(numbers), len(others)) if len(folders) >= least else None
    signatures = [_signature(f"{root}/{folder}") for folder in folders] if len(folders) >= least else []
    hits = _hits(cache, folders, signatures) if cache else np.full(len(folders), -1)
    now = time.time()
    missing = [i for i, hit in enumerate(hits) if hit < 0]
    rows = {i: read(root, folders[i]) for i in missing}
    found: dict[str, list[Any]] = {}
    known = hits[hits >= 0]
    place = np.flatnonzero(hits >= 0)
    for j, name in enumerate(numbers):
        column = np.full(len(folders), np.nan)
        if cache:
            column[place] = cache.numbers[known, j]
        for i in missing:
            column[i] = _real(rows[i].get(name))
        found[name] = column.tolist()
    for j, name in enumerate(others):
        values: list[Any] = [rows[i].get(name, _NOTHING) if i in rows else None for i in range(len(folders))]
        if cache:
            words = cache.words[j]
            for i, code in zip(place.tolist(), cache.codes[known, j].tolist(), strict=True):
                values[i] = words[code]
        found[name] = values
    new = [
        i
        for i in missing
        if signatures and rows[i].get("state") == "done" and _is_settled(signatures[i], now - settled)
    ]
    if len(new) >= least:
        kept = [*place.tolist(), *new]
        content = _pack(
            key,
            [folders[i] for i in kept],
            [signatures[i] for i in kept],
            np.array([found[name] for name in numbers], float).T[kept],
            [[found[name][i] for i in kept] for name in others],
        )
        with contextlib.suppress(OSError):  # a directory that may only be read
            write(root / ROWS_FILE, content)
    return {name: found[name] for name in columns}


def _signature(folder: str) -> tuple[int, ...] | None:
    """Identity of the two files that a finished cell's row comes from; None where one is not there."""
    try:
        config, result = os.stat(f"{folder}/{CONFIG_FILE}"), os.stat(f"{folder}/{RESULT_FILE}")
    except OSError:
        return None
    return (
        *(config.st_ino, config.st_size, config.st_mtime_ns, config.st_ctime_ns),
        *(result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns),
    )


def _is_settled(signature: tuple[int, ...] | None, since: float) -> bool:
    """Whether both files were left alone since then, by the clock that stamps them."""
    return signature is not None and max(signature[2], signature[3], signature[6], signature[7]) < since * 1e9


def _hits(cache: Cache, folders: Sequence[str], signatures: Sequence[tuple[int, ...] | None]) -> np.ndarray:
    """For each folder the cache's row, or -1."""
    rows = np.array([cache.index.get(folder, -1) for folder in folders])
    given = np.array([signature or (0,) * 8 for signature in signatures], np.uint64)
    same = (cache.signatures[rows] == given).all(axis=1) & given.any(axis=1)
    return np.where(same, rows, -1)


def _key(columns: Sequence[str]) -> str:
    """Changes with the columns and with the code of this package, so that no older code's rows are taken."""
    digest = hashlib.sha256(json.dumps([*columns]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pack(
    key: str,
    paths: Sequence[str],
    signatures: Sequence[tuple[int, ...] | None],
    numbers: np.ndarray,
    others: Sequence[Sequence[Any]],
) -> bytes:
    codes, words = [], []
    for values in others:
        # The type is part of the key: True and 1 are not the same word.
        found: dict[tuple[type, Any], int] = {}
        codes.append([found.setdefault((type(value), value), len(found)) for value in values])
        words.append([value for _, value in found])
    texts = {"key": key, "paths": "\n".join(paths), "words": json.dumps(words)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        signatures=np.array(signatures, np.uint64),
        numbers=numbers,
        codes=np.array(codes, np.int32).T,
        **{name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()},  # type: ignore[arg-type]
    )
    return buffer.getvalue()


def _load(path: Path, key: str, numbers: int, others: int) -> Cache | None:
    """The cache, or None where there is none, or one of other code, or a damaged one."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if stored["key"].tobytes().decode() != key:
                return None
            paths = stored["paths"].tobytes().decode().split("\n")
            words = json.loads(stored["words"].tobytes())
            cache = Cache(
                {folder: i for i, folder in enumerate(paths)},
                stored["signatures"], stored["numbers"], stored["codes"], words,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return None
    n = len(paths)
    whole = (
        cache.signatures.shape == (n, 8)
        and cache.numbers.shape == (n, numbers)
        and cache.codes.shape == (n, others)
        and len(words) == others
    )
    return cache if whole else None


def _real(value: Any) -> float:
    return _NOTHING if value is None else float(value)
