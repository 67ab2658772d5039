"""Where a run directory keeps what; nothing else builds or searches its paths.

======================================================  ====================================================================
``format.json``                                         version of this layout
``SUITE/PROTOCOL/TEACHER--STUDENT/METHOD/seedN-HASH/``  a cell (``Cell.folder``); its files are those of ``Folder``
``SUITE/PROTOCOL/declared.json``                        hypotheses that were declared before their results
``teachers/NAME-HASH/``                                 a teacher (``TeacherPlan.folder``), with the same files
``datasets/NAME.json``                                  names of classes and superclasses
``SUITE/PROTOCOL/.workers/HASH/``                       log of the process that trained a cohort
``.jobs/TICKET/``                                       events of running jobs
======================================================  ====================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.opening import inside
from kdbench.shown import printable
from kdbench.suite.types import MAX_SEED

#: Version of the layout.
FORMAT = 1

FORMAT_FILE = "format.json"
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
CLAIM_FILE = "claim.json"
JOBS_FOLDER = ".jobs"

_ODD_NAME = "is no name that kdbench gives"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")  # see ``suite.types.Name``
PAIR = re.compile(rf"{_NAME.pattern}--{_NAME.pattern}")
_CELL = re.compile(r"seed(0|[1-9][0-9]{0,9})-([0-9a-f]{10})")


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
    inference = _File("inference.safetensors")  # parameters of a method with its own ``predict``
    inference_config = _File("inference.json")  # what it is built from
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


def folder_in(root: Path, path: str) -> Folder:
    """The folder of a cell by its path in a frame, which may come from anywhere.

    Raises:
        RefusedFileError: if it is not below the run directory, or through a link.
    """
    return Folder(inside(root, path))


def is_cell_folder(name: str) -> bool:
    """Whether a folder has the name of a cell's."""
    return _CELL.fullmatch(name) is not None


def is_cell_path(path: str) -> bool:
    """Whether ``cell_name`` can tell what a text says, and kdbench gives such names."""
    parts = path.split("/")
    if len(parts) != 5 or not PAIR.fullmatch(parts[2]) or not _CELL.fullmatch(parts[4]):
        return False
    return all(_NAME.fullmatch(part) for part in (parts[0], parts[1], parts[3])) and cell_name(path)["seed"] <= MAX_SEED


def cell_name(path: str) -> dict[str, Any]:
    """What the path of a cell's folder tells, under the names that the columns of a frame have."""
    suite, protocol, pair, method, name = path.split("/")
    seed, _, config_hash = name.removeprefix("seed").partition("-")
    row = {"suite": suite, "protocol": protocol, "pair": pair, "method": method}
    return {**row, "seed": int(seed), "config_hash": config_hash}


def cell_paths(
    root: Path,
    suite: str | None = None,
    protocol: str | None = None,
    odd: Callable[[str, str], None] = lambda *what: None,
) -> Iterator[str]:
    """Paths, relative to ``root`` and in order, of the cells' folders that hold a configuration or a result.

    Links are not followed, and names that kdbench does not give are not read: both are told to ``odd``, path and reason.
    """
    for a in _folders(root, [suite] if suite else None, odd):
        for b in _folders(root / a, [protocol] if protocol else None, odd, a):
            for pair in _folders(root / a / b, None, odd, f"{a}/{b}"):
                if "--" not in pair:
                    continue
                if not PAIR.fullmatch(pair):
                    odd(f"{a}/{b}/{pair}", _ODD_NAME)
                    continue
                for method in _folders(root / a / b / pair, None, odd, f"{a}/{b}/{pair}", _NAME):
                    folder = f"{a}/{b}/{pair}/{method}"
                    for name in _folders(root / folder, None, odd, folder, _CELL):
                        if int(name.removeprefix("seed").partition("-")[0]) > MAX_SEED:
                            odd(f"{folder}/{name}", "is no seed of kdbench's")
                        elif any(
                            os.path.lexists(f"{root}/{folder}/{name}/{file}") for file in (CONFIG_FILE, RESULT_FILE)
                        ):
                            yield f"{folder}/{name}"


def classes_file(root: Path | str, dataset: str) -> Path:
    """Where the names of a data set's classes are.

    Raises:
        RefusedFileError: if that is not below the run directory.
    """
    return inside(Path(root), f"datasets/{dataset}.json")


def declaration_file(suite: str, protocol: str) -> str:
    """Where the hypotheses of a suite and protocol are, relative to the run directory."""
    return f"{suite}/{protocol}/declared.json"


def worker_folder(suite: str, protocol: str, config_hash: str) -> str:
    """Where the process of the cohort whose first cell has this hash writes its log, relative to the run directory."""
    return f"{suite}/{protocol}/.workers/{config_hash}"


def _folders(
    folder: Path,
    only: list[str] | None,
    odd: Callable[[str, str], None],
    above: str = "",
    pattern: re.Pattern[str] | None = None,
) -> list[str]:
    """Sorted names of the folders in a folder: ``only`` these, of this ``pattern``."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (only is not None and entry.name not in only):
                    continue
                path = f"{above}/{entry.name}" if above else entry.name
                if entry.is_symlink():
                    odd(path, "is a link, which is not followed")
                elif entry.is_dir(follow_symlinks=False):
                    if pattern and not pattern.fullmatch(entry.name):
                        if pattern is not _CELL or entry.name.startswith("seed"):
                            odd(path, _ODD_NAME)
                    else:
                        names.append(entry.name)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            odd(above or str(folder), f"cannot be read ({error.strerror})")
    return sorted(names)


def find_cell(root: Path, name: str) -> Path:
    """The folder of a cell: a path, or the end or a part of one below the run directory, with or without its hash.

    Raises:
        KdbenchError: if there is none, or more than one.
    """
    if Path(name).is_dir():
        return Path(name)
    wanted = PurePath(name).parts
    found = [path for path in cell_paths(root) if _names(path.split("/"), wanted)]
    if len(found) == 1:
        return inside(root, found[0])
    if not found:
        raise KdbenchError(
            f"{printable(name)} is neither a folder nor a cell in {root}; expected [SUITE/PROTOCOL/]TEACHER--STUDENT/METHOD/seedN"
        )
    more = ", ..." if len(found) > 4 else ""
    raise KdbenchError(f"{printable(name)} names {len(found)} cells; choose one of {', '.join(found[:4])}{more}")


def _names(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the last parts of a cell's path are these; the seed may stand without its hash."""
    if not 1 < len(wanted) <= len(parts):
        return False
    *above, seed = wanted
    folder = parts[-1]
    return [*parts[-len(wanted) : -1]] == above and seed in (folder, folder.partition("-")[0])
