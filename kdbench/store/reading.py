"""Reads what else lies in a cell's folder: predictions, history, log. What is absent or damaged gives None, not an error.

One cell's damaged file must not hide the other ten thousand from a report.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.store.layout import Folder, folder_at

#: Bytes read from the end of a log.
LOG_BYTES = 6000


@dataclass(frozen=True)
class Predictions:
    """What a student said of each image of the evaluated split, in the data set's own order.

    Attributes:
        correct: (N,) bool.
        probability: (N,) of the predicted class, in [0, 1].
        predicted, label: (N,) class numbers.
    """

    correct: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    label: np.ndarray


class Outcomes:
    """Which images each cell has right, and the labels, read from the cells' files once and kept as bits.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
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
            found = read_predictions(folder_at(self.root, path))
            self._read[path] = None
            if found is not None:
                labels = self._same.setdefault(found.label.tobytes(), found.label)
                self._read[path] = np.packbits(found.correct), labels
        return self._read[path]


def read_predictions(folder: Folder | None) -> Predictions | None:
    """Read ``predictions.npz``."""
    if folder is None:
        return None
    try:
        # np.load leaves a file that is no archive open, so that it is opened here.
        with open(folder.predictions, "rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = [stored[name] for name in ("correct", "probability", "predicted", "label")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not all(isinstance(column, np.ndarray) and column.ndim == 1 for column in columns):  # no .npy of that name
        return None
    correct, probability, predicted, label = columns
    if not correct.size or len({column.shape for column in columns}) > 1:
        return None
    if label.dtype.kind not in "iu" or label.min() < 0:
        return None
    return Predictions(correct.astype(bool), probability.astype(float), predicted, label)


def read_history(folder: Folder | None) -> dict[str, list[float]] | None:
    """Read ``history.csv``: columns by name, one value per epoch, NaN where a field is no number."""
    if folder is None:
        return None
    try:
        with open(folder.history, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if len(rows) < 2:
        return None
    names, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: [_number(row[i]) for row in body] for i, name in enumerate(names)} if body else None


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping as it stands, its checksum neither checked nor returned; empty when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    content.pop("file_checksum", None)
    return content


def read_log_end(folder: Folder | None, lines: int = 40) -> str:
    """The last lines of ``log.txt``."""
    if folder is None:
        return ""
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
    return "\n".join(kept[-lines:])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
