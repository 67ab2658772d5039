"""Training batches made on the device: the whole data set lies there, and a whole batch is augmented at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdbench.data.augment import augment, random_erasing, strong_augment
from kdbench.data.batches import Frame, TrainingBatch, check_batches, check_rows, make_batch
from kdbench.data.images import ImageSet
from kdbench.data.mixing import Mixer
from kdbench.data.order import epoch_order
from kdbench.seeding import seed_for
from kdbench.suite.recipe import Recipe


class DevicePipeline:
    """Training batches, made on the device. See ``Pipeline``.

    The last, incomplete batch of an epoch is dropped, so that every step has the recipe's batch size. A step neither waits for
    the device nor copies anything to it.

    Args:
        data: the training images; moved to ``device`` once.
        recipe: batch size, augmentation, label smoothing and number of epochs.
        num_classes: number of classes.
        seed: everything that order and augmentation depend on (see ``seed_for``).
        device: where batches are made.
        strong_view: also make the second, strongly augmented view.
        frame: size of the images, and what erasing draws its noise from.
        rows: positions in the global batch that this process gets (see ``check_rows``); the whole batch is made, and they
            are taken from it.

    Raises:
        KdbenchError: if the batch is larger than the data set, or cannot be mixed or shared out.
    """

    def __init__(
        self,
        data: ImageSet,
        recipe: Recipe,
        num_classes: int,
        seed: int,
        device: torch.device | str,
        strong_view: bool = False,
        frame: Frame | None = None,
        rows: Tensor | None = None,
    ) -> None:
        check_batches(len(data), recipe)
        frame = frame or Frame()
        self.dataset = data.to(device)
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.strong_view = strong_view
        self._size = frame.size
        self._mean, self._std = torch.tensor(frame.mean, device=device), torch.tensor(frame.std, device=device)
        self._rows = None if rows is None else check_rows(rows, recipe).to(device)
        self._mixer = Mixer(recipe, num_classes, seed, self.device)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.dataset) // self.recipe.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """The batches of ``epoch`` (from 0), from ``first_step`` on."""
        for step in range(first_step, len(self)):
            yield self.make(epoch, step)

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0)."""
        size = self.recipe.batch_size
        index = self._positions(epoch)[step * size : (step + 1) * size]
        pixels, labels = self.dataset.images[index], self.dataset.labels[index]
        images = augment(pixels, self.recipe.augment, self._size, self._generator("view", epoch, step))
        if self.recipe.augment.erasing:
            generator = self._generator("erasing", epoch, step)
            images = random_erasing(images, self.recipe.augment.erasing, self._mean, self._std, generator)
        images, targets = self._mixer(images, labels, epoch, step)
        strong = None
        if self.strong_view:  # of the mixed images, so that the soft labels are those of both views
            strong = strong_augment(images, self._generator("strong", epoch, step))
        if self._rows is not None:
            images, labels, index = images[self._rows], labels[self._rows], index[self._rows]
            targets = None if targets is None else targets[self._rows]
            strong = None if strong is None else strong[self._rows]
        return TrainingBatch(images, make_batch(self.recipe, len(self), epoch, step, labels, index, targets), strong)

    def close(self) -> None:
        """Nothing works in the background."""

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_for(self.seed, *parts))

    def _positions(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(len(self.dataset), self.seed, epoch, self.recipe.augment.repeats, self.device)
            self._order = (epoch, order)
        return self._order[1]
