"""Class folders: CLASS/FILE, or CLASS/images/FILE as Tiny-ImageNet has them.

Only names are read, with one system call for many files; images are not opened.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.datasets.parts import Part, note_on_bad, sorted_order, stem
from kdbench.datasets.sources import EXPECTED_FILES, FolderSource, PackedNames, endings_of, is_image_name
from kdbench.errors import KdbenchError, counted
from kdbench.opening import RefusedFileError, followed

#: What file managers and archivers leave behind.
_LEFT_BEHIND = frozenset({"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
#: The folder inside a class's that holds its images in Tiny-ImageNet.
INNER = "images"
#: At most so many files of a split, evenly spread, are checked for their size before a run.
SIZES_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Entries:
    """Sorted names in a folder. ``others`` are neither images nor folders; hidden ones are left out."""

    folders: tuple[str, ...]
    images: tuple[str, ...]
    others: tuple[str, ...]


def entries(folder: Path, data: Path, title: str) -> Entries:
    """List a folder of the data set ``title``, without hidden files and those that file managers leave behind.

    Raises:
        KdbenchError: if it cannot be read, or leads out of the data folder ``data``.
    """
    target = followed(data, folder)
    folders: list[str] = []
    images: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(target) as found:
            for entry in found:
                if entry.name.startswith(".") or entry.name in _LEFT_BEHIND:
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                else:
                    (images if is_image_name(entry.name) else others).append(entry.name)
    except OSError as error:
        raise KdbenchError(f"{title}: {folder} cannot be read ({error.strerror or error})") from None
    return Entries(tuple(sorted(folders)), tuple(sorted(images)), tuple(sorted(others)))


def contents(found: Entries) -> str:
    """The contents of a folder, for messages: ``holds a/, b.txt``."""
    names = [*(f"{name}/" for name in found.folders), *found.images, *found.others]
    return f"holds {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else "is empty"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; links named like images are not followed."""
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    if is_image_name(entry.name):
        return False
    try:
        return entry.is_dir()
    except OSError as error:  # links in a circle
        raise OSError(error.errno, f"{entry.name}: {error.strerror}") from None


def list_class_folders(
    root: Path, data: Path, classes: Mapping[str, int], title: str, undecodable: float = 0.0
) -> Part:
    """The images of the class folders of ``root`` that ``classes`` names, with the label of each; the folders exist.

    Args:
        data: the data folder, which no link may leave.
        undecodable: share of images that may be empty.

    Raises:
        KdbenchError: for a class without images, with folders inside, or not readable; for too many empty files.
    """
    names: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for name, label in sorted(classes.items(), key=lambda item: item[1]):
        folder, inside = name, entries(root / name, data, title)
        if inside.folders == (INNER,) and not inside.images:
            folder = f"{name}/{INNER}"
            inside = entries(root / folder, data, title)
        if inside.folders:
            raise KdbenchError(
                f"{title}: {root / folder} holds {counted(len(inside.folders), 'folder')} ({inside.folders[0]}"
                f"{', ...' if len(inside.folders) > 1 else ''}); expected only images in the folder of a class"
            )
        if not inside.images:
            found = f"only {inside.others[0]} and the like" if inside.others else "nothing"
            raise KdbenchError(
                f"{title}: {root / folder} holds {found}; expected {EXPECTED_FILES}: was it copied whole?"
            )
        names += [f"{folder}/{image}" for image in sorted(inside.images, key=lambda image: (stem(image), image))]
        labels += [label] * len(inside.images)
        others += [f"{folder}/{other}" for other in inside.others]
    return _part(root, data, names, labels, others, title, undecodable)


def list_flat_folder(
    root: Path, data: Path, found: Entries, labels: Sequence[int | None], title: str, undecodable: float = 0.0
) -> Part:
    """The images in ``root`` itself with their ``labels``; None leaves an image out."""
    kept = [(name, label) for name, label in zip(found.images, labels, strict=True) if label is not None]
    order = sorted_order([label for _, label in kept], [name for name, _ in kept])
    chosen = [kept[position] for position in order]
    names, chosen_labels = [name for name, _ in chosen], [label for _, label in chosen]
    return _part(root, data, names, chosen_labels, found.others, title, undecodable)


def _part(
    root: Path,
    data: Path,
    names: list[str],
    labels: list[int],
    others: Sequence[str],
    title: str,
    undecodable: float,
) -> Part:
    notes = []
    if others:
        notes.append(f"{root}: {counted(len(others), 'file')} left out: {endings_of(others)}, such as {others[0]}")
    count = min(len(names), SIZES_LOOKED_AT)
    bad = list(filter(None, (_defect(root / names[step * len(names) // count], data) for step in range(count))))
    notes += note_on_bad(bad, count, undecodable, title)
    return Part(
        FolderSource(str(root.absolute()), str(data.absolute()), PackedNames.pack(names)),
        np.array(labels, dtype=np.int64),
        [stem(name) for name in names],
        tuple(notes),
    )


def _defect(path: Path, data: Path) -> str:
    """``PATH is empty``, or a link to nothing: from a copy that was cut off; else nothing. A link out of ``data`` is an error."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            found = os.stat(followed(data, path))
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is no regular file"
        return "" if found.st_size else f"{path} is empty"
    except RefusedFileError:
        raise
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def refuse_missing(root: Path, present: Iterable[str], wanted: Sequence[str], title: str, hint: str = "") -> None:
    """Raise ``KdbenchError`` if a wanted class is not present; one that only looks different is named."""
    there = set(present)
    missing = [name for name in wanted if name not in there]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        near = next(filter(None, (twin(name, there) for name in missing)), "")
        raise KdbenchError(
            f"{title}: {root} lacks {len(missing):,} of {len(wanted):,} classes: {shown}{hint}{near and f'; {near}'}"
        )


def twin(name: str, present: Iterable[str]) -> str:
    """A phrase about a present name that a person would read as the same one; empty if there is none.

    macOS writes names decomposed (NFD: ``e`` and an accent), most others write them composed (NFC).
    """
    same: dict[str, Callable[[str], str]] = {
        "Unicode form": lambda text: unicodedata.normalize("NFC", text),
        "Unicode characters": lambda text: unicodedata.normalize("NFKC", text),
        "blanks": lambda text: "".join(unicodedata.normalize("NFKC", text).split()),
        "case": lambda text: "".join(unicodedata.normalize("NFKC", text).casefold().split()),
    }
    for difference, plain in same.items():
        for other in sorted(present):
            if plain(other) == plain(name):
                return f"it has {other!a}, which differs from {name!a} in {difference} only: rename one of them"
    return ""
