"""Training batches made on the device: it holds the whole data set, and a whole batch is augmented at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kdbench.data.augment import augment, random_erasing, strong_augment
from kdbench.data.batches import Pipeline, TrainingBatch
from kdbench.data.images import ImageSet
from kdbench.data.mixing import Mixer


class DevicePipeline(Pipeline):
    """See ``Pipeline``. A step neither waits for the device nor copies anything to it; ``rows`` are taken from a whole batch."""

    dataset: ImageSet

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dataset = self.dataset.to(self.device)
        self._mean, self._std = (torch.tensor(each, device=self.device) for each in (self.frame.mean, self.frame.std))
        self.rows = None if self.rows is None else self.rows.to(self.device)
        self._mixer = Mixer(self.recipe, self.num_classes, self.seed, self.device)

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
        if self.rows is not None:
            images, labels, index = images[self.rows], labels[self.rows], index[self.rows]
            targets = None if targets is None else targets[self.rows]
            strong = None if strong is None else strong[self.rows]
        return TrainingBatch(images, self._batch(epoch, step, labels, index, targets), strong)
