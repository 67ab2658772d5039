"""Splits in tar archives: WebDataset shards, an archive for each class, archives of class folders, an archive of archives."""

from __future__ import annotations

import itertools
import os
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from kdbench.datasets.imagenet.tarindex import Member, members
from kdbench.datasets.imagenet.wnids import TITLE, WNID, numbers, refuse_other_class, refuse_unknown, wnids
from kdbench.datasets.parts import Part, note_on_bad, sorted_order, stem
from kdbench.datasets.sources import EXPECTED_FILES, PackedNames, TarSource, endings_of, is_image_name
from kdbench.errors import KdbenchError, counted
from kdbench.opening import followed, open_file

_NUMBERED = re.compile(r"(?P<start>.*?)(?P<number>\d+)(?:-of-(?P<total>\d+))?\.(?:tar|parquet|arrow)")
#: Extension of the member that holds the class of the image of the same name (WebDataset).
_CLASS_EXTENSION = ".cls"
_METADATA = (_CLASS_EXTENSION, ".json", ".txt", "__key__")


def refuse_gaps(root: Path, names: Sequence[str]) -> None:
    """Raise ``KdbenchError`` if one of ``x-000000.tar``, ``x-000001.tar`` ... or ``x-00000-of-00257.parquet`` is missing."""
    groups: dict[tuple[str, str | None], dict[int, str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match and not WNID.fullmatch(os.path.splitext(name)[0]):
            groups.setdefault((match["start"], match["total"]), {})[int(match["number"])] = match["number"]
    for (start, total), present in groups.items():
        first = 0 if total is not None or 0 in present else 1
        stop = int(total) if total is not None else max(present) + 1
        # Counted, not listed: the number in a name may have two hundred digits.
        count = stop - first - sum(first <= number < stop for number in present)
        if count > 0:
            missing = next(number for number in itertools.count(first) if number not in present)
            width = len(next(iter(present.values())))
            ending = f"-of-{total}" if total is not None else ""
            raise KdbenchError(
                f"{TITLE}: {root} lacks {start}{missing:0{width}d}{ending}{os.path.splitext(names[0])[1]}"
                f"{f' and {count - 1:,} more' if count > 1 else ''} of {stop - first:,} files: was it copied whole?"
            )


def read_shards(
    root: Path,
    data: Path,
    archives: Sequence[str],
    labels: Mapping[str, int],
    classes_of: Callable[[Sequence[str]], Sequence[str]],
    undecodable: float = 0.0,
) -> tuple[Part, set[str]]:
    """The images of a split in archives of ``root``.

    The class of an image is that of its ``.cls`` member (an index of the sorted WNIDs, or a WNID), else its folder in the
    archive, else the name of the archive, else that of ``classes_of`` for the names of the images.

    Args:
        data: the data folder, which links may not leave.
        archives: names below ``root``.
        labels: label of each wanted WNID; images of others are left out.

    Returns:
        The images, and all WNIDs in the archives.

    Raises:
        KdbenchError: for archives that are not whole, or an image without a class.
    """
    refuse_gaps(root, archives)
    names: list[str] = []
    chosen, archive, offsets, sizes = array("q"), array("i"), array("q"), array("q")
    seen: set[str] = set()
    others: list[str] = []
    empty: list[str] = []
    for number, name in enumerate(archives):
        alone = os.path.splitext(name)[0]
        if WNID.fullmatch(alone) and alone not in labels:
            refuse_unknown(alone, labels, str(root / name))
            seen.add(alone)
            continue
        found = members(root / name, data)
        images = [member for member in found if is_image_name(member.name)]
        named = (member.name for member in found if not is_image_name(member.name))
        others += [member for member in named if not member.lower().endswith(_METADATA)]
        if not images:
            raise KdbenchError(f"{TITLE}: {root / name} holds no {EXPECTED_FILES}: was it copied whole?")
        classes = _classes(root / name, data, found, images, labels, classes_of)
        for member, wnid in zip(images, classes, strict=True):
            refuse_other_class(member.name, wnid, str(root / name))
            seen.add(wnid)
            if wnid not in labels:
                continue
            if member.size == 0:
                empty.append(f"{root / name}: {member.name} is empty")
            names.append(member.name)
            chosen.append(labels[wnid])
            archive.append(number)
            offsets.append(member.offset)
            sizes.append(member.size)
    notes = []
    if others:
        notes.append(f"{root}: {counted(len(others), 'member')} of archives left out: {endings_of(others)}")
    notes += note_on_bad(empty, len(names), undecodable, TITLE)
    order = np.array(sorted_order(chosen, names), dtype=np.int64)
    names = [names[position] for position in order]
    source = TarSource(
        str(root.absolute()),
        str(data.absolute()),
        tuple(archives),
        np.array(archive, dtype=np.int32)[order],
        np.array(offsets, dtype=np.int64)[order],
        np.array(sizes, dtype=np.int64)[order],
        PackedNames.pack(names),
    )
    part = Part(source, np.array(chosen, dtype=np.int64)[order], [stem(name) for name in names], tuple(notes))
    return part, seen


def _classes(
    path: Path,
    data: Path,
    found: Sequence[Member],
    images: Sequence[Member],
    labels: Mapping[str, int],
    classes_of: Callable[[Sequence[str]], Sequence[str]],
) -> Sequence[str]:
    """The WNID of every image of an archive."""
    stated = {
        os.path.splitext(member.name)[0]: member for member in found if member.name.lower().endswith(_CLASS_EXTENSION)
    }
    if stated:
        return _stated_classes(path, data, images, stated)
    folders = [PurePosixPath(image.name).parent.name.removesuffix(".tar") for image in images]
    if all(WNID.fullmatch(folder) for folder in folders):
        for folder in set(folders):
            refuse_unknown(folder, labels, str(path))
        return folders
    if WNID.fullmatch(path.stem):
        return [path.stem] * len(images)
    odd = next((folder for folder in folders if folder and not WNID.fullmatch(folder)), None)
    if odd is not None and any(WNID.fullmatch(folder) for folder in folders):
        raise KdbenchError(
            f"{TITLE}: {path} holds a folder {odd}; expected folders named by WNID, such as {wnids()[0]}"
        )
    return classes_of([os.path.basename(image.name) for image in images])


def _stated_classes(path: Path, data: Path, images: Sequence[Member], stated: Mapping[str, Member]) -> Sequence[str]:
    official = wnids()
    classes = []
    with open_file(followed(data, path)) as file:
        for image in images:
            member = stated.get(os.path.splitext(image.name)[0])
            if member is None:
                raise KdbenchError(
                    f"{TITLE}: {path} holds {image.name}, but not its class, {os.path.splitext(image.name)[0]}{_CLASS_EXTENSION}"
                )
            text = os.pread(file.fileno(), min(member.size, 64), member.offset).decode("utf-8", "replace").strip()
            if text.isdecimal() and int(text) < len(official):
                classes.append(official[int(text)])
            elif text in numbers():
                classes.append(text)
            else:
                raise KdbenchError(
                    f"{TITLE}: {path}: {member.name} says {text!r}; expected a class from 0 to {len(official) - 1} or a WNID"
                )
    return classes
