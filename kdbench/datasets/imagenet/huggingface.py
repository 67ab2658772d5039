"""Splits in Parquet files (Hugging Face's hub) and in Arrow files (``datasets.save_to_disk``). Needs pyarrow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.datasets.imagenet.shards import refuse_gaps
from kdbench.datasets.imagenet.wnids import refuse_other_class, wnids
from kdbench.datasets.parts import Part, sorted_order, stem
from kdbench.datasets.sources import PackedNames, decode
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from PIL.Image import Image

#: What the columns are called in the copies that are around.
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "jpg"), ("label", "labels", "cls")
EXTENSIONS = (".parquet", ".arrow")
#: Files that a process keeps open: below the usual limit of 1,024, above the 294 of the hub's copy.
_MAX_OPEN = 512
#: Of row groups larger than this a note is made: a single image costs the reading of its whole group.
_LARGE_GROUP = 16


class _ParquetRows:
    """Rows of one Parquet file. The last row group stays in memory: in the order of the file, each is read once."""

    def __init__(self, path: str) -> None:
        from pyarrow import parquet

        self.file = parquet.ParquetFile(path)
        metadata = self.file.metadata
        self.groups = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self.schema = self.file.schema_arrow
        self._group: tuple[int, Any] | None = None

    def column(self, name: str) -> Any:
        return _inner(self.file.read(columns=[name], use_threads=False), name)

    def value(self, column: str, row: int) -> Any:
        group = int(np.searchsorted(self.groups, row, side="right"))
        if self._group is None or self._group[0] != group:
            self._group = (group, self.file.read_row_group(group, columns=[column], use_threads=False).column(column))
        return self._group[1][row - (int(self.groups[group - 1]) if group else 0)].as_py()

    def forget(self) -> None:
        """Give the last row group's memory back."""
        self._group = None

    def __len__(self) -> int:
        return int(self.groups[-1]) if len(self.groups) else 0


class _ArrowRows:
    """Rows of one Arrow file, mapped into memory: a single row is read where it lies."""

    def __init__(self, path: str) -> None:
        import pyarrow

        mapped = pyarrow.memory_map(path)
        try:
            self.table = pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:
            self.table = pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all()
        self.schema = self.table.schema
        self.groups = np.array([len(self.table)])

    def column(self, name: str) -> Any:
        return _inner(self.table, name)

    def value(self, column: str, row: int) -> Any:
        return self.table.column(column)[row].as_py()

    def forget(self) -> None:
        """Nothing is kept."""

    def __len__(self) -> int:
        return len(self.table)


def _inner(table: Any, name: str) -> Any:
    """A column, or with ``COLUMN.FIELD`` a field of its structures."""
    from pyarrow import compute

    column, _, inner = name.partition(".")
    return compute.struct_field(table.column(column), inner) if inner else table.column(column)


def _open(path: str) -> _ParquetRows | _ArrowRows:
    return _ParquetRows(path) if path.endswith(".parquet") else _ArrowRows(path)


class _Opened:
    """Files that a process has open. A forked process opens its own; only the file read last keeps a row group."""

    def __init__(self) -> None:
        self._process, self._files, self._last = os.getpid(), dict[str, _ParquetRows | _ArrowRows](), ""

    def rows(self, path: str) -> _ParquetRows | _ArrowRows:
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        if self._last in self._files and self._last != path:
            self._files[self._last].forget()
        if path not in self._files:
            if len(self._files) >= _MAX_OPEN:
                self._files.clear()
            self._files[path] = _open(path)
        self._last = path
        return self._files[path]


@dataclass(frozen=True)
class TableSource:
    """Images that are cells of a column of files below ``root``.

    Attributes:
        files: paths below ``root``, and ``bytes_of`` their sizes.
        column: of the images.
        file: (N,) int32, the file of each image, and ``rows`` (N,) int64 its row.
        names: of the images; empty where the files have none.
    """

    root: str
    files: tuple[str, ...]
    bytes_of: tuple[int, ...]
    column: str
    file: np.ndarray
    rows: np.ndarray
    names: PackedNames
    _opened: _Opened = field(default_factory=_Opened, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": _Opened()}

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int) -> str:
        name = self.names[position]
        return f"{self._path(position)}: row {int(self.rows[position])}{f' ({name})' if name else ''}"

    def read(self, position: int) -> Image:
        try:
            value = self._rows(position).value(self.column, int(self.rows[position]))
        except Exception as error:  # pyarrow's errors for damaged files are of many kinds
            raise OSError(f"{self.name(position)} cannot be read: {' '.join(str(error).split())}") from None
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

    def _rows(self, position: int) -> _ParquetRows | _ArrowRows:
        return self._opened.rows(self._path(position))


def read_tables(
    root: Path, files: Sequence[str], labels: Mapping[str, int], title: str, undecodable: float = 0.0
) -> tuple[Part, set[str]]:
    """The images of a split in Parquet or Arrow files of ``root``; labels are numbers of the sorted WNIDs, from 0.

    Args:
        files: names below ``root``.
        labels: what each wanted WNID becomes; images of others are left out.

    Returns:
        The images, and the WNIDs that were seen.

    Raises:
        KdbenchError: without pyarrow, for files that are not whole, without images or with labels of another kind.
    """
    try:
        import pyarrow
    except ImportError:
        raise KdbenchError(
            f"{title}: {root / files[0]} needs pyarrow to be read: pip install 'kdbench[huggingface]'"
        ) from None
    refuse_gaps(root, files, title)
    official = wnids()
    names: list[str] = []
    classes: list[np.ndarray] = []
    file_of: list[np.ndarray] = []
    rows_of: list[np.ndarray] = []
    seen: set[str] = set()
    group, column = 0, ""
    for number, name in enumerate(files):
        path = root / name
        try:
            rows = _open(str(path))
            column, label, has_path = _columns(path, rows, title)
            numbers = rows.column(label).to_numpy().astype(np.int64)
            told = rows.column(f"{column}.path").to_pylist() if has_path else [None] * len(rows)
            first = rows.value(column, 0) if len(rows) else b""
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise KdbenchError(f"{title}: {path} cannot be read ({reason}): was it copied whole?") from None
        if len(rows) and not (first.get("bytes") if isinstance(first, dict) else first):
            raise KdbenchError(
                f"{title}: {path} only names files and does not hold the images; store them with their bytes"
            )
        wrong = numbers[(numbers < 0) | (numbers >= len(official))]
        if len(wrong):
            raise KdbenchError(f"{title}: {path} has the label {wrong[0]}; expected 0 to {len(official) - 1}")
        for at, image in enumerate(told):
            if image:
                refuse_other_class(image, official[numbers[at]], str(path), title)
        present = np.unique(numbers)
        seen |= {official[one] for one in present}
        renumbered = np.full(len(official), -1, dtype=np.int64)
        for one in present:
            renumbered[one] = labels.get(official[one], -1)
        kept = np.flatnonzero(renumbered[numbers] >= 0)
        classes.append(renumbered[numbers[kept]])
        file_of.append(np.full(len(kept), number, dtype=np.int32))
        rows_of.append(kept)
        names += [told[at] or "" for at in kept]
        group = max(group, int(np.diff(rows.groups, prepend=0).max(initial=0)) if isinstance(rows, _ParquetRows) else 0)
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


def _columns(path: Path, rows: _ParquetRows | _ArrowRows, title: str) -> tuple[str, str, bool]:
    """The columns of images and labels, and whether images come with their names."""
    import pyarrow

    there = rows.schema.names
    image = next((name for name in _IMAGE_COLUMNS if name in there), None)
    label = next((name for name in _LABEL_COLUMNS if name in there), None)
    if image is None or label is None:
        raise KdbenchError(f"{title}: {path} has the columns {', '.join(there)}; expected image and label")
    kind = rows.schema.field(image).type
    inner = {kind.field(at).name for at in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else set()
    if inner and "bytes" not in inner:
        raise KdbenchError(f"{title}: {path}: {image} is {kind}; expected the bytes of encoded images")
    return image, label, "path" in inner
