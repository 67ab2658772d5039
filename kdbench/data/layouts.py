"""Where ImageNet-1K lies below a folder, and in which form each of its two splits is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.folders import Entries, entries, list_class_folders, list_flat_folder, refuse_missing, what_lies
from kdbench.data.groundtruth import NAMED_IN, find_truth
from kdbench.data.parts import Part
from kdbench.data.wnids import WNID, wnids
from kdbench.errors import KdbenchError, nearest

TITLE = "ImageNet-1K"
#: Where it is looked for below the data folder, in this order; last comes the data folder itself.
FOLDERS = ("imagenet", "imagenet1k", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
EXPECTED = (
    "train/n01440764/*.JPEG ... and val/n01440764/*.JPEG ... (or tar shards, or a Hugging Face copy; see docs/data.md)"
)
SOURCE = "https://www.image-net.org (free, after registration)"
#: What the folder of a split may be called.
_SPLIT_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "validation", "ILSVRC2012_img_val")}


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
        return [named]
    return [path for path in (*(data / name for name in FOLDERS), data) if path.is_dir()]


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
    raise KdbenchError(f"{TITLE}: {looked} {what_lies(entries(looked, TITLE))}; expected {EXPECTED}, from {SOURCE}")


def read_split(root: Path, split: str, wanted: Wanted, data: Path) -> Part:
    """The images of ``train`` or ``val``.

    Args:
        data: where data sets lie; lists of labels are looked for from the split's folder up to there.

    Raises:
        KdbenchError: in one line, if it is not whole.
    """
    for form in _forms(root, split):
        return form.read(wanted, data)
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
        hint = ""
        present = [name for name in self.found.folders if name in set(wnids())]
        if wanted.all and len(present) < len(wanted.labels):
            hint = say_choice(present)
        refuse_missing(self.root, present, list(wanted.labels), TITLE, hint)
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
        present = set(classes)
        refuse_missing(self.root, present, list(wanted.labels), TITLE, f" ({truth.path} says which image is of which)")
        return list_flat_folder(self.root, self.found, labels, TITLE, wanted.undecodable)


Form = ClassFolders | FlatFolder


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
    return forms


def say_choice(present: Sequence[str]) -> str:
    """How a suite says that it wants only the classes that are there."""
    from kdbench.data.classlists import list_called

    if not present:
        return f"; expected folders named by WNID, such as {wnids()[0]}"
    name = list_called(present)
    shown = name or f"[{', '.join(present[:2])}{', ...' if len(present) > 2 else ''}]"
    count = "1 class" if len(present) == 1 else f"{len(present):,} classes"
    return f"; it holds {count}: a suite that wants these says so under dataset, classes: {shown}"


def _refuse_other_folders(root: Path, folders: Sequence[str], wanted: Wanted) -> None:
    """See that folders are classes. Where only some classes are wanted, those of a larger ImageNet may stand beside them."""
    known = set(wnids())
    for name in folders:
        if name in known or (WNID.fullmatch(name) and not wanted.all):
            continue
        if WNID.fullmatch(name):
            raise KdbenchError(f"{TITLE}: {root / name} is no class of ILSVRC 2012; {nearest(name, sorted(known))}")
        inside = entries(root / name, TITLE).folders
        nested = next((child for child in inside if WNID.fullmatch(child)), None)
        where = f"; {nested} lies inside it, one level too deep" if nested else ""
        raise KdbenchError(
            f"{TITLE}: {root / name} is no class; expected folders named by WNID, such as {wnids()[0]}{where}"
        )


__all__ = ["EXPECTED", "FOLDERS", "NAMED_IN", "SOURCE", "TITLE", "Wanted", "below", "find_root", "read_split", "roots"]
