"""The data sets by name. Works without torch; a data set's module is imported when it is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UnknownNameError

if TYPE_CHECKING:
    from kdbench.data.images import Dataset


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: ``loader`` is the module whose ``load(folder)`` returns a ``Dataset``.

    ``version`` is raised when splits or pixels change; it is part of every result's identity. ``train_images`` and
    ``train_per_class`` (of the smallest class) let a plan refuse what the training split cannot give, before it is loaded;
    None where it is not known.
    """

    name: str
    title: str
    num_classes: int
    images: str
    source: str
    loader: str
    version: int = 1
    train_images: int | None = None
    train_per_class: int | None = None


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
}


def find_dataset(name: str) -> DatasetEntry:
    """Return the entry of a data set.

    Raises:
        UnknownNameError: with the nearest valid name.
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    return DATASETS[name]


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Load a data set; ``folder`` says where data sets lie on this machine (``digits`` needs none)."""
    return importlib.import_module(find_dataset(name).loader).load(folder)
