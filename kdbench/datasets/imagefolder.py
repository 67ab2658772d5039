"""Any folder of classes: train/CLASS/FILE with val/CLASS/FILE, test/CLASS/FILE or both.

Classes are numbered in the plain sorted order of their names. Where both ``val`` and ``test`` exist, ``val`` is for validation;
else a tenth of each training class is held out for it, and the one that exists is the test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdbench.data.images import Dataset
from kdbench.datasets.folders import contents, entries, list_class_folders, refuse_missing
from kdbench.datasets.imagenet.layouts import below
from kdbench.datasets.parts import Part, file_set, held_out_positions
from kdbench.errors import KdbenchError, UnknownNameError, counted

if TYPE_CHECKING:
    from kdbench.suite.dataset import DatasetSpec

TITLE = "Image folders"
EXPECTED = "train/CLASS/FILE and val/CLASS/FILE or test/CLASS/FILE"
#: One of so many images of each class is held out for validation, unless there are both ``val`` and ``test``.
HELD_OUT_ONE_OF = 10


def load(folder: Path | None, spec: DatasetSpec) -> Dataset:
    """List the images of a folder of classes.

    Args:
        folder: the data folder; ``spec.folder`` is below it.
        spec: the suite's; its number of classes must be that of the folders.

    Raises:
        KdbenchError: if the folders are not as expected.
    """
    parts, names = _read(folder, spec)
    train = file_set(parts["train"], spec.undecodable)
    test = file_set(parts.get("test", parts.get("val", parts["train"])), spec.undecodable)
    if "val" in parts and "test" in parts:
        held_out = None
        validation = file_set(parts["val"], spec.undecodable)
    else:
        # At least one image of a class, but never its only one.
        count = lambda size: max(1, size // HELD_OUT_ONE_OF) if size > 1 else 0  # noqa: E731
        held_out = torch.from_numpy(held_out_positions(parts["train"], "kdbench imagefolder", count))
        validation = train.take(held_out)
    return Dataset("imagefolder", len(names), train, validation, test, held_out, names)


def check(folder: Path | None, spec: DatasetSpec) -> tuple[str, ...]:
    """List the images without keeping them; notes on the files, a line each. Raises as ``load``."""
    parts, _ = _read(folder, spec)
    return tuple(f"{TITLE}: {note}" for part in parts.values() for note in part.notes)


def _read(data: Path | None, spec: DatasetSpec) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The parts by split, and the class name of each label."""
    if data is None:
        raise KdbenchError(
            f"{TITLE} lie in files: --data DIR or $KDBENCH_DATA (not set) names the folder that holds {spec.folder}/"
        )
    root = below(Path(data), spec.folder or "", TITLE)
    if not root.is_dir():
        raise KdbenchError(
            f"{TITLE}: {root} {'is a file' if root.exists() else 'does not exist'}; expected a folder with {EXPECTED}"
        )
    there = entries(root, TITLE)
    splits = {"train": "train", "test": "test", "val": "val" if "val" in there.folders else "validation"}
    found = {split: root / name for split, name in splits.items() if name in there.folders}
    if "train" not in found or len(found) < 2:
        raise KdbenchError(f"{TITLE}: {root} {contents(there)}; expected {EXPECTED}")
    present = {split: entries(path, TITLE).folders for split, path in found.items()}
    labels, names = _labels(found["train"], present["train"], spec)
    for split, path in found.items():
        if split != "train":
            refuse_missing(path, present[split], list(labels), TITLE, " of train")
            if spec.classes is None:
                refuse_missing(found["train"], present["train"], present[split], TITLE, f" of {path.name}")
    parts = {split: list_class_folders(path, labels, TITLE, spec.undecodable) for split, path in found.items()}
    return parts, names


def _labels(train: Path, present: tuple[str, ...], spec: DatasetSpec) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each chosen class, and the name of each label."""
    if not present:
        raise KdbenchError(f"{TITLE}: {train} holds no folders; expected {EXPECTED}")
    listed = spec.class_list
    wanted = present if listed is None else tuple(sorted(listed))
    for name in wanted:
        if name not in present:
            raise UnknownNameError("class", name, present, str(train))
    if listed is not None and len(set(wanted)) < len(wanted):
        raise KdbenchError(f"{TITLE}: classes names {next(name for name in wanted if wanted.count(name) > 1)} twice")
    names = wanted if spec.labels == "renumbered" else present
    if len(names) != spec.width:
        raise KdbenchError(
            f"{TITLE}: {train} holds {counted(len(names), 'folder')}, but the suite says num_classes: {spec.width}; "
            f"first {names[0]}, last {names[-1]}"
        )
    return {name: names.index(name) for name in wanted}, tuple(names)
