"""Joins run directories: what finished cells and teachers have is copied as it is, and what contradicts is never resolved silently."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import KdbenchError, ListedError, counted
from kdbench.opening import RefusedFileError, inside, open_file, read_file
from kdbench.shown import TEXT_LENGTH, printable
from kdbench.store.declared import Hypothesis, joined, read_declared, write_declared
from kdbench.store.files import DamagedFileError
from kdbench.store.folders import Store
from kdbench.store.layout import CLAIM_FILE, FORMAT, FORMAT_FILE, cell_paths, declaration_file
from kdbench.store.result import CellResult, TeacherResult, read_record

#: States of cells that are over.
FINISHED = ("done", "failed", "skipped")


@dataclass
class Merge:
    """What a merge would copy.

    Attributes:
        folders: of cells and teachers, and files of data sets, below the run directory, each with the store that it is taken from.
        conflicts: what two stores say differently, a sentence each.
        left_out: ``PATH: reason`` of what is not copied.
        twice: cells that several stores have with the same numbers.
        unfinished: number of cells that are not over.
        declared: by suite and protocol the hypotheses of all stores, each with its first date.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    twice: int = 0
    unfinished: int = 0
    declared: dict[tuple[str, str], tuple[Hypothesis, ...]] = field(default_factory=dict)


def compare(sources: Sequence[Path]) -> Merge:
    """What is in the stores, and where they contradict each other; of that the first one counts. Nothing is written.

    Raises:
        KdbenchError: for fewer than two stores, one that is none, or stores of different formats.
    """
    if len({source.resolve() for source in sources}) < max(2, len(sources)):
        raise KdbenchError("merge takes two run directories or more, each once")
    _check_formats(sources)
    merge, teachers = Merge(), dict[tuple[str, str], tuple[str, Path]]()
    for source in sources:
        store = Store(source)
        for name in _teachers(source, merge):
            _take_teacher(merge, teachers, store, name)

        def odd(path: str, reason: str, root: Path = source) -> None:
            merge.left_out.append(_line(root, path, reason))

        for cell in cell_paths(source, odd=odd):
            _take_cell(merge, teachers, store, cell)
        _take_declared(merge, source)
        for path in sorted(source.glob("datasets/*.json")):
            _take_file(merge, source, path.relative_to(source).as_posix())
    return merge


def write(merge: Merge, target: Path) -> list[str]:
    """Copy everything into a new run directory, which appears when it is whole. A folder that holds a link, or what is no file, is
    left out, and is no longer among ``merge.folders``.

    Returns:
        ``PATH: reason`` of each of these.

    Raises:
        KdbenchError: if there is something already.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out = []
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.mkdir()
        for path, source in [*merge.folders.items()]:
            try:
                for file in _files(source, path):
                    copy = partial / file
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with open_file(inside(source, file)) as old, copy.open("xb") as new:
                        shutil.copyfileobj(old, new)
            except RefusedFileError as error:
                shutil.rmtree(partial / path, ignore_errors=True)
                del merge.folders[path]
                left_out.append(printable(f"{error.path}: {error.reason}", TEXT_LENGTH))
        for where, hypotheses in merge.declared.items():
            write_declared(partial, *where, hypotheses)
        (partial / FORMAT_FILE).write_text(json.dumps({"format": FORMAT}))
        partial.rename(target)  # over an empty folder too
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return left_out


def check_target(target: Path) -> None:
    """Refuse a place where something is.

    Raises:
        KdbenchError: in one line.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()) or (target.is_dir() and any(target.iterdir())):
        raise KdbenchError(f"--to {target}: there is something already; name a new folder")


def _check_formats(sources: Sequence[Path]) -> None:
    found = {}
    for source in sources:
        if not source.is_dir():
            raise KdbenchError(f"{source} is no run directory")
        number = Store(source).check()
        if number is None:
            raise KdbenchError(f"{source} is no run directory: it holds no {FORMAT_FILE}")
        found[source] = number
    if {*found.values()} != {FORMAT}:
        formats = ", ".join(f"{source} has {number}" for source, number in found.items())
        raise KdbenchError(f"only run directories of format {FORMAT} can be merged: {formats}")


def _teachers(source: Path, merge: Merge) -> Iterator[str]:
    folder = source / "teachers"
    if folder.is_symlink():
        merge.left_out.append(_line(source, "teachers", "is a link, which is not followed"))
    elif folder.is_dir():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_symlink():
                merge.left_out.append(_line(source, f"teachers/{entry.name}", "is a link, which is not followed"))
            elif entry.is_dir():
                yield entry.name


def _take_teacher(merge: Merge, teachers: dict[tuple[str, str], tuple[str, Path]], store: Store, name: str) -> None:
    path = f"teachers/{name}"
    try:
        folder = store.folder(path)
        result = read_record(folder.result, TeacherResult)
        folder.check_weights(result.checksum)
    except FileNotFoundError:
        merge.unfinished += 1
        return
    except (DamagedFileError, RefusedFileError) as error:
        merge.left_out.append(printable(f"{error.path}: {error.reason}", TEXT_LENGTH))
        return
    _note_teacher(merge, teachers, store.root, result.name, result.hash, result.checksum)
    merge.folders.setdefault(path, store.root)


def _note_teacher(
    merge: Merge, teachers: dict[tuple[str, str], tuple[str, Path]], root: Path, name: str, config: str, checksum: str
) -> None:
    """Remember whose weights stand behind the name and recipe of a teacher."""
    first, where = teachers.setdefault((name, config), (checksum, root))
    line = (
        f"teacher {name}-{config} has the weights {first[:10]} in {where}, and {checksum[:10]} in {root}: its students have "
        "different teachers of one name"
    )
    if first != checksum and line not in merge.conflicts:
        merge.conflicts.append(line)


def _take_cell(merge: Merge, teachers: dict[tuple[str, str], tuple[str, Path]], store: Store, path: str) -> None:
    try:
        found = store.folder(path).look()
    except RefusedFileError as error:
        merge.left_out.append(_line(store.root, path, error.reason))
        return
    if found.problem:
        merge.left_out.append(printable(found.problem, TEXT_LENGTH))
    if found.state not in FINISHED:
        merge.unfinished += not found.problem
        return
    if found.result is not None:
        used = found.result.teacher
        _note_teacher(merge, teachers, store.root, used.name, used.hash, used.checksum)
    before = merge.folders.get(path)
    if before is None:
        merge.folders[path] = store.root
        return
    other = Store(before).folder(path).look().result
    if other is None or found.result is None:  # what is done counts more than what failed
        if other is None and found.result is not None:
            merge.folders[path] = store.root
    elif _numbers(other) == _numbers(found.result):
        merge.twice += 1
    else:
        top1 = [result.metrics.last.get("top1") for result in (other, found.result)]
        merge.conflicts.append(
            f"{path} has other numbers in {before} (top-1 {top1[0]}) than in {store.root} (top-1 {top1[1]})"
        )


def _numbers(result: CellResult) -> object:
    """What a result says, without when, where and how fast."""
    return result.model_dump(exclude={"cost", "provenance"})


def _take_file(merge: Merge, source: Path, path: str) -> None:
    try:
        content = read_file(inside(source, path))
        before = merge.folders.setdefault(path, source)
        if read_file(inside(before, path)) != content:
            merge.conflicts.append(f"{path} differs in {before} and {source}")
    except RefusedFileError as error:
        merge.left_out.append(_line(source, path, error.reason))


def _take_declared(merge: Merge, source: Path) -> None:
    for path in sorted(source.glob(declaration_file("[!.]*", "[!.]*"))):
        where = path.parts[-3], path.parts[-2]
        try:
            merge.declared[where] = joined([*merge.declared.get(where, ()), *read_declared(source, *where)])
        except DamagedFileError as error:
            merge.left_out.append(_line(source, declaration_file(*where), error.reason))


def _files(source: Path, path: str) -> Iterator[str]:
    """The files of a folder below the store, those of training that is not over left out; links among them too."""
    top = inside(source, path)
    if not top.is_dir():
        yield path
        return
    for folder, inner, names in os.walk(top):
        for name in sorted([*names, *(name for name in inner if os.path.islink(f"{folder}/{name}"))]):
            if name != CLAIM_FILE and not name.endswith((".tmp", ".ckpt")):
                yield Path(folder, name).relative_to(source).as_posix()


def _line(root: Path, path: str, reason: str) -> str:
    return printable(f"{root}/{path}: {reason}", TEXT_LENGTH)


def conflict_error(conflicts: Sequence[str]) -> ListedError:
    """What is said instead of merging."""
    return ListedError(
        f"the run directories contradict each other in {counted(len(conflicts), 'place')}, and nothing was written; --keep-first "
        "takes what the first of them has",
        conflicts,
    )
