"""Training batches as timm makes them: its own transforms on Pillow images, in loader processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from kdbench.data.augment import strong_augment
from kdbench.data.batches import Pipeline, TrainingBatch
from kdbench.data.loader import TIMEOUT, Loader
from kdbench.data.mixing import Mixer
from kdbench.data.transforms import FailureCount, Part, Say, TrainingJob, TrainingWork

#: Images that a loader process works on at a time.
PART_SIZE = 32


@dataclass(eq=False)
class ExactPipeline(Pipeline):
    """See ``Pipeline``. The tensors are timm's own, for the same random state.

    Crop, flip, RandAugment and colour jitter are timm's on Pillow images, then random erasing, image by image; then timm's
    Mixup on the batch. Each image has its own random stream, from the seed, the epoch and its place in the epoch's order, so
    that a batch does not depend on the number of processes. Only the images of ``rows`` are decoded.

    Args:
        workers: number of loader processes; 0 works in this one, None chooses by the number of cores.
        timeout: seconds after which a loader process that does not answer counts as hung.
        say: gets a sentence for each image that does not decode; None logs it.

    Raises:
        KdbenchError: as ``Pipeline``. While batches are made: if a loader process dies or hangs, or more images do not
            decode than the data set admits.
    """

    _: KW_ONLY
    workers: int | None = None
    timeout: float = TIMEOUT
    say: Say | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._places = torch.arange(self.recipe.batch_size) if self.rows is None else self.rows
        self.rows = None if self.rows is None else self.rows.to(self.device)
        self._labels = self.dataset.labels.to(self.device)
        self._mixer = Mixer(self.recipe, self.num_classes, self.seed, self.device, self.rows)
        work = TrainingWork(self.dataset, self.recipe.augment, self.frame, self.seed)
        self._loader: Loader[TrainingJob, Part] = Loader(work, self.workers, self.timeout)
        self._failures = FailureCount(self.dataset, self.say or logging.getLogger(__name__).warning)

    def steps(self, epoch: int, steps: range) -> Iterator[TrainingBatch]:
        parts = -(-len(self._places) // PART_SIZE)
        # Two parts for each process, and one batch at least.
        ahead = max(1, -(-2 * self._loader.workers // parts)) if self._loader.workers else 0
        done = self._loader.batches((self._jobs(epoch, step) for step in steps), ahead)
        return (self._finished(epoch, step, answers) for step, answers in zip(steps, done, strict=True))

    def close(self) -> None:
        self._loader.close()

    def _jobs(self, epoch: int, step: int) -> Iterator[TrainingJob]:
        places = step * self.recipe.batch_size + self._places
        wanted = list(zip(places.tolist(), self._positions(epoch)[places].tolist(), strict=True))
        return (TrainingJob(epoch, wanted[at : at + PART_SIZE]) for at in range(0, len(wanted), PART_SIZE))

    def _finished(self, epoch: int, step: int, parts: Sequence[Part]) -> TrainingBatch:
        for part in parts:
            self._failures.take(part.failures)
        index = self._moved([torch.tensor([position for part in parts for position in part.positions])])
        images = self._moved([part.images for part in parts]).float().div_(255)
        self._erase(images, parts)
        labels = self._labels[index]
        images, targets = self._mixer(images, labels, epoch, step)
        strong = None
        if self.strong_view:  # of the mixed images, so that the soft labels are those of both views
            generator = self._generator("strong", epoch, step)
            strong = strong_augment(images, generator, self.rows, self.recipe.batch_size)
        return TrainingBatch(images, self._batch(epoch, step, labels, index, targets), strong)

    def _moved(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts as one tensor on the device, by way of pinned memory so that the copy does not hold up this process."""
        if self.device.type != "cuda":
            return torch.cat(list(parts)).to(self.device)
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
        return torch.cat(list(parts), out=pinned).to(self.device, non_blocking=True)

    def _erase(self, images: Tensor, parts: Sequence[Part]) -> None:
        noise = [noise for part in parts for noise in part.noise]
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
