"""Where a run directory keeps what; nothing else builds or searches its paths.

======================================================  ====================================================================
``format.json``                                         version of this layout
``SUITE/PROTOCOL/TEACHER--STUDENT/METHOD/seedN-HASH/``  a cell (``Cell.folder``); its files are those of ``Folder``
``teachers/NAME-HASH/``                                 a teacher (``TeacherPlan.folder``), with the same files
``datasets/NAME.json``                                  names of classes and superclasses
``SUITE/PROTOCOL/.workers/HASH/``                       log of the process that trained a cohort
``.jobs/TICKET/``                                       events of running jobs
======================================================  ====================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Version of the layout.
FORMAT = 1

FORMAT_FILE = "format.json"
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
CLAIM_FILE = "claim.json"
JOBS_FOLDER = ".jobs"


class _File:
    """A file of a folder, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Folder, owner: Any = None) -> Path:
        return folder.path / self.name


class Folder:
    """The files of a cell or a teacher."""

    config = _File(CONFIG_FILE)  # resolved configuration, its hash, and what tables say about it
    result = _File(RESULT_FILE)  # what came out; final
    failed = _File("failed.json")  # why there is no result
    skipped = _File("skipped.json")  # why the cell cannot run
    history = _File("history.csv")  # a row per epoch
    predictions = _File("predictions.npz")  # a row per test image
    student = _File("student.safetensors")  # the student alone
    weights = _File("weights.safetensors")  # a teacher
    verification = _File("verification.json")  # a teacher's accuracy beside the published one
    log = _File("log.txt")
    logged = _File("logged.txt")  # the last epoch that trackers have
    tensorboard = _File("tensorboard")  # folder of its events

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoint(self, epoch: int, step: int = 0) -> Path:
        """The checkpoint after ``epoch`` epochs and ``step`` steps; names sort as positions do."""
        return self.path / f"checkpoint-{epoch:05d}{f'_{step:08d}' if step else ''}.ckpt"

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.path.glob("checkpoint-*.ckpt"))


def cell_name(path: str) -> dict[str, Any]:
    """What the path of a cell's folder tells, under the names that the columns of a frame have."""
    suite, protocol, pair, method, name = path.split("/")
    seed, _, config_hash = name.removeprefix("seed").partition("-")
    row = {"suite": suite, "protocol": protocol, "pair": pair, "method": method}
    return {**row, "seed": int(seed), "config_hash": config_hash}


def cell_paths(root: Path, suite: str | None = None, protocol: str | None = None) -> Iterator[str]:
    """Paths, relative to ``root`` and in order, of the cells' folders that hold a configuration."""
    for a in [suite] if suite else _names(root):
        for b in [protocol] if protocol else _names(root / a):
            for pair in _names(root / a / b):
                if "--" not in pair:
                    continue
                for method in _names(root / a / b / pair):
                    folder = f"{a}/{b}/{pair}/{method}"
                    for name in _names(root / folder):
                        number, dash, _ = name.removeprefix("seed").partition("-")
                        is_cell = name.startswith("seed") and dash and number.isdecimal() and number.isascii()
                        if is_cell and os.path.exists(f"{root}/{folder}/{name}/{CONFIG_FILE}"):
                            yield f"{folder}/{name}"


def classes_file(root: Path | str, dataset: str) -> Path:
    return Path(root) / "datasets" / f"{dataset}.json"


def worker_folder(suite: str, protocol: str, config_hash: str) -> str:
    """Where the process of the cohort whose first cell has this hash writes its log, relative to the run directory."""
    return f"{suite}/{protocol}/.workers/{config_hash}"


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
