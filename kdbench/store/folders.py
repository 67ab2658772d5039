"""A run directory and the folders in it: prepared, written so that results are final or absent, and their state told.

Works without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, inside, new_file, read_file
from kdbench.shown import NAME_LENGTH, printable
from kdbench.store.claims import ClaimLostError, Claims, Holder, read_holder
from kdbench.store.files import DamagedFileError, read_json, write_bytes, write_json
from kdbench.store.layout import FORMAT, FORMAT_FILE, Folder, is_cell_folder
from kdbench.store.log import logger_of
from kdbench.store.result import CellResult, Failure, TeacherResult, read_record, write_record

if TYPE_CHECKING:
    from kdbench.matrix.cells import Cell
    from kdbench.matrix.teachers import TeacherPlan

#: More than a ``format.json`` has.
MARKER_BYTES = 10_000


class Store:
    """A run directory; ``layout`` says what lies where.

    Args:
        root: the folder.
        claims: what this process holds; a folder that it claimed and lost is not written any more.
    """

    def __init__(self, root: Path | str, claims: Claims | None = None) -> None:
        self.root = Path(root)
        self.claims = claims

    def check_exists(self) -> None:
        """Refuse a directory that is not there, or that ``check`` refuses.

        Raises:
            KdbenchError: in one line.
        """
        if not self.root.exists():
            raise KdbenchError(f"run directory {self.root} does not exist; kdbench run makes it")
        self.check()

    def check(self, writable: bool = False) -> int | None:
        """Refuse a directory of a newer format, or one that cannot be written.

        Returns:
            its format; None where it has no mark of one.

        Raises:
            KdbenchError: in one line.
        """
        marker = self.root / FORMAT_FILE
        found = None
        try:
            found = json.loads(read_file(marker, MARKER_BYTES))["format"]
            if not isinstance(found, int) or found > FORMAT:
                raise KdbenchError(
                    f"run directory {self.root} has format {printable(found, NAME_LENGTH)}, written by a newer kdbench; this one "
                    f"reads up to {FORMAT}"
                )
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            raise KdbenchError(
                f"run directory {self.root} is not a directory; only table, leaderboard, plots and report read the cells of a CSV file"
            ) from None
        except RefusedFileError as error:
            raise KdbenchError(f"run directory {self.root} cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            raise KdbenchError(f'{marker} is damaged; it should hold {{"format": {FORMAT}}}') from None
        if writable:
            try:
                if found is None:
                    write_bytes(marker, json.dumps({"format": FORMAT}).encode())
                else:
                    with new_file(marker):
                        pass
            except OSError as error:
                raise KdbenchError(f"run directory {self.root} cannot be written ({error.strerror})") from None
        return found

    def folder(self, path: str) -> CellFolder:
        """The folder of a cell or a teacher by its path below the run directory.

        Raises:
            RefusedFileError: if a part of the path is a link: nothing may be read, written or removed through it.
        """
        return CellFolder(inside(self.root, path), self.claims)

    def cell(self, cell: Cell) -> CellFolder:
        return self.folder(cell.folder)

    def scan(self, cells: Iterable[Cell]) -> dict[str, CellState]:
        """The state of these cells by their folders; each result is read once."""
        return {cell.folder: self.look(cell) for cell in cells}

    def look(self, cell: Cell) -> CellState:
        """See ``CellFolder.look``; a folder that is not to be opened is a problem too."""
        try:
            return self.cell(cell).look()
        except RefusedFileError as error:
            return CellState("planned", problem=f"{error.path}: {error.reason}")

    def teacher_folder(self, teacher: TeacherPlan) -> CellFolder:
        """The folder of a teacher, which has the same files as that of a cell."""
        return self.folder(teacher.folder)

    def result_of_teacher(self, teacher: TeacherPlan) -> TeacherResult | None:
        """The result of a teacher; None when it is absent or damaged, or its weights are absent."""
        folder = self.teacher_folder(teacher)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, DamagedFileError):
            result = read_record(folder.result, TeacherResult)
            return result if folder.weights.is_file() else None
        return None


@dataclass(frozen=True)
class CellState:
    """What the files of a cell tell.

    Attributes:
        state: ``done``, ``failed``, ``skipped``, ``running`` (claimed by a process that seems alive), ``interrupted`` (there is
            a checkpoint) or ``planned``. A damaged result counts as absent.
        result: of a cell that is done.
        problem: ``FILE: reason`` of a result that is there and cannot be read.
    """

    state: str
    result: CellResult | None = None
    problem: str = ""


class CellFolder(Folder):
    """The folder of one cell or teacher, to be written and looked at."""

    def __init__(self, path: Path, claims: Claims | None = None) -> None:
        super().__init__(path)
        self.claims = claims

    def make_room(self) -> None:
        """Give folders in the place of files another name: a new file replaces a link and a pipe, but no folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path) as entries:
            for entry in entries:
                if "." in entry.name and entry.is_dir(follow_symlinks=False):
                    os.rename(entry, self.path / f"{entry.name.replace('.', '-')}-{secrets.token_hex(4)}")

    def prepare(self, cell: Cell) -> None:
        """Write the cell's configuration, and why it is skipped if it is."""
        self.configure(cell.hash, cell.config, cell.facts)
        if cell.reason is None:
            self.skipped.unlink(missing_ok=True)
        else:
            write_json(self.skipped, {"reason": cell.reason})

    def configure(self, config_hash: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write ``config.json``, where it does not say the same already; ``facts`` are what tables need to know."""
        content = {"format": FORMAT, "hash": config_hash, "config": config, "facts": facts}
        found = None
        with contextlib.suppress(OSError, DamagedFileError):
            found = read_json(self.config)
        if found != json.loads(json.dumps(content)):
            write_json(self.config, content)

    def check_weights(self, checksum: str) -> None:
        """Check that the weights of a teacher are those of its result. Imports torch.

        Raises:
            FileNotFoundError: if there are none.
            RefusedFileError: if they are no regular file.
            DamagedFileError: if they are cut, or do not have the checksum that the result records.
        """
        import safetensors.torch

        from kdbench.nets.tapped import hash_of_state

        content = read_file(self.weights, None)
        found = None
        # what safetensors raises for a damaged file depends on where it is damaged
        with contextlib.suppress(Exception):
            found = hash_of_state(safetensors.torch.load(content))
        if found != checksum:
            raise DamagedFileError(self.weights, "its checksum is not the one that its result records")

    def holder(self) -> Holder | None:
        """The process that has claimed the cell."""
        return read_holder(self.path)

    def confirm(self) -> None:
        """See ``Claims.confirm``; nothing where this process claims nothing."""
        if self.claims is not None:
            self.claims.confirm(self.path)

    def finish(self, result: CellResult) -> None:
        """Write the result, which is final: a sound one that is there stays.

        Raises:
            ClaimLostError: if the cell is another process's now.
        """
        self.confirm()
        try:
            write_record(self.result, result, once=True)
        except FileExistsError:
            if not self.is_damaged():
                raise ClaimLostError(f"{self.result} was written by another process") from None
            write_record(self.result, result)

    def fail(self, kind: str, reason: str, epoch: int = 0, log: str | None = None) -> None:
        """Record why there is no result; see ``Failure``."""
        write_record(self.failed, Failure(kind=kind, reason=reason, epoch=epoch, log=log))

    def sweep(self) -> None:
        """Remove what killed processes left half written; only for who holds the folder."""
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    def positions(self) -> list[str]:
        """What the checkpoints hold, as their names tell it: it changes as training gets on."""
        return [path.name for path in self.checkpoints()]

    def look(self) -> CellState:
        """Read the state of the cell, and its result once."""
        problem = ""
        try:
            result = read_record(self.result, CellResult)
            if is_cell_folder(self.path.name) and not self.path.name.endswith(f"-{result.hash}"):
                raise DamagedFileError(self.result, f"it is the result of {printable(result.hash, NAME_LENGTH)}")
            return CellState("done", result)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except DamagedFileError as error:
            problem = f"{error.path}: {error.reason}"
        if self.failed.exists():
            return CellState("failed", problem=problem)
        if self.skipped.exists():
            return CellState("skipped", problem=problem)
        holder = self.holder()
        if holder is not None and holder.seems_alive():
            return CellState("running", problem=problem)
        return CellState("interrupted" if self.checkpoints() else "planned", problem=problem)

    def state(self) -> str:
        """See ``CellState``."""
        return self.look().state

    def is_damaged(self) -> bool:
        """Whether there is a result that cannot be read."""
        return bool(self.look().problem)

    def forget_failure(self) -> None:
        """Make a failed cell planned again: from its beginning, or from its checkpoint if only its process died."""
        crashed = self.failure().kind in ("crash", "stall", "teacher")
        self.failed.unlink(missing_ok=True)
        if not crashed:
            for checkpoint in self.checkpoints():
                checkpoint.unlink()

    def failure(self) -> Failure:
        """Why the cell failed."""
        try:
            return read_record(self.failed, Failure)
        except (DamagedFileError, FileNotFoundError):
            return Failure(kind="unknown", reason="its record is damaged")

    def say(self, text: str) -> None:
        """Append lines to the log."""
        logger_of(self.log).info("%s", text)
