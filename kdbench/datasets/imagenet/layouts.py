"""The folder of ImageNet-1K, and the form of each of its two splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdbench.datasets.folders import Entries, contents, entries, list_class_folders, list_flat_folder, refuse_missing
from kdbench.datasets.imagenet.groundtruth import classes_of
from kdbench.datasets.imagenet.huggingface import EXTENSIONS, read_tables
from kdbench.datasets.imagenet.shards import read_shards
from kdbench.datasets.imagenet.wnids import TITLE, WNID, refuse_unknown, wnids
from kdbench.datasets.parts import Part
from kdbench.errors import KdbenchError
from kdbench.opening import followed, read_file
from kdbench.shown import NAME_LENGTH

#: Searched below the data folder, in this order; the data folder itself comes last.
FOLDERS = ("imagenet", "imagenet1k", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
EXPECTED = "train/n01440764/*.JPEG ... and val/n01440764/*.JPEG ... (or tar shards, or a Hugging Face copy; docs/data.md has all forms)"
SOURCE = "https://www.image-net.org (free, after registration)"
#: Name of copies in the cache of Hugging Face's hub.
_HUB = "datasets--*imagenet-1k*"
#: Names of the folder of a split.
_SPLIT_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "validation", "ILSVRC2012_img_val")}
#: Names of the files of a split (archives, Parquet), where both splits share a folder. Others, such as
#: ILSVRC2012_img_train_t3.tar (of another task), do not match.
_SPLIT_FILES = {
    "train": re.compile(r"(?:.*[-_.])?train(?:_images)?(?:[-_]\d+)?(?:-of-\d+)?\.(?:tar|tar\.gz|parquet)"),
    "val": re.compile(r"(?:.*[-_.])?(?:val|validation)(?:_images)?(?:[-_]\d+)?(?:-of-\d+)?\.(?:tar|tar\.gz|parquet)"),
}


@dataclass(frozen=True)
class Wanted:
    """The label of each wanted WNID; ``all`` if the suite chose no classes."""

    labels: Mapping[str, int]
    all: bool
    undecodable: float = 0.0


def roots(data: Path, folder: str | None) -> list[Path]:
    """The folders that may hold the data set, the most specific name first; ``folder`` is the suite's.

    Raises:
        KdbenchError: if there is none.
    """
    if not data.exists():
        raise KdbenchError(f"{TITLE}: {data} does not exist; it should hold imagenet/ with {EXPECTED}, from {SOURCE}")
    if not data.is_dir():
        raise KdbenchError(f"{TITLE}: {data} is a file; expected the folder that holds imagenet/ with {EXPECTED}")
    if folder is not None:
        named = below(data, folder, TITLE)
        if not named.is_dir():
            raise KdbenchError(
                f"{TITLE}: {named}, the suite's folder, {'is a file' if named.exists() else 'does not exist'}; "
                f"expected {EXPECTED}"
            )
        return [_snapshot(named, data)]
    hub = (copy for place in (data, data / "hub") for copy in sorted(place.glob(_HUB)))
    candidates = (*(data / name for name in FOLDERS), *hub, data)
    return [_snapshot(path, data) for path in candidates if path.is_dir()]


def _snapshot(folder: Path, data: Path) -> Path:
    """In the cache of Hugging Face's hub the snapshot that ``refs/main`` names, or the only one; else the folder itself."""
    if not (folder / "snapshots").is_dir():
        return folder
    there = entries(folder / "snapshots", data, TITLE).folders
    main = folder / "refs" / "main"
    named = read_file(followed(data, main)).decode("utf-8", "replace").strip()[:NAME_LENGTH] if main.is_file() else None
    if named in there:
        return folder / "snapshots" / str(named)
    if len(there) != 1:
        wanted = f"{named}, which refs/main names" if named else "one snapshot"
        raise KdbenchError(f"{TITLE}: {folder / 'snapshots'} holds {', '.join(there) or 'nothing'}; expected {wanted}")
    return folder / "snapshots" / there[0]


def below(data: Path, folder: str, title: str) -> Path:
    """A suite's folder below the data folder. Raises ``KdbenchError`` if it is elsewhere."""
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts:
        raise KdbenchError(f"{title}: the suite's folder is {folder!r}; expected a path below --data, without '..'")
    return data / path


def find_root(data: Path, folder: str | None) -> Path:
    """The first of ``roots`` with a training split.

    Raises:
        KdbenchError: if none has, with the expected layout and the contents.
    """
    candidates = roots(data, folder)
    for root in candidates:
        if _readers(root, data, "train"):
            return root
    looked = candidates[0]
    found = entries(looked, data, TITLE)
    near = next((name for name in found.folders if folder is None and (looked / name / "train").is_dir()), None)
    hint = f"; {near}/ has a train/: a suite that means it says so under dataset, folder: {near}" if near else ""
    raise KdbenchError(f"{TITLE}: {looked} {contents(found)}; expected {EXPECTED}, from {SOURCE}{hint}")


def read_split(root: Path, split: str, wanted: Wanted, data: Path) -> Part:
    """The images of ``train`` or ``val``; lists of labels are searched from the split's folder up to ``data``.

    Raises:
        KdbenchError: if it is not whole.
    """
    if readers := _readers(root, data, split):
        return readers[0](wanted, data)
    raise KdbenchError(
        f"{TITLE}: {root} has a training split, but no {_SPLIT_FOLDERS[split][0]}/; "
        f"expected the official validation images, from {SOURCE}"
    )


#: Reads the images of a split in one form, given the wanted classes and the data folder.
Reader = Callable[[Wanted, Path], Part]


def _readers(root: Path, data: Path, split: str) -> list[Reader]:
    """Readers of the forms in which a split is there, the first to be used."""
    found: list[Reader] = []
    for name in _SPLIT_FOLDERS[split]:
        folder = root / name
        if not folder.is_dir():
            continue
        inside = entries(folder, data, TITLE)
        if inside.folders:
            found.append(partial(_class_folders, folder, inside))
        elif inside.images:
            found.append(partial(_flat_folder, folder, inside))
        else:
            found += _files(folder, inside.others)
    for folder in (root, root / "data"):
        if folder.is_dir():
            named = [name for name in entries(folder, data, TITLE).others if _SPLIT_FILES[split].fullmatch(name)]
            found += _files(folder, named)
    return found


def _class_folders(root: Path, found: Entries, wanted: Wanted, data: Path) -> Part:
    """WNID/FILE. Where only some classes are wanted, those of a larger ImageNet may stand beside them."""
    for name in found.folders:
        if WNID.fullmatch(name):
            refuse_unknown(name, wanted.labels, str(root / name))
            continue
        nested = next((child for child in entries(root / name, data, TITLE).folders if WNID.fullmatch(child)), None)
        where = f"; {nested} lies inside it, one level too deep" if nested else ""
        raise KdbenchError(
            f"{TITLE}: {root / name} is no class; expected folders named by WNID, such as {wnids()[0]}{where}"
        )
    _refuse_missing(root, found.folders, wanted)
    return list_class_folders(root, data, wanted.labels, TITLE, wanted.undecodable)


def _flat_folder(root: Path, found: Entries, wanted: Wanted, data: Path) -> Part:
    """The validation images in one folder, with their classes in a list beside it."""
    classes = classes_of(root, data, found.images)
    _refuse_missing(root, classes, wanted)
    return list_flat_folder(root, data, found, list(map(wanted.labels.get, classes)), TITLE, wanted.undecodable)


def _packed(root: Path, names: Sequence[str], wanted: Wanted, data: Path) -> Part:
    """Parquet or Arrow files, or tar archives: shards, or the official ones."""
    if names[0].endswith(".tar"):
        part, seen = read_shards(root, data, names, wanted.labels, partial(classes_of, root, data), wanted.undecodable)
    else:
        part, seen = read_tables(root, data, names, wanted.labels)
    _refuse_missing(root, seen, wanted)
    return part


def _files(folder: Path, names: Sequence[str]) -> list[Reader]:
    """The reader of the tables or archives among the files of a split."""
    for endings in (EXTENSIONS, (".tar",)):
        if found := [name for name in names if name.endswith(endings)]:
            return [partial(_packed, folder, found)]
    packed = next((name for name in names if name.endswith((".tar.gz", ".tgz"))), None)
    if packed is not None:
        raise KdbenchError(
            f"{TITLE}: {folder / packed} is compressed, so single images cannot be read from it; unpack it: gunzip {folder / packed}"
        )
    return []


def _refuse_missing(root: Path, present: Iterable[str], wanted: Wanted) -> None:
    """Raise ``KdbenchError`` if a wanted class is missing, with how a suite chooses those that are there."""
    from kdbench.suite.classlists import list_called

    known = sorted(set(present) & set(wnids()))
    hint = ""
    if wanted.all and known:
        shown = list_called(known) or f"[{', '.join(known[:2])}{', ...' if len(known) > 2 else ''}]"
        count = "1 class" if len(known) == 1 else f"{len(known):,} classes"
        hint = f"; it holds {count}: a suite that wants these says so under dataset, classes: {shown}"
    elif wanted.all:
        hint = f"; expected folders named by WNID, such as {wnids()[0]}"
    refuse_missing(root, known, list(wanted.labels), TITLE, hint)
