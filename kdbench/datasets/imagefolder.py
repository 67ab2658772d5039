"""Any folder of classes: train/CLASS/FILE with val/CLASS/FILE, test/CLASS/FILE or both; or as Tiny-ImageNet is unpacked.

Classes are numbered in the plain sorted order of their names. Where both ``val`` and ``test`` exist, ``val`` is for validation;
else a tenth of each training class is held out for it, and the one that exists is the test split.

Tiny-ImageNet has train/CLASS/images/FILE, val/images/FILE with the classes in val/val_annotations.txt, and test/images/FILE
without classes, which is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdbench.data.images import Dataset
from kdbench.datasets.folders import (
    INNER,
    contents,
    entries,
    list_class_folders,
    list_flat_folder,
    refuse_missing,
    twin,
)
from kdbench.datasets.imagenet.layouts import below
from kdbench.datasets.parts import Part, file_set, held_out_positions
from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.opening import RefusedFileError, followed, read_file
from kdbench.suite.datasets import find_dataset

if TYPE_CHECKING:
    from kdbench.suite.dataset import DatasetSpec

#: Beside the folder ``images`` of a split without class folders: the name of an image and its class, separated by tabs.
ANNOTATIONS = "val_annotations.txt"
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
    parts, names, _ = _read(folder, spec)
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
    return Dataset(spec.name, len(names), train, validation, test, held_out, names)


def check(folder: Path | None, spec: DatasetSpec) -> tuple[str, ...]:
    """List the images without keeping them; notes on the files, a line each. Raises as ``load``."""
    parts, _, notes = _read(folder, spec)
    return tuple(
        f"{title_of(spec)}: {note}" for note in (*notes, *(note for part in parts.values() for note in part.notes))
    )


def title_of(spec: DatasetSpec) -> str:
    """The data set in messages."""
    return find_dataset(spec.name).title


def root_of(data: Path | None, spec: DatasetSpec) -> Path:
    """The folder of the data set.

    Raises:
        KdbenchError: if there is none.
    """
    title = title_of(spec)
    if data is None:
        raise KdbenchError(f"{title}: --data DIR or $KDBENCH_DATA (not set) names the folder that holds {spec.folder}/")
    root = below(Path(data), spec.folder or "", title)
    if not root.is_dir():
        raise KdbenchError(
            f"{title}: {root} {'is a file' if root.exists() else 'does not exist'}; expected a folder with {EXPECTED}"
        )
    return root


def _read(data: Path | None, spec: DatasetSpec) -> tuple[dict[str, Part], tuple[str, ...], list[str]]:
    """The parts by split, the class name of each label, and notes on splits that are left out."""
    root, title = root_of(data, spec), title_of(spec)
    assert data is not None
    there = entries(root, data, title)
    splits = {"train": "train", "test": "test", "val": "val" if "val" in there.folders else "validation"}
    found = {split: root / name for split, name in splits.items() if name in there.folders}
    if "train" not in found or len(found) < 2:
        raise KdbenchError(f"{title}: {root} {contents(there)}; expected {EXPECTED}")
    inside = {split: entries(path, data, title) for split, path in found.items()}
    labels, names = _labels(found["train"], inside["train"].folders, spec)
    flat = {split for split in inside if inside[split].folders == (INNER,) and INNER not in inside["train"].folders}
    unlabelled = {split for split in flat if ANNOTATIONS not in inside[split].others}
    if len(found) - len(unlabelled) < 2:
        raise KdbenchError(
            f"{title}: {found[min(unlabelled)] / INNER} holds images without classes; expected {EXPECTED}, or "
            f"{ANNOTATIONS} beside it"
        )
    notes = [f"{found[split]}: left out, its images have no classes" for split in sorted(unlabelled)]
    parts = {}
    for split, path in found.items():
        if split in unlabelled:
            continue
        classes = _annotated(path, data, title) if split in flat else []
        present = sorted(set(classes)) if split in flat else inside[split].folders
        if split != "train":
            refuse_missing(path, present, list(labels), title, " of train")
            if spec.classes is None:
                refuse_missing(found["train"], inside["train"].folders, present, title, f" of {path.name}")
        if split in flat:
            images = entries(path / INNER, data, title)
            parts[split] = list_flat_folder(
                path / INNER, data, images, [labels.get(name) for name in classes], title, spec.undecodable
            )
        else:
            parts[split] = list_class_folders(path, data, labels, title, spec.undecodable)
    return parts, names, notes


def _annotated(path: Path, data: Path, title: str) -> list[str]:
    """The class of each image in the folder ``images`` of a split, in the order of its names."""
    file = path / ANNOTATIONS
    classes: dict[str, str] = {}
    try:
        lines = read_file(followed(data, file)).decode("utf-8").splitlines()
    except RefusedFileError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise KdbenchError(f"{title}: {file} cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        wanted = rest.partition("\t")[0].strip()
        if not (name and wanted):
            raise KdbenchError(f"{title}: {file}, line {number}: found {line[:60]!r}; expected IMAGE, a tab, CLASS")
        if classes.setdefault(name, wanted) != wanted:
            raise KdbenchError(f"{title}: {file}, line {number}: {name} has two classes, {classes[name]} and {wanted}")
    images = entries(path / INNER, data, title).images
    lost = sorted(set(classes) - set(images))
    if lost:
        raise KdbenchError(f"{title}: {path / INNER} lacks {lost[0]}, which {file.name} names: was it copied whole?")
    unknown = next((name for name in images if name not in classes), None)
    if unknown:
        raise KdbenchError(f"{title}: {file} does not say the class of {unknown}")
    return [classes[name] for name in images]


def _labels(train: Path, present: tuple[str, ...], spec: DatasetSpec) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each chosen class, and the name of each label."""
    title = title_of(spec)
    if not present:
        raise KdbenchError(f"{title}: {train} holds no folders; expected {EXPECTED}")
    listed = spec.class_list
    wanted = present if listed is None else tuple(sorted(listed))
    for name in wanted:
        if name not in present:
            if near := twin(name, present):
                raise KdbenchError(f"{title}: {train} lacks {name}, which the suite chooses; {near}")
            raise UnknownNameError("class", name, present, str(train))
    if listed is not None and len(set(wanted)) < len(wanted):
        raise KdbenchError(f"{title}: classes names {next(name for name in wanted if wanted.count(name) > 1)} twice")
    names = wanted if spec.labels == "renumbered" else present
    if len(names) != spec.width:
        raise KdbenchError(
            f"{title}: {train} holds {counted(len(names), 'folder')}, but the suite says num_classes: {spec.width}; "
            f"first {names[0]}, last {names[-1]}"
        )
    return {name: names.index(name) for name in wanted}, tuple(names)
