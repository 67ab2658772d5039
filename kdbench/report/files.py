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
    """

    correct: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray


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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not all(isinstance(values, np.ndarray) for values in (correct, probability, predicted)):  # no .npy of that name
        return None
    if not correct.ndim == probability.ndim == 1 or correct.shape != probability.shape or not correct.size:
        return None
    return Predictions(correct.astype(bool), probability.astype(float), predicted)


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
