"""The data sets by name; ``datasets/load`` imports a data set's module when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.errors import UnknownNameError


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: ``loader`` is the module whose ``load(folder)`` returns a ``Dataset``.

    ``num_classes`` is None where the suite says it. ``streams`` tells that images are files, decoded when they are needed.
    ``version`` is raised when splits or pixels change; it is part of every result's identity. ``train_images`` and
    ``train_per_class`` (of the smallest class) of the whole data set let a plan refuse what its training split cannot give;
    None where it is not known. ``held_out_per_class`` of them are validation images, in training unless these are measured.
    ``image_size`` (px) is that of all images, where they have one.
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
    image_size: int | None = None
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
        loader="kdbench.datasets.digits",
        train_images=997,
        image_size=32,
        train_per_class=94,
    ),
    "cifar100": DatasetEntry(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        images="60,000 images of 32 x 32 px: 50,000 train, 10,000 test; 5,000 of train are held out for validation if asked for",
        source="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz (Krizhevsky 2009), below --data; --download fetches it",
        loader="kdbench.datasets.cifar100",
        train_images=50_000,
        image_size=32,
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
        loader="kdbench.datasets.imagenet.imagenet",
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
        loader="kdbench.datasets.imagefolder",
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
