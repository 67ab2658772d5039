"""Tiny-ImageNet (Le and Yang 2015): 200 classes of ImageNet at 64 x 64 px, read as its archive is unpacked.

Its 10,000 validation images, 50 of each class, are the test images here, as in the literature: its own test images have no
classes. For ``--split validation`` 50 of the 500 images of each class are held out from training. Labels number the sorted WNIDs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.data.images import Dataset
from kdbench.datasets import imagefolder
from kdbench.errors import KdbenchError
from kdbench.opening import followed, read_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdbench.suite.dataset import DatasetSpec

#: The folder in the archive, searched below the data folder where the suite names none.
FOLDER = "tiny-imagenet-200"
SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load(folder: Path | None, spec: DatasetSpec) -> Dataset:
    """List Tiny-ImageNet, or the classes of it that the suite chose.

    Raises:
        KdbenchError: if it is not there or not whole.
    """
    spec = _placed(spec)
    dataset = imagefolder.load(folder, spec)
    assert dataset.class_names is not None
    assert folder is not None
    words = _words(imagefolder.root_of(folder, spec) / "words.txt", folder)
    return replace(dataset, class_names=tuple(words.get(wnid, wnid) for wnid in dataset.class_names))


def check(folder: Path | None, spec: DatasetSpec) -> tuple[str, ...]:
    """List the images without keeping them; notes on the files, a line each. Raises as ``load``."""
    return imagefolder.check(folder, _placed(spec))


def download(folder: Path | None, progress: Callable[[int, int], None] | None = None) -> None:
    """Raise ``KdbenchError``, unless the data set is there: its archive is unpacked by hand."""
    if folder is None or not (folder / FOLDER).is_dir():
        raise KdbenchError(f"Tiny-ImageNet is not downloaded here: unpack {SOURCE} as DATA/{FOLDER}")


def _placed(spec: DatasetSpec) -> DatasetSpec:
    return spec if spec.folder else spec.model_copy(update={"folder": FOLDER})


def _words(path: Path, data: Path) -> dict[str, str]:
    """The first name of each WNID in ``words.txt`` (WNID, a tab, names with commas); none without the file."""
    if not path.is_file():
        return {}
    lines = (line.partition("\t") for line in read_file(followed(data, path)).decode("utf-8", "replace").splitlines())
    return {wnid: names.split(",")[0].strip() for wnid, _, names in lines if names.strip()}
