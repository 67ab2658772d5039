"""Where ImageNet-1K lies below a folder, and in which form each of its two splits is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.datasets.folders import Entries, entries, list_class_folders, list_flat_folder, refuse_missing, what_lies
from kdbench.datasets.imagenet.groundtruth import find_truth
from kdbench.datasets.imagenet.huggingface import EXTENSIONS, read_tables
from kdbench.datasets.imagenet.shards import read_shards
from kdbench.datasets.imagenet.wnids import WNID, refuse_unknown, wnids
from kdbench.datasets.parts import Part
from kdbench.errors import KdbenchError

TITLE = "ImageNet-1K"
#: Where it is looked for below the data folder, in this order; last comes the data folder itself.
FOLDERS = ("imagenet", "imagenet1k", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
EXPECTED = "train/n01440764/*.JPEG ... and val/n01440764/*.JPEG ... (or tar shards, or a Hugging Face copy; docs/data.md has all forms)"
SOURCE = "https://www.image-net.org (free, after registration)"
#: What copies are called in the cache of Hugging Face's hub.
_HUB = "datasets--*imagenet-1k*"
#: What the folder of a split may be called.
_SPLIT_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "validation", "ILSVRC2012_img_val")}
#: What the files of a split may be called beside those of the other: archives, Parquet files. Others, such as
#: ILSVRC2012_img_train_t3.tar (a task of its own), are none of them.
_SPLIT_FILES = {
    "train": re.compile(r"(?:.*[-_.])?train(?:_images)?(?:[-_]\d+)?(?:-of-\d+)?\.(?:tar|tar\.gz|parquet)"),
    "val": re.compile(r"(?:.*[-_.])?(?:val|validation)(?:_images)?(?:[-_]\d+)?(?:-of-\d+)?\.(?:tar|tar\.gz|parquet)"),
}


@dataclass(frozen=True)
class Wanted:
    """Which classes are asked for, by WNID: ``labels`` is what each becomes; ``all`` tells that no choice was made."""

    labels: Mapping[str, int]
    all: bool
    undecodable: float = 0.0


def roots(data: Path, folder: str | None) -> list[Path]:
    """The folders that may hold the data set, the most telling name first.

    Args:
        data: where data sets lie.
        folder: what the suite says.

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
        return [_snapshot(named)]
    hub = (copy for place in (data, data / "hub") for copy in sorted(place.glob(_HUB)))
    candidates = (*(data / name for name in FOLDERS), *hub, data)
    return [_snapshot(path) for path in candidates if path.is_dir()]


def _snapshot(folder: Path) -> Path:
    """In the cache of Hugging Face's hub the snapshot that ``refs/main`` names, or the only one; else the folder itself.

    Raises:
        KdbenchError: if it is not there, or there are several and none is named.
    """
    if not (folder / "snapshots").is_dir():
        return folder
    there = entries(folder / "snapshots", TITLE).folders
    main = folder / "refs" / "main"
    named = main.read_text("utf-8").strip() if main.is_file() else None
    if named in there:
        return folder / "snapshots" / str(named)
    if len(there) != 1:
        wanted = f"{named}, which refs/main names" if named else "one snapshot"
        raise KdbenchError(f"{TITLE}: {folder / 'snapshots'} holds {', '.join(there) or 'nothing'}; expected {wanted}")
    return folder / "snapshots" / there[0]


def below(data: Path, folder: str, title: str) -> Path:
    """A suite's folder below the data folder.

    Raises:
        KdbenchError: if it would lie elsewhere.
    """
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts:
        raise KdbenchError(f"{title}: the suite's folder is {folder!r}; expected a path below --data, without '..'")
    return data / path


def find_root(data: Path, folder: str | None) -> Path:
    """The first of ``roots`` with a training split.

    Raises:
        KdbenchError: if none has; what was looked for is said, and what lies there.
    """
    candidates = roots(data, folder)
    for root in candidates:
        if _forms(root, "train"):
            return root
    looked = candidates[0]
    found = entries(looked, TITLE)
    near = next((name for name in found.folders if folder is None and (looked / name / "train").is_dir()), None)
    hint = f"; {near}/ has a train/: a suite that means it says so under dataset, folder: {near}" if near else ""
    raise KdbenchError(f"{TITLE}: {looked} {what_lies(found)}; expected {EXPECTED}, from {SOURCE}{hint}")


def read_split(root: Path, split: str, wanted: Wanted, data: Path) -> Part:
    """The images of ``train`` or ``val``.

    Args:
        data: where data sets lie; lists of labels are looked for from the split's folder up to there.

    Raises:
        KdbenchError: in one line, if it is not whole.
    """
    forms = _forms(root, split)
    if forms:
        return forms[0].read(wanted, data)
    raise KdbenchError(
        f"{TITLE}: {root} has a training split, but no {_SPLIT_FOLDERS[split][0]}/; "
        f"expected the official validation images, from {SOURCE}"
    )


@dataclass(frozen=True)
class ClassFolders:
    """WNID/FILE."""

    root: Path
    found: Entries

    def read(self, wanted: Wanted, data: Path) -> Part:
        _refuse_other_folders(self.root, self.found.folders, wanted)
        _refuse_missing(self.root, self.found.folders, wanted)
        return list_class_folders(self.root, wanted.labels, TITLE, wanted.undecodable)


@dataclass(frozen=True)
class FlatFolder:
    """The validation images in one folder, with their classes in a list beside it."""

    root: Path
    found: Entries

    def read(self, wanted: Wanted, data: Path) -> Part:
        truth = find_truth(self.root, data, TITLE, self.found.images)
        classes = truth.classes(self.found.images)
        labels = [wanted.labels.get(wnid) for wnid in classes]
        _refuse_missing(self.root, classes, wanted)
        return list_flat_folder(self.root, self.found, labels, TITLE, wanted.undecodable)


@dataclass(frozen=True)
class Archives:
    """Tar archives: shards, or the official ones."""

    root: Path
    names: tuple[str, ...]

    def read(self, wanted: Wanted, data: Path) -> Part:
        def classes_of(images: Sequence[str]) -> list[str]:
            return find_truth(self.root, data, TITLE, images).classes(images)

        part, seen = read_shards(self.root, self.names, wanted.labels, TITLE, classes_of, wanted.undecodable)
        _refuse_missing(self.root, seen, wanted)
        return part


@dataclass(frozen=True)
class Tables:
    """Parquet or Arrow files."""

    root: Path
    names: tuple[str, ...]

    def read(self, wanted: Wanted, data: Path) -> Part:
        part, seen = read_tables(self.root, self.names, wanted.labels, TITLE, wanted.undecodable)
        _refuse_missing(self.root, seen, wanted)
        return part


Form = ClassFolders | FlatFolder | Archives | Tables


def _forms(root: Path, split: str) -> list[Form]:
    """The forms in which a split is there, the first of them to be read."""
    forms: list[Form] = []
    for name in _SPLIT_FOLDERS[split]:
        folder = root / name
        if not folder.is_dir():
            continue
        found = entries(folder, TITLE)
        if found.folders:
            forms.append(ClassFolders(folder, found))
        elif found.images:
            forms.append(FlatFolder(folder, found))
        else:
            forms += _files(folder, found.others)
    for folder in (root, root / "data"):
        if folder.is_dir():
            named = [name for name in entries(folder, TITLE).others if _SPLIT_FILES[split].fullmatch(name)]
            forms += _files(folder, named)
    return forms


def _files(folder: Path, names: Sequence[str]) -> list[Form]:
    """Tables or archives among the files of a split.

    Raises:
        KdbenchError: if there are only compressed archives.
    """
    tables = tuple(name for name in names if name.endswith(EXTENSIONS))
    if tables:
        return [Tables(folder, tables)]
    archives = tuple(name for name in names if name.endswith(".tar"))
    if archives:
        return [Archives(folder, archives)]
    packed = next((name for name in names if name.endswith((".tar.gz", ".tgz"))), None)
    if packed is not None:
        raise KdbenchError(
            f"{TITLE}: {folder / packed} is compressed, so single images cannot be read from it; unpack it: gunzip {folder / packed}"
        )
    return []


def _refuse_missing(root: Path, present: Iterable[str], wanted: Wanted) -> None:
    """See that all wanted classes are there, else say how a suite takes those that are."""
    known = sorted(set(present) & set(wnids()))
    refuse_missing(root, known, list(wanted.labels), TITLE, say_choice(known) if wanted.all else "")


def say_choice(present: Sequence[str]) -> str:
    """How a suite says that it wants only the classes that are there."""
    from kdbench.suite.classlists import list_called

    if not present:
        return f"; expected folders named by WNID, such as {wnids()[0]}"
    name = list_called(present)
    shown = name or f"[{', '.join(present[:2])}{', ...' if len(present) > 2 else ''}]"
    count = "1 class" if len(present) == 1 else f"{len(present):,} classes"
    return f"; it holds {count}: a suite that wants these says so under dataset, classes: {shown}"


def _refuse_other_folders(root: Path, folders: Sequence[str], wanted: Wanted) -> None:
    """See that folders are classes. Where only some classes are wanted, those of a larger ImageNet may stand beside them."""
    for name in folders:
        if WNID.fullmatch(name):
            refuse_unknown(name, wanted.labels, str(root / name), TITLE)
            continue
        nested = next((child for child in entries(root / name, TITLE).folders if WNID.fullmatch(child)), None)
        where = f"; {nested} lies inside it, one level too deep" if nested else ""
        raise KdbenchError(
            f"{TITLE}: {root / name} is no class; expected folders named by WNID, such as {wnids()[0]}{where}"
        )


__all__ = ["EXPECTED", "FOLDERS", "SOURCE", "TITLE", "Wanted", "below", "find_root", "read_split", "roots"]
