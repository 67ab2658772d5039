"""What a loaded data set is: labelled images in memory, in three splits that never overlap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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
                    f"images_per_class = {count}, but class {int(label)} has only {len(positions)} training images"
                )
            chosen.append(positions[:count])
        index = torch.cat(chosen).sort().values
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A data set. ``validation`` is held out from training; ``test`` is for the reported figures."""

    name: str
    num_classes: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def split(self, name: str) -> ImageSet:
        """The split called ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def checksum(self) -> str:
        """SHA-256 over pixels and labels of all splits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(part.images.numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
        return digest.hexdigest()
