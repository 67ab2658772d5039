"""What a loaded data set is: labelled images in memory, in three splits; nothing is measured on what was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdbench.errors import KdbenchError


@dataclass(frozen=True)
class ImageSet:
    """Images (N, 3, H, W) uint8 with labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    def take(self, positions: Tensor) -> ImageSet:
        """The images at ``positions``: whole numbers, or (N,) bool."""
        return ImageSet(self.images[positions], self.labels[positions])

    def first_per_class(self, count: int) -> ImageSet:
        """The first ``count`` images of every class, in their order.

        Raises:
            KdbenchError: if a class has fewer.
        """
        chosen = []
        for label in self.labels.unique():
            positions = (self.labels == label).nonzero().flatten()
            if len(positions) < count:
                raise KdbenchError(
                    f"images_per_class = {count}, but class {int(label)} has only {len(positions)} images"
                )
            chosen.append(positions[:count])
        return self.take(torch.cat(chosen).sort().values)


@dataclass(frozen=True)
class Dataset:
    """A data set. ``validation`` is held out from training; ``test`` is for the reported figures.

    Where a data set has no validation images of its own, ``held_out`` tells which positions of ``train`` they are, as long as
    they are still part of it; ``for_split`` takes them out.

    Attributes:
        class_names: of each class.
        coarse: the superclass of each class, and ``coarse_names`` theirs.
    """

    name: str
    num_classes: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    held_out: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    coarse: tuple[int, ...] | None = None
    coarse_names: tuple[str, ...] | None = None

    def for_split(self, name: str) -> Dataset:
        """The data set to train on when ``name`` is what is measured: nothing of that split is in its ``train``."""
        if name != "validation" or self.held_out is None:
            return self
        kept = torch.ones(len(self.train), dtype=torch.bool)
        kept[self.held_out] = False
        return replace(self, train=self.train.take(kept), held_out=None)

    def split(self, name: str) -> ImageSet:
        """The split called ``train``, ``validation`` or ``test``.

        Raises:
            KdbenchError: for validation images that are still in ``train``.
        """
        if name == "validation" and self.held_out is not None:
            raise KdbenchError(f"the validation images of {self.name} are still in its training split (see for_split)")
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def training(self, per_class: int | None = None) -> ImageSet:
        """The training images, or the first ``per_class`` of every class."""
        return self.train if per_class is None else self.train.first_per_class(per_class)

    def measured(self, name: str, per_class: int | None = None) -> ImageSet:
        """The images of a split, or the first ``per_class`` of every class, on which a net is measured."""
        split = self.split(name)
        return split if per_class is None else split.first_per_class(per_class)

    def checksum(self) -> str:
        """SHA-256 over pixels and labels of all splits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(part.images.contiguous().numpy().data)
            digest.update(part.labels.contiguous().numpy().data)
        return digest.hexdigest()
