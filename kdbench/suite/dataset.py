"""The data of a suite."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kdbench.errors import KdbenchError
from kdbench.suite.datasets import find_dataset
from kdbench.suite.problems import Contradiction, at
from kdbench.suite.types import Colours, Count, Name, Probability, Strict

#: timm's and torchvision's usual normalisation (ImageNet-1K).
IMAGENET_MEAN: Colours = (0.485, 0.456, 0.406)
IMAGENET_STD: Colours = (0.229, 0.224, 0.225)


class DatasetSpec(Strict):
    """The data of a suite.

    Attributes:
        name: name of the data set (``kdbench list datasets``).
        images_per_class: training images of each class for students; teachers train on the whole training split.
        presets: where methods' presets are looked up first, before the data set's own name (CIFAR-100 is published at 224 px
            and at 32 px, with other hyper-parameters).
        image_size: side (px) of the images in a batch; by default the data set's own. Nets with another input size
            resize them.
        mean, std: mean and standard deviation of the data, for the noise of random erasing.
        classes: the classes that are used (WNIDs, folders), or the name of a known list (``imagenette``); all by default.
        labels: whether the chosen classes are renumbered 0, 1, 2 ..., or keep their numbers among all classes.
        folder: folder of the data set below ``--data``, if not the usual one; required by ``imagefolder``.
        num_classes: number of classes; required by ``imagefolder``, whose folders are not read before a run.
        undecodable: share of a split's images that may fail to decode before a run stops.
    """

    name: str
    images_per_class: Count | None = None
    presets: Name | None = None
    image_size: Count | None = None
    mean: Colours = IMAGENET_MEAN
    std: Colours = IMAGENET_STD
    classes: tuple[str, ...] | str | None = None
    labels: Literal["renumbered", "kept"] = "renumbered"
    folder: str | None = None
    num_classes: Count | None = None
    undecodable: Probability = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        with at("name"):
            entry = find_dataset(self.name)
        if entry.streams and self.image_size is None:
            raise Contradiction(f"{self.name} has images of many sizes: say the side of a batch's images", "image_size")
        if self.classes is not None and not entry.streams:
            raise Contradiction(f"{self.name} has no choice of classes", "classes")
        if entry.num_classes is None and self.num_classes is None:
            raise Contradiction(f"{self.name} needs the number of its classes", "num_classes")
        if entry.num_classes is None and self.folder is None:
            raise Contradiction(f"{self.name} needs the folder of the data set, below --data", "folder")
        return self

    @property
    def class_list(self) -> tuple[str, ...] | None:
        """The chosen classes, of a named list its members.

        Raises:
            KdbenchError: for a list that is not known.
        """
        if isinstance(self.classes, str):
            from kdbench.suite.classlists import named_class_list

            return named_class_list(self.classes)
        return self.classes

    @property
    def width(self) -> int:
        """Number of logits of every net of the suite."""
        chosen = self.class_list
        if chosen is not None and self.labels == "renumbered":
            return len(chosen)
        count = find_dataset(self.name).num_classes or self.num_classes
        if count is None:
            raise KdbenchError(f"the number of classes of {self.name} is not known")
        return count

    def training_images(self, split: str, per_class: int | None = None, limit: int | None = None) -> int | None:
        """Number of images to train on when ``split`` is measured, at most ``per_class`` of a class; None if not known."""
        entry = find_dataset(self.name)
        if per_class is not None:
            chosen = self.class_list
            return per_class * (len(chosen) if chosen is not None else self.width)
        if entry.train_images is None or limit is not None or self.classes is not None:
            return None
        return entry.train_images - (entry.held_out_per_class * self.width if split == "validation" else 0)

    def identity(self) -> dict[str, object]:
        """What a result depends on, beside the name of the data set and the limits on its images."""
        content = self.model_dump(mode="json", exclude={"name", "images_per_class", "presets", "undecodable"})
        chosen = self.class_list
        return {**content, "classes": None if chosen is None else sorted(chosen)}
