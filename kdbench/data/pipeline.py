"""Training batches made on the device: the whole data set lies there, and a whole batch is augmented at once.

A batch is a pure function of (seed, epoch, step): it can be made again, and training can go on from any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.images import Images, ImageSet
from kdbench.data.spec import DatasetSpec
from kdbench.errors import KdbenchError
from kdbench.method import Batch
from kdbench.recipe import Augment, Recipe
from kdbench.seeding import seed_for


@dataclass
class TrainingBatch:
    """Raw images (B, 3, H, W) in [0, 1] with what methods see; ``strong`` is the second view, where one was asked for."""

    images: Tensor
    batch: Batch
    strong: Tensor | None = None


class Pipeline(Protocol):
    """Training batches of one run, as the engine sees them."""

    #: The epoch that iteration gives, from 0.
    epoch: int
    dataset: Any

    def __len__(self) -> int:
        """Steps of an epoch."""

    def __iter__(self) -> Iterator[TrainingBatch]:
        """The batches of ``epoch``."""

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0); the same whenever it is made."""


def make_pipeline(
    data: Images,
    spec: DatasetSpec,
    recipe: Recipe,
    num_classes: int,
    seed: int,
    device: torch.device | str,
    strong_view: bool = False,
    rows: Tensor | None = None,
) -> Pipeline:
    """The pipeline that a recipe names: on the device, or exact. ``rows`` of each batch are made, all by default."""
    if rows is not None:
        raise KdbenchError("parts of a batch are not there yet")
    if recipe.pipeline == "exact" or not isinstance(data, ImageSet):
        raise KdbenchError("the exact pipeline is not there yet")
    return DevicePipeline(data, recipe, num_classes, seed, device, strong_view)


class DevicePipeline:
    """An iterable over the training batches of one epoch.

    The last, incomplete batch of an epoch is dropped, so that every step has the recipe's batch size.

    Args:
        data: the training images; moved to ``device`` once.
        recipe: batch size, augmentation, label smoothing and number of epochs.
        num_classes: number of classes.
        seed: everything that order and augmentation depend on (see ``seed_for``).
        device: where batches are made.
        strong_view: also make the second, strongly augmented view.

    Raises:
        KdbenchError: if the batch is larger than the data set.
    """

    def __init__(
        self,
        data: ImageSet,
        recipe: Recipe,
        num_classes: int,
        seed: int,
        device: torch.device | str,
        strong_view: bool = False,
    ) -> None:
        if recipe.batch_size > len(data):
            raise KdbenchError(f"batch_size = {recipe.batch_size}, but there are only {len(data)} training images")
        self.dataset = data.to(device)
        self.recipe = recipe
        self.num_classes = num_classes
        self.seed = seed
        self.device = torch.device(device)
        self.strong_view = strong_view
        self.epoch = 0
        #: The step at which the next iteration begins: an epoch that was interrupted goes on in its middle.
        self.first_step = 0
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.dataset) // self.recipe.batch_size

    def __iter__(self) -> Iterator[TrainingBatch]:
        first, self.first_step = self.first_step, 0
        for step in range(first, len(self)):
            yield self.make(self.epoch, step)

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0)."""
        size = self.recipe.batch_size
        index = self._permutation(epoch)[step * size : (step + 1) * size]
        pixels, labels = self.dataset.images[index], self.dataset.labels[index]
        images = self._augment(pixels, self._generator("view", epoch, step), self.recipe.augment)
        targets = None
        if self.recipe.augment.mixup:
            images, targets = self._mixup(images, labels, self._generator("mixup", epoch, step))
        strong = None
        if self.strong_view:  # of the mixed images, so that the soft labels are those of both views
            strong = strong_augment(images, self._generator("strong", epoch, step))
        batch = Batch(
            labels=labels,
            index=index,
            targets=targets,
            progress=(epoch * len(self) + step) / max(1, self.recipe.epochs * len(self)),
            epoch=epoch,
            label_smoothing=self.recipe.label_smoothing,
        )
        return TrainingBatch(images, batch, strong)

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_for(self.seed, *parts))

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.dataset), generator=self._generator("order", epoch), device=self.device)
            self._order = (epoch, order)
        return self._order[1]

    def _augment(self, pixels: Tensor, generator: torch.Generator, augment: Augment) -> Tensor:
        if augment.crop_padding:
            pixels = random_shift(pixels, augment.crop_padding, generator)
        if augment.flip:
            flipped = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        return pixels.float().div_(255)

    def _mixup(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix every image with that of the reversed batch by its own ratio ~ Beta(a, a) (Zhang et al., arXiv:1710.09412)."""
        alpha = self.recipe.augment.mixup
        # Beta(a, a) from two Gamma draws; torch's Beta distribution takes no generator.
        concentration = torch.full((2, len(images)), alpha, device=images.device)
        gamma = torch._standard_gamma(concentration, generator=generator)
        ratio = gamma[0] / gamma.sum(0)
        mixed = images * ratio[:, None, None, None] + images.flip(0) * (1 - ratio)[:, None, None, None]
        smoothing = self.recipe.label_smoothing
        soft = F.one_hot(labels, self.num_classes).float() * (1 - smoothing) + smoothing / self.num_classes
        return mixed, soft * ratio[:, None] + soft.flip(0) * (1 - ratio)[:, None]


def random_shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros on all sides and crop back to the old size at an offset drawn for each image. (B, 3, H, W) uint8."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    sample = torch.arange(count, device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def strong_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A strong view on the device: random affine map, contrast, brightness and one erased square per image, all drawn per image.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: on the images' device.
    """
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator, device=images.device) * (high - low) + low

    angle = uniform(-0.35, 0.35)
    scale = uniform(0.8, 1.2)
    shear = uniform(-0.3, 0.3)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cos, -sin + shear, uniform(-0.2, 0.2)], 1), torch.stack([sin, cos, uniform(-0.2, 0.2)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    images = images * uniform(0.6, 1.4)[:, None, None, None] + uniform(-0.2, 0.2)[:, None, None, None]
    side = height // 4
    top = (uniform(0, 1) * (height - side)).long()[:, None]
    left = (uniform(0, 1) * (width - side)).long()[:, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    erased = ((y >= top) & (y < top + side))[:, :, None] & ((x >= left) & (x < left + side))[:, None, :]
    return images.clamp(0, 1).masked_fill(erased[:, None], 0.5)
