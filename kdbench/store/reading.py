"""Reads the files of one cell: predictions, history, configuration, log. What is absent or damaged gives None, not an error.

A report is made of what there is: one cell's damaged file must not hide the other ten thousand.
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

#: Bytes read from the end of a log.
LOG_BYTES = 6000


@dataclass(frozen=True)
class Predictions:
    """What a student said of each image of the evaluated split, in the data set's own order.

    Attributes:
        correct: (N,) bool.
        probability: (N,) of the predicted class, in [0, 1].
        predicted: (N,) class numbers.
        label: (N,) class numbers; None in files of versions that did not store them.
    """

    correct: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    label: np.ndarray | None = None


class Outcomes:
    """Which images each cell has right, and the labels, read from the cells' files once and kept as bits.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self._bits: dict[str, tuple[np.ndarray, int] | None] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._same: dict[bytes, np.ndarray] = {}  # the cells of a split have the same labels: one array for all of them

    def correct(self, path: str) -> np.ndarray | None:
        """(N,) bool of the cell at ``path`` (as in the frame), or None where its predictions cannot be read."""
        if path not in self._bits:
            self._read(path)
        stored = self._bits[path]
        return None if stored is None else np.unpackbits(stored[0], count=stored[1]).astype(bool)

    def labels(self, path: str) -> np.ndarray | None:
        """(N,) class numbers, or None where they are not stored."""
        if path not in self._bits:
            self._read(path)
        return self._labels.get(path)

    def _read(self, path: str) -> None:
        found = read_predictions(cell_folder(self.root, path))
        self._bits[path] = None if found is None else (np.packbits(found.correct), found.correct.size)
        if found is not None and found.label is not None:
            self._labels[path] = self._same.setdefault(found.label.tobytes(), found.label)


def cell_folder(root: Path | str, path: str) -> Path | None:
    """The folder of a cell from its ``path`` in the frame, or None if that would lead out of the run directory."""
    folder = Path(root) / path
    parts = Path(path).parts
    return None if Path(path).is_absolute() or ".." in parts or not parts else folder


def read_predictions(folder: Path | None) -> Predictions | None:
    """Read ``predictions.npz``."""
    if folder is None:
        return None
    try:
        # np.load leaves a file that is no archive open, so that it is opened here.
        with open(folder / "predictions.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
            correct, probability, predicted = (stored[name] for name in ("correct", "probability", "predicted"))
            label = stored["label"] if "label" in stored.files else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not all(isinstance(values, np.ndarray) for values in (correct, probability, predicted)):  # no .npy of that name
        return None
    if not correct.ndim == probability.ndim == 1 or correct.shape != probability.shape or not correct.size:
        return None
    if label is not None and (label.shape != correct.shape or label.dtype.kind not in "iu" or label.min() < 0):
        label = None
    return Predictions(correct.astype(bool), probability.astype(float), predicted, label)


def read_history(folder: Path | None) -> dict[str, list[float]] | None:
    """Read ``history.csv``: columns by name, one value per epoch, NaN where a field is no number."""
    if folder is None:
        return None
    try:
        with open(folder / "history.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if len(rows) < 2:
        return None
    names, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: [_number(row[i]) for row in body] for i, name in enumerate(names)} if body else None


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping as it stands, without its checksum being checked; empty when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_log_end(folder: Path | None, lines: int = 40) -> str:
    """The last lines of ``log.txt``."""
    if folder is None:
        return ""
    try:
        with open(folder / "log.txt", "rb") as file:
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
