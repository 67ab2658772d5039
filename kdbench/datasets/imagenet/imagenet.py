"""ImageNet-1K (ILSVRC 2012), or any choice of its classes.

Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, arXiv:1409.0575: 1,281,167 training images of 1,000
classes, and 50,000 validation images, which are the test images here, as in the literature. For ``--split validation`` 20
images of every class are held out from training (``Dataset.for_split``).

Nothing is decoded when it is loaded; images stay encoded on disk until a batch needs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdbench.data.images import Dataset
from kdbench.datasets.imagenet.groundtruth import refuse_other_order
from kdbench.datasets.imagenet.layouts import EXPECTED, SOURCE, Wanted, find_root, read_split
from kdbench.datasets.imagenet.wnids import TITLE, class_names, numbers, wnid_to_index
from kdbench.datasets.parts import Part, file_set, held_out_positions
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdbench.suite.dataset import DatasetSpec

#: Images of the official splits.
OFFICIAL = {"train": 1_281_167, "val": 50_000}
#: Images of each class that are held out for validation; half of a class that has fewer than twice as many.
VALIDATION_PER_CLASS = 20


def load(folder: Path | None, spec: DatasetSpec) -> Dataset:
    """List ImageNet-1K, or the classes of it that the suite chose.

    Args:
        folder: the data folder; the data set is one of ``layouts.FOLDERS`` in it, the folder itself, or ``spec.folder``.

    Raises:
        KdbenchError: if it is not there or not whole.
    """
    labels, names = choose(spec)
    train, test = _read(folder, spec, labels)
    held_out = torch.from_numpy(
        held_out_positions(train, "kdbench imagenet1k", lambda count: min(VALIDATION_PER_CLASS, count // 2))
    )
    images = file_set(train, spec.undecodable)
    validation, test_images = images.take(held_out), file_set(test, spec.undecodable)
    return Dataset("imagenet1k", len(names), images, validation, test_images, held_out, names)


def check(folder: Path | None, spec: DatasetSpec) -> tuple[str, ...]:
    """List the images without keeping them; notes on the files, a line each. Raises as ``load``."""
    train, test = _read(folder, spec, choose(spec)[0])
    notes = [*train.notes, *test.notes]
    if spec.classes is None:
        for name, part in (("train", train), ("val", test)):
            if len(part) != OFFICIAL[name]:
                notes.append(f"{name} holds {len(part):,} images; the official split has {OFFICIAL[name]:,}")
    return tuple(f"{TITLE}: {note}" for note in notes)


def download(folder: Path | None, progress: Callable[[int, int], None] | None = None) -> None:
    """Raise ``KdbenchError``, unless the data set is there: it needs an account."""
    if folder is not None:
        with contextlib.suppress(KdbenchError):
            find_root(Path(folder), None)
            return
    raise KdbenchError(
        f"{TITLE} cannot be downloaded without an account: register at {SOURCE}, and lay it out as DATA/imagenet/ with {EXPECTED}"
    )


def choose(spec: DatasetSpec) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """The classes that a suite asks for: the label of each WNID, and the class name of each label.

    Renumbered labels follow the sorted WNIDs, whatever the order of the suite's list.

    Raises:
        KdbenchError: for a class that is none of ImageNet-1K, or is named twice.
    """
    names = class_names()
    listed = spec.class_list
    if listed is None:
        return numbers(), tuple(names.values())
    for wnid in listed:
        wnid_to_index(wnid)
    if len(set(listed)) < len(listed) or not listed:
        twice = next((wnid for wnid in listed if listed.count(wnid) > 1), None)
        raise KdbenchError(f"{TITLE}: classes {f'names {twice} twice' if twice else 'is an empty list'}")
    if spec.labels == "kept":
        return {wnid: wnid_to_index(wnid) for wnid in sorted(listed)}, tuple(names.values())
    chosen = sorted(listed)
    return {wnid: label for label, wnid in enumerate(chosen)}, tuple(names[wnid] for wnid in chosen)


def _read(folder: Path | None, spec: DatasetSpec, labels: Mapping[str, int]) -> tuple[Part, Part]:
    if folder is None:
        raise KdbenchError(
            f"{TITLE} lies in files: --data DIR or $KDBENCH_DATA (not set) names the folder that holds imagenet/ with {EXPECTED}"
        )
    data = Path(folder)
    wanted = Wanted(labels, spec.classes is None, spec.undecodable)
    root = find_root(data, spec.folder)
    refuse_other_order(root, data)
    return read_split(root, "train", wanted, data), read_split(root, "val", wanted, data)
