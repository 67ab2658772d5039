"""A loaded data set: labelled images, in memory or in files, in three splits; no net is measured on its training images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSource(Protocol):
    """Encoded images, decoded one at a time when they are asked for. Pickled into loader processes, so it holds no open file."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> Image:
        """The image in RGB.

        Raises:
            OSError: if it cannot be read or does not decode.
        """

    def name(self, position: int) -> str:
        """Its file, for messages."""

    def fingerprint(self) -> str:
        """A checksum over the names of all images, and their sizes where a listing has them. Images are not read."""


@dataclass(frozen=True)
class FileSet:
    """Labelled images in files: ``positions`` (N,) int64 in ``source``, ``labels`` (N,) int64; ``undecodable`` is the share that
    may fail to decode."""

    source: ImageSource
    positions: Tensor
    labels: Tensor
    undecodable: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, position: int) -> Image:
        """One image in RGB; see ``ImageSource.read``."""
        return self.source.read(int(self.positions[position]))

    def name(self, position: int) -> str:
        return self.source.name(int(self.positions[position]))

    def take(self, positions: Tensor) -> FileSet:
        """The images at ``positions``: whole numbers, or (N,) bool."""
        return replace(self, positions=self.positions[positions], labels=self.labels[positions])

    def checksum_parts(self) -> Sequence[bytes]:
        return (self.source.fingerprint().encode(), self.positions.numpy().tobytes(), self.labels.numpy().tobytes())


@dataclass(frozen=True)
class ImageSet:
    """Images (N, 3, H, W) uint8 with labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def image(self, position: int) -> Image:
        """One image as Pillow has it."""
        from PIL import Image as pillow

        return pillow.fromarray(self.images[position].permute(1, 2, 0).cpu().numpy())

    def name(self, position: int) -> str:
        return f"image {position}"

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    def take(self, positions: Tensor) -> ImageSet:
        """The images at ``positions``: whole numbers, or (N,) bool."""
        return ImageSet(self.images[positions], self.labels[positions])

    def checksum_parts(self) -> Sequence[memoryview]:
        return (self.images.contiguous().numpy().data, self.labels.contiguous().numpy().data)


#: What a split is: in memory, or in files.
Images = ImageSet | FileSet


def first_of_every_class(labels: Tensor, count: int) -> Tensor:
    """Positions of the first ``count`` images of every class, in their order.

    Raises:
        KdbenchError: if a class has fewer.
    """
    chosen = []
    for label in labels.unique():
        positions = (labels == label).nonzero().flatten()
        if len(positions) < count:
            raise KdbenchError(f"images_per_class = {count}, but class {int(label)} has only {len(positions)} images")
        chosen.append(positions[:count])
    return torch.cat(chosen).sort().values


@dataclass(frozen=True)
class Dataset:
    """A data set; ``test`` is for the reported figures.

    Attributes:
        limit: most images of a split that are used, evenly spread over it.
        held_out: positions in ``train`` of the ``validation`` images, until ``for_split`` takes them out; None for a data set
            that has validation images of its own.
        coarse: the superclass of each class, and ``coarse_names`` theirs.
    """

    name: str
    num_classes: int
    train: Images
    validation: Images
    test: Images
    held_out: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    coarse: tuple[int, ...] | None = None
    coarse_names: tuple[str, ...] | None = None
    limit: int | None = None

    def for_split(self, name: str) -> Dataset:
        """The data set to train on when nets are measured on ``name``: no image of that split is in its ``train``."""
        if name != "validation" or self.held_out is None:
            return self
        kept = torch.ones(len(self.train), dtype=torch.bool)
        kept[self.held_out] = False
        return replace(self, train=self.train.take(kept), held_out=None)

    def split(self, name: str) -> Images:
        """The split called ``train``, ``validation`` or ``test``.

        Raises:
            KdbenchError: for validation images that are still in ``train``.
        """
        if name == "validation" and self.held_out is not None:
            raise KdbenchError(f"the validation images of {self.name} are still in its training split (see for_split)")
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def training(self, per_class: int | None = None) -> Images:
        """The training images, or the first ``per_class`` of every class, and of these as many as the limit allows."""
        return self._within(self.train, per_class)

    def measured(self, name: str, per_class: int | None = None) -> Images:
        """The images of a split on which a net is measured; see ``training``."""
        return self._within(self.split(name), per_class)

    def _within(self, images: Images, per_class: int | None) -> Images:
        if per_class is not None:
            images = images.take(first_of_every_class(images.labels, per_class))
        if self.limit is None or len(images) <= self.limit:
            return images
        return images.take(torch.arange(self.limit) * len(images) // self.limit)

    def checksum(self) -> str:
        """SHA-256 over pixels and labels of all splits; of files, see ``ImageSource.fingerprint``."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for piece in part.checksum_parts():
                digest.update(piece)
        return digest.hexdigest()
