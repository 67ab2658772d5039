"""Reads what else lies in a cell's folder: predictions, history, log. What is absent or damaged gives nothing, not an error.

One cell's damaged file must not hide the other ten thousand from a report.
"""

from __future__ import annotations

import csv
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.store.layout import Folder

#: Bytes read from the end of a log.
LOG_BYTES = 6000
#: Lines of it that are kept.
LOG_LINES = 40


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
    """Which images each cell has right, and the labels, read from the cells' files once and kept as bits.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
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

    def _find(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        if path not in self._read:
            found = read_predictions(Folder(self.root / path))
            self._read[path] = None
            if found is not None:
                labels = self._same.setdefault(found.label.tobytes(), found.label)
                self._read[path] = np.packbits(found.correct), labels
        return self._read[path]


def read_predictions(folder: Folder) -> Predictions | None:
    """Read ``predictions.npz``."""
    try:
        # np.load leaves a file that is no archive open, so that it is opened here.
        with open(folder.predictions, "rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = [stored[name] for name in ("correct", "probability", "label")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not all(isinstance(column, np.ndarray) and column.ndim == 1 for column in columns):  # no .npy of that name
        return None
    correct, probability, label = columns
    if not correct.size or len({column.shape for column in columns}) > 1:
        return None
    if label.dtype.kind not in "iu" or label.min() < 0:
        return None
    return Predictions(correct.astype(bool), probability.astype(float), label)


def read_history(folder: Folder) -> dict[str, list[float]]:
    """Read ``history.csv``: columns by name, one value per epoch, NaN where a field is no number."""
    try:
        with open(folder.history, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in (*row, *row.values())]
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {name: [_number(row[name]) for row in rows] for name in rows[0]} if rows else {}


def read_log_end(folder: Folder) -> str:
    """The last lines of ``log.txt``."""
    try:
        with open(folder.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    kept = text.splitlines()
    if size > LOG_BYTES:
        kept = kept[1:]  # the first one is cut
    return "\n".join(kept[-LOG_LINES:])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
