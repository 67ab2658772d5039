"""Results on disk: where they lie, how they are written so that they are whole or absent, how they are read as a table.

Works without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.store.claims import ClaimLostError, Claims, Holder, read_holder
from kdbench.store.files import DamagedFileError, read_json, write_bytes, write_json

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.matrix.cells import Cell
    from kdbench.matrix.teachers import TeacherPlan

#: Version of the layout of a run directory.
FORMAT = 1

METRICS = ("top1", "top5", "nll", "ece", "agreement", "teacher_kl")


class Store:
    """A run directory. ``OUT/SUITE/PROTOCOL/TEACHER--STUDENT/METHOD/seedN-HASH/`` holds a cell, ``OUT/teachers/`` the teachers.

    Args:
        root: the folder.
        claims: what this process holds; a folder that it claimed and lost is not written any more.
    """

    def __init__(self, root: Path | str, claims: Claims | None = None) -> None:
        self.root = Path(root)
        self.claims = claims

    def check(self, writable: bool = False) -> None:
        """Refuse a directory of a newer format, or one that cannot be written.

        Raises:
            KdbenchError: in one line.
        """
        marker = self.root / "format.json"
        if self.root.exists() and not self.root.is_dir():
            raise KdbenchError(f"run directory {self.root} is not a directory")
        try:
            present = marker.exists()
        except PermissionError:
            raise KdbenchError(f"run directory {self.root} cannot be read") from None
        if present:
            try:
                found = json.loads(marker.read_text())["format"]
            except (ValueError, KeyError, TypeError, OSError):
                raise KdbenchError(f'{marker} is damaged; it should hold {{"format": {FORMAT}}}') from None
            if not isinstance(found, int) or found > FORMAT:
                raise KdbenchError(
                    f"run directory {self.root} has format {found}, written by a newer kdbench; this one reads up to {FORMAT}"
                )
        if writable:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                if present:
                    with open(self.root / f".writable-{os.getpid()}", "wb"):
                        pass
                    (self.root / f".writable-{os.getpid()}").unlink()
                else:
                    write_bytes(marker, json.dumps({"format": FORMAT}).encode())
            except OSError as error:
                raise KdbenchError(f"run directory {self.root} cannot be written ({error.strerror})") from None

    def cell(self, cell: Cell) -> CellFolder:
        return CellFolder(self.root / cell.folder, self.claims)

    def teacher(self, teacher: TeacherPlan) -> Path:
        return self.root / teacher.folder

    def teacher_folder(self, teacher: TeacherPlan) -> CellFolder:
        """The folder of a teacher, which has the same files as that of a cell."""
        return CellFolder(self.teacher(teacher), self.claims)

    def result_of_teacher(self, teacher: TeacherPlan) -> dict[str, Any] | None:
        """The result of a trained teacher, or None when it is absent or damaged."""
        folder = self.teacher(teacher)
        try:
            result = read_json(folder / "result.json")
        except (FileNotFoundError, DamagedFileError):
            return None
        return result if (folder / "weights.safetensors").exists() else None


class CellFolder:
    """The folder of one cell and the files in it."""

    def __init__(self, path: Path, claims: Claims | None = None) -> None:
        self.path = path
        self.claims = claims

    # Worked out when asked for: reading ten thousand folders needs two of these from each.

    @cached_property
    def config(self) -> Path:
        return self.path / "config.json"

    @cached_property
    def result(self) -> Path:
        return self.path / "result.json"

    @cached_property
    def failed(self) -> Path:
        return self.path / "failed.json"

    @cached_property
    def skipped(self) -> Path:
        return self.path / "skipped.json"

    @cached_property
    def history(self) -> Path:
        return self.path / "history.csv"

    @cached_property
    def predictions(self) -> Path:
        return self.path / "predictions.npz"

    @cached_property
    def log(self) -> Path:
        return self.path / "log.txt"

    def prepare(self, cell: Cell) -> None:
        """Write the cell's configuration and what tables need to know of it, where that is not there already."""
        content = {"format": FORMAT, "hash": cell.hash, "config": cell.config, "facts": cell.facts}
        found = None
        with contextlib.suppress(OSError, DamagedFileError):
            found = read_json(self.config)
        if found != json.loads(json.dumps(content)):
            write_json(self.config, content)
        if cell.reason is None:
            self.skipped.unlink(missing_ok=True)
        else:
            write_json(self.skipped, {"reason": cell.reason})

    def holder(self) -> Holder | None:
        """The process that has claimed the cell."""
        return read_holder(self.path)

    def confirm(self) -> None:
        """See ``Claims.confirm``; nothing where this process claims nothing."""
        if self.claims is not None:
            self.claims.confirm(self.path)

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write the result, which is final: a sound one that is there stays.

        Raises:
            ClaimLostError: if the cell is another process's now.
        """
        self.confirm()
        try:
            write_json(self.result, content, once=True)
        except FileExistsError:
            if not self.is_damaged():
                raise ClaimLostError(f"{self.result} was written by another process") from None
            write_json(self.result, content)

    def sweep(self) -> None:
        """Remove what killed processes left half written; only for who holds the folder."""
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.path.glob("checkpoint-*.ckpt"))

    def positions(self) -> list[str]:
        """What the checkpoints hold, as their names tell it: it changes as training gets on."""
        return [path.name for path in self.checkpoints()]

    def state(self) -> str:
        """``done``, ``failed``, ``skipped``, ``running`` (claimed by a process that seems alive), ``interrupted`` (a checkpoint is
        there) or ``planned``. A damaged result counts as absent."""
        if self.result.exists():
            with contextlib.suppress(DamagedFileError):
                read_json(self.result)
                return "done"
        if self.failed.exists():
            return "failed"
        if self.skipped.exists():
            return "skipped"
        holder = self.holder()
        if holder is not None and holder.seems_alive():
            return "running"
        return "interrupted" if self.checkpoints() else "planned"

    def is_damaged(self) -> bool:
        """Whether there is a result that cannot be read."""
        if not self.result.exists():
            return False
        try:
            read_json(self.result)
        except DamagedFileError:
            return True
        return False

    def forget_failure(self) -> None:
        """Make a failed cell planned again: from its beginning, or from its checkpoint if only its process died."""
        crashed = self.failure()["kind"] in ("crash", "stall", "teacher")
        self.failed.unlink(missing_ok=True)
        if not crashed:
            for checkpoint in self.checkpoints():
                checkpoint.unlink()

    def failure(self) -> dict[str, Any]:
        """Why the cell failed: ``kind``, ``reason``, ``epoch``."""
        try:
            return read_json(self.failed)
        except (DamagedFileError, FileNotFoundError):
            return {"kind": "unknown", "reason": "its record is damaged", "epoch": 0}

    def say(self, text: str) -> None:
        """Append lines to the cell's log."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # a full disk costs lines of a log, not the training
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8") as file:
                file.write("".join(f"{stamp} {line}\n" for line in text.splitlines()))


def load_results(out: Path | str = "runs", suite: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Read a run directory as a tidy table: one row per cell, plain numbers, cells that are not done included.

    Columns: what the cell is (suite, protocol, split, pair, teacher, student, method, seed and their display names and
    families), ``state`` (done, failed, skipped, running: a process has it, planned) and ``reason`` (why it failed or was
    skipped, or which of its files is damaged), for each metric M of the last epoch ``M`` and of the best epoch on the
    evaluated split ``best_M`` (accuracies, agreement and calibration error in percent; nll and teacher_kl in nats), the
    teacher's re-measured accuracy, cost and provenance.

    Args:
        out: the run directory.
        suite, protocol: read only these.

    Raises:
        KdbenchError: if the directory does not exist or has a newer format.
    """
    import pandas as pd

    from kdbench.store.rowcache import read_rows

    store = Store(out)
    if not store.root.exists():
        raise KdbenchError(f"run directory {store.root} does not exist; kdbench run makes it")
    store.check()
    rows = read_rows(store.root, suite, protocol, _row, COLUMNS, _NUMBERS, write_bytes)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype(dict.fromkeys(_NUMBERS, "float64") | {"seed": "int64"})


_COST = ("student_parameters", "extra_parameters", "step_seconds", "train_seconds", "peak_memory_bytes")
#: Costs that results of older versions do not hold.
_LATER_COST = ("student_gmacs", "inference_images_per_second", "inference_extra_parameters")
#: Columns of numbers that not every cell has: NaN where they are not known.
_NUMBERS = (
    *("epochs", *METRICS, *(f"best_{metric}" for metric in METRICS), "best_epoch"),
    *("teacher_top1", "teacher_top5", *_COST, *_LATER_COST),
)
COLUMNS = [
    *(
        "suite",
        "protocol",
        "split",
        "dataset",
        "dataset_title",
        "pair",
        "teacher",
        "student",
        "teacher_display",
        "student_display",
    ),
    *(
        "teacher_family",
        "student_family",
        "method",
        "method_display",
        "method_family",
        "fidelity",
        "carries_kd",
        "seed",
        "state",
        "reason",
    ),
    *_NUMBERS,
    *("device", "commit", "dirty", "finished", "hyperparameters", "config_hash", "path"),
]


def _row(config_path: Path) -> dict[str, Any]:
    folder = CellFolder(config_path.parent)
    row = _row_of_path(*config_path.parts[-6:-1])
    try:
        row.update(_row_of_config(read_json(config_path)))
        result = None
        with contextlib.suppress(DamagedFileError, FileNotFoundError):
            result = read_json(folder.result)
        state = folder.state() if result is None else "done"
        row["state"] = "planned" if state == "interrupted" else state
        if state == "failed":
            row["reason"] = folder.failure()["reason"]
        elif state == "skipped":
            row["reason"] = read_json(folder.skipped)["reason"]
        elif result is not None:
            row.update(_measured(result))
        elif state == "interrupted":
            row["reason"] = "begun; kdbench run goes on from its last checkpoint"
        if result is None and folder.is_damaged():
            row["reason"] = f"{folder.result.name} is damaged; kdbench run trains the cell again"
    except (DamagedFileError, FileNotFoundError) as error:
        row.update(state="planned", reason=f"{error}; kdbench run writes it again")
    except (KeyError, TypeError) as error:
        row.update(state="planned", reason=f"written by another version of kdbench ({type(error).__name__}: {error})")
    return row


def _row_of_path(suite: str, protocol: str, pair: str, method: str, name: str) -> dict[str, Any]:
    """What the name of a cell's folder tells."""
    teacher, _, student = pair.partition("--")
    seed, _, config_hash = name.removeprefix("seed").partition("-")
    return {
        **{
            "suite": suite,
            "protocol": protocol,
            "pair": pair,
            "method": method,
            "path": f"{suite}/{protocol}/{pair}/{method}/{name}",
            "config_hash": config_hash,
        },
        **{"teacher": teacher, "student": student, "teacher_display": teacher, "student_display": student},
        **{"method_display": method, "seed": int(seed), "reason": ""},
    }


def _row_of_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    config = stored["config"]
    return {
        "suite": config["suite"],
        "protocol": config["protocol"]["name"],
        "split": config["split"],
        "dataset": config["dataset"]["name"],
        "seed": config["seed"],
        "epochs": config["recipe"]["epochs"],
        "hyperparameters": json.dumps(config["method"]["hyperparameters"]),
        "config_hash": stored["hash"],
        **{key: value for key, value in stored["facts"].items() if key in COLUMNS},
    }


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    metrics, cost, provenance = result["metrics"], result["cost"], result["provenance"]
    return {
        **{name: metrics["last"][name] for name in METRICS},
        **{f"best_{name}": metrics["best"][name] for name in METRICS},
        "best_epoch": metrics["best"]["epoch"],
        "teacher_top1": result["teacher"]["top1"],
        "teacher_top5": result["teacher"]["top5"],
        **{key: cost[key] for key in _COST},
        **{key: cost.get(key) for key in _LATER_COST},
        **{key: provenance[key] for key in ("device", "commit", "dirty", "finished")},
    }
