"""Splits in Parquet files (Hugging Face's hub) and in Arrow files (``datasets.save_to_disk``). Needs pyarrow.

The library ``datasets`` is not used: it would first copy all images of the Parquet files into its cache, as Arrow files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.datasets.imagenet.shards import refuse_gaps
from kdbench.datasets.imagenet.wnids import TITLE, refuse_other_class, wnids
from kdbench.datasets.parts import Part, sorted_order, stem
from kdbench.datasets.sources import PackedNames, decode, reason_of
from kdbench.errors import KdbenchError
from kdbench.opening import followed, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

#: Names of the columns in common copies.
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "jpg"), ("label", "labels", "cls")
EXTENSIONS = (".parquet", ".arrow")
#: Files that a process keeps open: below the usual limit of 1,024, above the 294 of the hub's copy.
_MAX_OPEN = 512
#: Of row groups larger than this a note is made: a single image costs the reading of its whole group.
_LARGE_GROUP = 16


class _Rows:
    """Rows of one file: Arrow is mapped into memory, of Parquet a whole row group is read for one row.

    Attributes:
        groups: (G,) rows up to the end of each row group.
    """

    def __init__(self, path: str) -> None:
        import pyarrow
        from pyarrow import parquet

        self.file: Any = None
        self.table: Any = None
        if path.endswith(".parquet"):
            self.file = parquet.ParquetFile(path)
            sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
            self.schema = self.file.schema_arrow
        else:
            try:
                self.table = pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
            except pyarrow.ArrowInvalid:
                self.table = pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all()
            sizes, self.schema = [len(self.table)], self.table.schema
        self.groups = np.cumsum([0, *sizes])

    def column(self, name: str) -> Any:
        """A column, or with ``COLUMN.FIELD`` a field of its structures."""
        from pyarrow import compute

        table = self.table if self.file is None else self.file.read(columns=[name], use_threads=False)
        column, _, inner = name.partition(".")
        return compute.struct_field(table.column(column), inner) if inner else table.column(column)

    def value(self, column: str, row: int) -> Any:
        if self.file is None:
            return self.table.column(column)[row].as_py()
        group = int(np.searchsorted(self.groups, row, side="right")) - 1
        return _row_group(self.file, group, column)[row - int(self.groups[group])].as_py()

    def __len__(self) -> int:
        return int(self.groups[-1])


@lru_cache(maxsize=1)
def _row_group(file: Any, group: int, column: str) -> Any:
    """The last row group stays in memory: in the order of the file, each is read once."""
    return file.read_row_group(group, columns=[column], use_threads=False).column(column)


@lru_cache(maxsize=_MAX_OPEN)
def _opened(path: str, process: int) -> _Rows:
    """An open file of one process: a forked process opens its own."""
    return _Rows(path)


@dataclass(frozen=True)
class TableSource:
    """Images in a ``column`` of files below ``root``.

    Attributes:
        files: paths below ``root``; ``bytes_of`` are their sizes.
        file: (N,) int32, the file of each image; ``rows`` (N,) int64, its row.
        names: empty where the files have none.
    """

    root: str
    files: tuple[str, ...]
    bytes_of: tuple[int, ...]
    column: str
    file: np.ndarray
    rows: np.ndarray
    names: PackedNames

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int) -> str:
        name = self.names[position]
        return f"{self._path(position)}: row {int(self.rows[position])}{f' ({name})' if name else ''}"

    def read(self, position: int) -> Image:
        try:
            value = _opened(self._path(position), os.getpid()).value(self.column, int(self.rows[position]))
        except Exception as error:  # pyarrow's errors for damaged files are of many kinds
            raise OSError(f"{self.name(position)} cannot be read: {reason_of(error)}") from None
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes) or not encoded:
            raise OSError(f"{self.name(position)} has no bytes")
        return decode(BytesIO(encoded), self.name(position))

    def fingerprint(self) -> str:
        """SHA-256 over the sizes of the files, and over row and name of every image."""
        digest = hashlib.sha256(b"table")
        digest.update(repr(self.bytes_of).encode())
        digest.update(self.file.astype("<i4").tobytes())
        digest.update(self.rows.astype("<i8").tobytes())
        self.names.hash_into(digest)
        return digest.hexdigest()

    def _path(self, position: int) -> str:
        return os.path.join(self.root, self.files[int(self.file[position])])


def read_tables(root: Path, data: Path, files: Sequence[str], labels: Mapping[str, int]) -> tuple[Part, set[str]]:
    """The images of a split in Parquet or Arrow files of ``root``, whose labels number the sorted WNIDs from 0.

    Args:
        data: the data folder, which links may not leave.
        files: names below ``root``.
        labels: label of each wanted WNID; images of others are left out.

    Returns:
        The images, and all WNIDs in the files.

    Raises:
        KdbenchError: without pyarrow; for files that are not whole, without images or with other labels.
    """
    try:
        import pyarrow
    except ImportError:
        raise KdbenchError(f"{TITLE}: {root / files[0]} needs pyarrow: pip install 'kdbench[huggingface]'") from None
    refuse_gaps(root, files)
    official = wnids()
    renumbered = np.array([labels.get(wnid, -1) for wnid in official], dtype=np.int64)
    names: list[str] = []
    classes: list[np.ndarray] = []
    file_of: list[np.ndarray] = []
    rows_of: list[np.ndarray] = []
    seen: set[str] = set()
    group, column = 0, ""
    for number, name in enumerate(files):
        path = root / name
        open_file(followed(data, path)).close()  # pyarrow would wait for the other end of a pipe
        try:
            rows = _Rows(str(path))
            column, label, has_path = _columns(path, rows)
            numbers = rows.column(label).to_numpy().astype(np.int64)
            told = rows.column(f"{column}.path").to_pylist() if has_path else [None] * len(rows)
            first = rows.value(column, 0) if len(rows) else b""
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            raise KdbenchError(f"{TITLE}: {path} cannot be read ({reason_of(error)}): was it copied whole?") from None
        if len(rows) and not (first.get("bytes") if isinstance(first, dict) else first):
            raise KdbenchError(
                f"{TITLE}: {path} only names files and does not hold the images; store them with their bytes"
            )
        wrong = numbers[(numbers < 0) | (numbers >= len(official))]
        if len(wrong):
            raise KdbenchError(f"{TITLE}: {path} has the label {wrong[0]}; expected 0 to {len(official) - 1}")
        for at, image in enumerate(told):
            if image:
                refuse_other_class(image, official[numbers[at]], str(path))
        seen |= {official[label] for label in np.unique(numbers)}
        kept = np.flatnonzero(renumbered[numbers] >= 0)
        classes.append(renumbered[numbers[kept]])
        file_of.append(np.full(len(kept), number, dtype=np.int32))
        rows_of.append(kept)
        names += [told[at] or "" for at in kept]
        group = max(group, int(np.diff(rows.groups).max(initial=0)) if rows.file is not None else 0)
    chosen = np.concatenate(classes)
    file, row = np.concatenate(file_of), np.concatenate(rows_of)
    # Where images have no names, their place is one.
    keys = [name or f"{file[at]:06d}-{row[at]:09d}" for at, name in enumerate(names)]
    order = np.array(sorted_order(chosen.tolist(), keys), dtype=np.int64)
    note = (
        f"{root}: one image costs the reading of a row group of {group:,}; save_to_disk of the library datasets writes Arrow "
        "files, of which single images are read"
    )
    source = TableSource(
        str(root.absolute()),
        tuple(files),
        tuple(os.path.getsize(root / name) for name in files),
        column,
        file[order],
        row[order],
        PackedNames.pack(names[at] for at in order),
    )
    return Part(source, chosen[order], [stem(keys[at]) for at in order], (note,) if group > _LARGE_GROUP else ()), seen


def _columns(path: Path, rows: _Rows) -> tuple[str, str, bool]:
    """The columns of images and labels, and whether images come with their names."""
    import pyarrow

    there = rows.schema.names
    image = next((name for name in _IMAGE_COLUMNS if name in there), None)
    label = next((name for name in _LABEL_COLUMNS if name in there), None)
    if image is None or label is None:
        raise KdbenchError(f"{TITLE}: {path} has the columns {', '.join(there)}; expected image and label")
    kind = rows.schema.field(image).type
    inner = {kind.field(at).name for at in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else set()
    if inner and "bytes" not in inner:
        raise KdbenchError(f"{TITLE}: {path}: {image} is {kind}; expected the bytes of encoded images")
    return image, label, "path" in inner
