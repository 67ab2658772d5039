"""The data sets by name. Works without torch; a data set's module is imported when it is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UnknownNameError

if TYPE_CHECKING:
    from kdbench.data.images import Dataset
    from kdbench.data.spec import DatasetSpec


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: ``loader`` is the module whose ``load(folder)`` returns a ``Dataset``.

    ``num_classes`` is None where the suite says it. ``streams`` tells that images are files, decoded when they are needed.
    ``version`` is raised when splits or pixels change; it is part of every result's identity. ``train_images`` and
    ``train_per_class`` (of the smallest class) of the whole data set let a plan refuse what its training split cannot give;
    None where it is not known. ``held_out_per_class`` of them are validation images, in training unless these are measured.
    """

    name: str
    title: str
    num_classes: int | None
    images: str
    source: str
    loader: str
    version: int = 1
    train_images: int | None = None
    train_per_class: int | None = None
    held_out_per_class: int = 0
    streams: bool = False

    @property
    def holds_out(self) -> bool:
        """Whether validation images are taken out of the training split."""
        return self.held_out_per_class > 0 or self.streams


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        name="digits",
        title="Handwritten digits",
        num_classes=10,
        images="1,797 images of 8 x 8 px, scaled to 32 x 32: 997 train, 300 validation, 500 test",
        source="comes inside scikit-learn (load_digits; UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998)",
        loader="kdbench.data.digits",
        train_images=997,
        train_per_class=94,
    ),
    "cifar100": DatasetEntry(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        images="60,000 images of 32 x 32 px: 50,000 train, 10,000 test; 5,000 of train are held out for validation if asked for",
        source="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz (Krizhevsky 2009), below --data; --download fetches it",
        loader="kdbench.data.cifar100",
        train_images=50_000,
        train_per_class=500,
        held_out_per_class=50,
    ),
    "imagenet1k": DatasetEntry(
        name="imagenet1k",
        title="ImageNet-1K",
        num_classes=1000,
        images="1,281,167 train, 50,000 test (the official validation images), of many sizes; or any choice of its classes; 20 "
        "images of each class of train are held out for validation if asked for",
        source="https://www.image-net.org (ILSVRC 2012), below --data: folders of JPEG files, tar shards, or a Hugging Face copy "
        "(docs/data.md)",
        loader="kdbench.data.imagenet",
        train_images=1_281_167,
        train_per_class=732,
        streams=True,
    ),
    "imagefolder": DatasetEntry(
        name="imagefolder",
        title="Image folders",
        num_classes=None,
        images="train/CLASS/FILE with val/ or test/ or both, any classes; without both, a tenth of train is held out for validation",
        source="your own, below --data; the suite names the folder and the number of classes (docs/data.md)",
        loader="kdbench.data.imagefolder",
        streams=True,
    ),
}


def find_dataset(name: str) -> DatasetEntry:
    """Return the entry of a data set.

    Raises:
        UnknownNameError: with the nearest valid name.
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    return DATASETS[name]


def load_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        wanted: what a suite says about it, or only its name.
        folder: where data sets lie on this machine (``digits`` needs none).

    Raises:
        KdbenchError: if it is not there, or not whole.
    """
    spec = _spec(wanted)
    loaded: Dataset = importlib.import_module(find_dataset(spec.name).loader).load(folder, spec)
    return loaded


def check_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> tuple[str, ...]:
    """See that a data set can be loaded, at a glance: its loader's ``check(folder, spec)``, where it has one.

    Returns:
        What is worth knowing of its files though it can be loaded, a line each.

    Raises:
        KdbenchError: if files of it are missing.
    """
    spec = _spec(wanted)
    check = getattr(importlib.import_module(find_dataset(spec.name).loader), "check", None)
    return tuple((check(folder, spec) if check is not None else None) or ())


def download_dataset(
    wanted: DatasetSpec | str, folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fetch a data set that is not in ``folder`` yet: its loader's ``download(folder, progress)``, where it has one.

    Raises:
        KdbenchError: if it cannot be had.
    """
    download = getattr(importlib.import_module(find_dataset(_spec(wanted).name).loader), "download", None)
    if download is not None:
        download(folder, progress)


def _spec(wanted: DatasetSpec | str) -> DatasetSpec:
    if not isinstance(wanted, str):
        return wanted
    from kdbench.data.spec import DatasetSpec

    find_dataset(wanted)
    return DatasetSpec(name=wanted)
