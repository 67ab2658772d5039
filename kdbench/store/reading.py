"""Reads what else lies in a cell's folder: predictions, history, log. What is absent or damaged gives nothing, not an error.

One cell's damaged file must not hide the other ten thousand from a report. What is damaged is told to those who ask (``damaged``).
"""

from __future__ import annotations

import csv
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from kdbench.opening import RefusedFileError, open_file, read_file
from kdbench.shown import TEXT_LENGTH, printable, without_homes
from kdbench.store.files import DamagedFileError
from kdbench.store.layout import Folder, folder_in
from kdbench.store.result import LARGEST

#: Bytes read from the end of a log.
LOG_BYTES = 6000
#: Lines of it that are kept.
LOG_LINES = 40
#: Images of a split, classes, and epochs: more than any data set and any training has.
MAX_IMAGES, MAX_CLASSES, MAX_EPOCHS = 4_000_000, 100_000, 1_000_000
#: Bytes of an archive of predictions, and of its list of contents, which is read as a whole.
ARCHIVE_BYTES, CONTENTS_BYTES = 64 << 20, 4096

T = TypeVar("T")
#: Receives a file that cannot be read, and why.
Damaged = Callable[[Path, str], None]


def ignored(path: Path, reason: str) -> None:
    """Nobody asks."""


@dataclass(frozen=True)
class Predictions:
    """What is read of a student's answers to each image of the evaluated split, in the data set's own order.

    Attributes:
        correct: (N,) bool.
        probability: (N,) of the predicted class, in [0, 1].
        label: (N,) class numbers.
    """

    correct: np.ndarray
    probability: np.ndarray
    label: np.ndarray


class Outcomes:
    """Histories and predictions of cells; which images each has right, and the labels, read once and kept as bits.

    Args:
        root: the run directory.
        damaged: receives ``FILE: reason`` of what cannot be read, once each.
    """

    def __init__(self, root: Path | str, damaged: list[str] | None = None) -> None:
        self.root = Path(root)
        self.damaged = [] if damaged is None else damaged
        self._read: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
        self._same: dict[bytes, np.ndarray] = {}  # the cells of a split have the same labels: one array for all of them

    def correct(self, path: str) -> np.ndarray | None:
        """(N,) bool of the cell at ``path`` (as in the frame), or None where its predictions cannot be read."""
        found = self._find(path)
        return None if found is None else np.unpackbits(found[0], count=found[1].size).astype(bool)

    def labels(self, path: str) -> np.ndarray | None:
        """(N,) class numbers, or None where its predictions cannot be read."""
        found = self._find(path)
        return None if found is None else found[1]

    def note(self, path: Path, reason: str) -> None:
        """Tell what cannot be read."""
        line = printable(f"{str(path).removeprefix(f'{self.root}/')}: {reason}", TEXT_LENGTH)
        if line not in self.damaged:
            self.damaged.append(line)

    def folder(self, path: str) -> Folder | None:
        """The folder of the cell at ``path``, or None where it is not to be opened."""
        try:
            return folder_in(self.root, path)
        except RefusedFileError as error:
            self.note(error.path, error.reason)
        return None

    def history(self, path: str) -> dict[str, list[float]]:
        """See ``read_history``."""
        folder = self.folder(path)
        return read_history(folder, self.note) if folder else {}

    def predictions(self, path: str) -> Predictions | None:
        """See ``read_predictions``."""
        folder = self.folder(path)
        return read_predictions(folder, self.note) if folder else None

    def _find(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        if path not in self._read:
            found = self.predictions(path)
            self._read[path] = None
            if found is not None:
                labels = self._same.setdefault(found.label.tobytes(), found.label)
                self._read[path] = np.packbits(found.correct), labels
        return self._read[path]


def read_predictions(folder: Folder, damaged: Damaged = ignored) -> Predictions | None:
    """Read ``predictions.npz``."""
    return _read(folder.predictions, _predictions, damaged)


def read_history(folder: Folder, damaged: Damaged = ignored) -> dict[str, list[float]]:
    """Read ``history.csv``: columns by name, one value per epoch, NaN where a field is no number."""
    return _read(folder.history, _history, damaged) or {}


def _read(path: Path, parse: Callable[[Path], T], damaged: Damaged) -> T | None:
    try:
        return parse(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFileError as error:
        damaged(path, error.reason)
    except RefusedFileError as error:
        damaged(path, f"it {error.reason}")
    # What zipfile and NumPy raise for a damaged archive depends on where it is damaged.
    except (OSError, ValueError, LookupError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
            csv.Error) as error:  # fmt: skip
        damaged(path, f"{type(error).__name__}: {error}")
    return None


def _predictions(path: Path) -> Predictions:
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > ARCHIVE_BYTES or _contents_bytes(file) > CONTENTS_BYTES:
            raise DamagedFileError(path, "it is larger than predictions are")
        with zipfile.ZipFile(file) as archive:
            correct, probability, label = (
                _column(archive, name, kinds)
                for name, kinds in (("correct", "b"), ("probability", "f"), ("label", "iu"))
            )
    if not correct.size or len({correct.shape, probability.shape, label.shape}) > 1:
        raise DamagedFileError(path, "its columns are empty, or of different lengths")
    if not 0 <= int(label.min()) <= int(label.max()) < MAX_CLASSES:
        raise DamagedFileError(path, f"labels from {label.min()} to {label.max()}; expected 0 to {MAX_CLASSES - 1}")
    probability = probability.astype(float)
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1 + 1e-6):
        raise DamagedFileError(path, "probabilities outside of 0 to 1")
    return Predictions(correct.view(np.uint8) != 0, probability, label.astype(np.int64))


def _contents_bytes(file: IO[bytes]) -> int:
    """What an archive says that its list of contents has: read before zipfile reads it, which knows no bound."""
    end = max(0, file.seek(0, os.SEEK_END) - 42)
    file.seek(end)
    tail = file.read()
    file.seek(0)
    # 20 bytes locate the list of a larger archive than NumPy writes here, then 22 bytes end it.
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06" or tail[:4] == b"PK\x06\x07":
        raise ValueError("it is no archive of NumPy's")
    return int.from_bytes(tail[-10:-6], "little")


def _column(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    """A column, read only if its header says that it is one: an array of 10¹² numbers would be made before it is read."""
    with archive.open(f"{name}.npy") as member:
        major, _ = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        if dtype.kind not in kinds or dtype.itemsize > 8 or len(shape) != 1 or shape[0] > MAX_IMAGES:
            raise ValueError(f"{name} is an array of {dtype} and shape {shape}")
        size = shape[0] * dtype.itemsize
        raw = member.read(size)
        if len(raw) != size:
            raise EOFError(f"{name} is cut")
        return np.frombuffer(raw, dtype)


def _history(path: Path) -> dict[str, list[float]]:
    text = read_file(path).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if None not in (*row, *row.values())]
    columns = {name: [_number(row[name]) for row in rows] for name in rows[0]} if rows else {}
    epochs = columns.get("epoch", [])
    if not all(0 <= epoch <= MAX_EPOCHS for epoch in epochs):
        raise DamagedFileError(path, f"an epoch is no number from 0 to {MAX_EPOCHS}")
    return columns


def read_log_end(folder: Folder, damaged: Damaged = ignored) -> str:
    """The last lines of ``log.txt``, as they may be published."""
    try:
        with open_file(folder.log) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            text = without_homes(printable(file.read(LOG_BYTES).decode("utf-8", "replace")))
    except RefusedFileError as error:
        damaged(error.path, f"it {error.reason}")
        return ""
    except OSError:
        return ""
    kept = text.splitlines()
    if size > LOG_BYTES:
        kept = kept[1:]  # the first one is cut
    return "\n".join(kept[-LOG_LINES:])


def _number(text: str) -> float:
    """NaN for what is no number, and for one that no training gives."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) <= LARGEST else math.nan
