"""Training batches as timm makes them: its own transforms on Pillow images, in loader processes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdbench.data.augment import strong_augment
from kdbench.data.batches import Frame, TrainingBatch, check_batches, check_rows, make_batch
from kdbench.data.images import Images
from kdbench.data.loader import TIMEOUT, Loader, Ticket
from kdbench.data.mixing import Mixer
from kdbench.data.order import epoch_order
from kdbench.data.transforms import FailureCount, Part, Say, TrainingJob, TrainingWork
from kdbench.seeding import seed_for
from kdbench.suite.recipe import Recipe

#: Images that a loader process works on at a time.
PART_SIZE = 32


class ExactPipeline:
    """Training batches, exactly as timm makes them. See ``Pipeline``.

    The tensors are timm's own, for the same random state: crop, flip, RandAugment and colour jitter on Pillow images, then
    random erasing, image by image; then timm's Mixup on the batch. Each image has a random stream of its own, from the seed,
    the epoch and its place in the epoch's order, so that a batch does not depend on the number of processes. The last,
    incomplete batch of an epoch is dropped.

    Args:
        data: the training images.
        recipe: batch size, augmentation, label smoothing and number of epochs.
        num_classes: number of classes.
        seed: everything that order and augmentation depend on (see ``seed_for``).
        device: where batches go.
        strong_view: also make the second, strongly augmented view, on the device.
        frame: size of the images, and what erasing draws its noise from.
        rows: positions in the global batch that this process gets (see ``check_rows``); no others are decoded.
        workers: number of loader processes; 0 works in this one, None chooses by the number of cores.
        timeout: seconds after which a loader process that does not answer counts as hung.
        say: is told of images that do not decode; they go to the log otherwise.

    Raises:
        KdbenchError: if the batch is larger than the data set, or cannot be mixed or shared out. While batches are made: if
            a loader process dies or hangs, or more images do not decode than the data set admits.
    """

    def __init__(
        self,
        data: Images,
        recipe: Recipe,
        num_classes: int,
        seed: int,
        device: torch.device | str,
        strong_view: bool = False,
        frame: Frame | None = None,
        rows: Tensor | None = None,
        *,
        workers: int | None = None,
        timeout: float = TIMEOUT,
        say: Say | None = None,
    ) -> None:
        check_batches(len(data), recipe)
        self.dataset = data
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.strong_view = strong_view
        self._rows = torch.arange(recipe.batch_size) if rows is None else check_rows(rows, recipe)
        device_rows = None if rows is None else self._rows.to(device)
        self._device_rows = device_rows
        self._labels = data.labels.to(device)
        self._mixer = Mixer(recipe, num_classes, seed, self.device, device_rows)
        work = TrainingWork(data, recipe.augment, frame or Frame(), seed)
        self._loader: Loader[TrainingJob, Part] = Loader(work, workers, timeout)
        self._failures = FailureCount(data, say or logging.getLogger(__name__).warning)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.dataset) // self.recipe.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """The batches of ``epoch`` (from 0), from ``first_step`` on."""
        ahead = self._batches_ahead()
        asked: deque[tuple[int, list[Ticket[TrainingJob]]]] = deque()
        for step in range(first_step, len(self) + ahead):
            if step < len(self):
                asked.append((step, self._ask(epoch, step)))
            if step >= first_step + ahead and asked:
                yield self._finish(epoch, *asked.popleft())

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0)."""
        return self._finish(epoch, step, self._ask(epoch, step))

    def close(self) -> None:
        """End the loader processes; making a batch starts others."""
        self._loader.close()

    def _batches_ahead(self) -> int:
        """So many that each process has two parts to do, and one batch at least."""
        if not self._loader.workers:
            return 0
        parts = -(-len(self._rows) // PART_SIZE)
        return max(1, -(-2 * self._loader.workers // parts))

    def _ask(self, epoch: int, step: int) -> list[Ticket[TrainingJob]]:
        places = step * self.recipe.batch_size + self._rows
        wanted = list(zip(places.tolist(), self._positions(epoch)[places].tolist(), strict=True))
        return [
            self._loader.submit(TrainingJob(epoch, wanted[start : start + PART_SIZE]))
            for start in range(0, len(wanted), PART_SIZE)
        ]

    def _finish(self, epoch: int, step: int, tickets: Sequence[Ticket[TrainingJob]]) -> TrainingBatch:
        parts = [self._loader.result(ticket) for ticket in tickets]
        for part in parts:
            self._failures.take(part.failures)
        index = self._moved([torch.tensor([position for part in parts for position in part.positions])])
        images = self._moved([part.images for part in parts]).float().div_(255)
        self._erase(images, parts)
        labels = self._labels[index]
        images, targets = self._mixer(images, labels, epoch, step)
        strong = None
        if self.strong_view:  # of the mixed images, so that the soft labels are those of both views
            generator = torch.Generator(self.device).manual_seed(seed_for(self.seed, "strong", epoch, step))
            strong = strong_augment(images, generator, self._device_rows, self.recipe.batch_size)
        return TrainingBatch(images, make_batch(self.recipe, len(self), epoch, step, labels, index, targets), strong)

    def _moved(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts as one tensor on the device, by way of pinned memory so that the copy does not hold up this process."""
        if self.device.type != "cuda":
            return torch.cat(list(parts)).to(self.device)
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
        return torch.cat(list(parts), out=pinned).to(self.device, non_blocking=True)

    def _erase(self, images: Tensor, parts: Sequence[Part]) -> None:
        noise = [part.noise for part in parts if part.noise is not None]
        if not noise:
            return
        pixels, used, first = self._moved(noise), 0, 0
        for part in parts:
            for image, top, left, height, width in part.boxes:
                end = used + 3 * height * width
                box = pixels[used:end].view(3, height, width)
                images[first + image, :, top : top + height, left : left + width] = box
                used = end
            first += len(part.positions)

    def _positions(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.dataset), self.seed, epoch, self.recipe.augment.repeats))
        return self._order[1]
