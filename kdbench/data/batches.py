"""What a training batch and a pipeline are, and which part of a global batch a process gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.images import Images
from kdbench.data.order import epoch_order
from kdbench.errors import KdbenchError
from kdbench.method import Batch
from kdbench.seeding import seed_for
from kdbench.suite.dataset import IMAGENET_MEAN, IMAGENET_STD
from kdbench.suite.recipe import Recipe
from kdbench.suite.types import Colours


@dataclass
class TrainingBatch:
    """Raw images (B, 3, H, W) in [0, 1] with what methods see; ``strong`` is the second view, where one was asked for.

    Erased pixels are noise and may leave [0, 1].
    """

    images: Tensor
    batch: Batch
    strong: Tensor | None = None


@dataclass(frozen=True)
class Frame:
    """Side (px; None leaves the data set's own), mean and std of the images of batches, from a suite."""

    size: int | None = None
    mean: Colours = IMAGENET_MEAN
    std: Colours = IMAGENET_STD


@dataclass(eq=False)
class Pipeline(ABC):
    """Training batches; the last, incomplete batch of an epoch is dropped.

    A batch is a pure function of (seed, epoch, step): it can be made again, and training can go on from any step.

    Args:
        dataset: the training images.
        recipe: batch size, augmentation, label smoothing and number of epochs.
        num_classes: number of classes.
        seed: everything that order and augmentation depend on (see ``seed_for``).
        device: where batches go.
        strong_view: also make the second, strongly augmented view.
        frame: size of the images, and the mean and std of the noise that erasing draws.
        rows: positions in the global batch that this process gets (see ``check_rows``); None for all.

    Raises:
        KdbenchError: if the batch is larger than the data set, or cannot be mixed or shared out.
    """

    dataset: Images
    recipe: Recipe
    num_classes: int
    seed: int
    device: torch.device
    strong_view: bool = False
    frame: Frame = Frame()
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        recipe = self.recipe
        if recipe.batch_size > len(self.dataset):
            raise KdbenchError(
                f"batch_size = {recipe.batch_size}, but there are only {len(self.dataset)} training images"
            )
        if recipe.augment.mixes and recipe.augment.mix_mode == "batch" and recipe.batch_size % 2:
            raise KdbenchError(
                f"batch_size = {recipe.batch_size}: mixing batches pairs their images; choose an even number"
            )
        self.device = torch.device(self.device)
        if self.rows is not None:
            self.rows = check_rows(self.rows, recipe)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.dataset) // self.recipe.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """The batches of ``epoch`` (from 0), from ``first_step`` on."""
        return self.steps(epoch, range(first_step, len(self)))

    @abstractmethod
    def steps(self, epoch: int, steps: range) -> Iterator[TrainingBatch]:
        """The batches at ``steps`` of ``epoch`` (both from 0)."""

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0); the same whenever it is made."""
        return next(self.steps(epoch, range(step, step + 1)))

    def close(self) -> None:  # noqa: B027  most work in this process
        """End the background processes; making a batch starts them again."""

    def _positions(self, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """Order of an epoch; torch shuffles differently on CPU and CUDA."""
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(len(self.dataset), self.seed, epoch, self.recipe.augment.repeats, device)
            self._order = (epoch, order)
        return self._order[1]

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_for(self.seed, *parts))

    def _batch(self, epoch: int, step: int, labels: Tensor, index: Tensor, targets: Tensor | None) -> Batch:
        """What methods see of the batch at ``step`` of ``epoch``."""
        return Batch(
            labels=labels,
            index=index,
            targets=targets,
            progress=(epoch * len(self) + step) / max(1, self.recipe.epochs * len(self)),
            epoch=epoch,
            label_smoothing=self.recipe.label_smoothing,
            supervised=binary_cross_entropy if self.recipe.loss == "bce" else None,
        )


def check_rows(rows: Tensor, recipe: Recipe) -> Tensor:
    """The positions in the global batch that a process gets, (n,) int64: ascending, and with their partners if images are mixed.

    Mixing pairs image i with image B - 1 - i. Ascending rows that hold both of every pair are paired among themselves by the
    same reversal, so that a part of a batch is mixed as in the whole.

    Raises:
        KdbenchError: for rows that are none of the batch, out of order, or without their partners.
    """
    size = recipe.batch_size
    rows = rows.detach().cpu().long()
    if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= size:
        raise KdbenchError(f"rows of a batch: expected positions in [0, {size}), got {rows.tolist()}")
    if bool((rows[1:] <= rows[:-1]).any()):
        raise KdbenchError(f"rows of a batch must ascend, got {rows.tolist()}")
    if recipe.augment.mixes and not torch.equal(size - 1 - rows.flip(0), rows):
        raise KdbenchError(
            f"images are mixed in pairs (i, {size - 1} - i), but rows {rows.tolist()} do not hold both of every pair"
        )
    return rows


def binary_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy of every class, mean over batch and classes, with smoothed or mixed targets (arXiv:2110.00476).

    Logits (B, C).
    """
    targets = batch.targets
    if targets is None:
        smoothing, classes = batch.label_smoothing, logits.shape[1]
        # not torch's one_hot, which may read the labels on the host
        hot = torch.zeros(len(batch.labels), classes, dtype=logits.dtype, device=logits.device)
        targets = hot.scatter_(1, batch.labels[:, None], 1) * (1 - smoothing) + smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
