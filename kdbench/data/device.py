"""Training batches made on the device: it holds the whole data set, and a whole batch is augmented at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdbench.data.augment import augment, random_erasing, strong_augment
from kdbench.data.batches import Frame, Pipeline, TrainingBatch, check_rows
from kdbench.data.images import ImageSet
from kdbench.data.mixing import Mixer
from kdbench.suite.recipe import Recipe


class DevicePipeline(Pipeline):
    """See ``Pipeline``. A step neither waits for the device nor copies anything to it.

    Args:
        num_classes: number of classes.
        rows: positions in the global batch that this process gets (see ``check_rows``); the whole batch is made, and they
            are taken from it.
    """

    dataset: ImageSet

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
        super().__init__(data, recipe, seed, device, strong_view, frame)
        self.dataset = data.to(device)
        self._mean, self._std = (torch.tensor(values, device=device) for values in (self.frame.mean, self.frame.std))
        self._rows = None if rows is None else check_rows(rows, recipe).to(device)
        self._mixer = Mixer(recipe, num_classes, seed, self.device)

    def steps(self, epoch: int, steps: range) -> Iterator[TrainingBatch]:
        return (self._made(epoch, step) for step in steps)

    def _made(self, epoch: int, step: int) -> TrainingBatch:
        size = self.recipe.batch_size
        index = self._positions(epoch, self.device)[step * size : (step + 1) * size]
        pixels, labels = self.dataset.images[index], self.dataset.labels[index]
        images = augment(pixels, self.recipe.augment, self.frame.size, self._generator("view", epoch, step))
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
        return TrainingBatch(images, self._batch(epoch, step, labels, index, targets), strong)
