"""What a training batch is, how the engine sees a pipeline, and which part of a global batch a process gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.method import Batch, binary_cross_entropy
from kdbench.suite.dataset import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec
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


class Pipeline(Protocol):
    """Training batches of one run, as the engine sees them."""

    dataset: Any

    def __len__(self) -> int:
        """Steps of an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """The batches of ``epoch`` (from 0), from ``first_step`` on."""

    def make(self, epoch: int, step: int) -> TrainingBatch:
        """The batch at ``step`` of ``epoch`` (both from 0); the same whenever it is made."""

    def close(self) -> None:
        """End what works in the background; making a batch starts it again."""


@dataclass(frozen=True)
class Frame:
    """What a suite says about the images of batches: their side (px; None leaves the data set's own), its mean and std."""

    size: int | None = None
    mean: Colours = IMAGENET_MEAN
    std: Colours = IMAGENET_STD

    @classmethod
    def of(cls, spec: DatasetSpec) -> Frame:
        return cls(spec.image_size, spec.mean, spec.std)


def check_batches(images: int, recipe: Recipe) -> None:
    """Refuse batches that the data, or the way of mixing, cannot give.

    Raises:
        KdbenchError: if the batch is larger than the data set, or its size odd where timm's Mixup pairs its images.
    """
    if recipe.batch_size > images:
        raise KdbenchError(f"batch_size = {recipe.batch_size}, but there are only {images} training images")
    if recipe.augment.mixes and recipe.augment.mix_mode == "batch" and recipe.batch_size % 2:
        raise KdbenchError(
            f"batch_size = {recipe.batch_size}: mixing batches pairs their images; choose an even number"
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


def make_batch(
    recipe: Recipe, steps: int, epoch: int, step: int, labels: Tensor, index: Tensor, targets: Tensor | None
) -> Batch:
    """What methods see of the batch at ``step`` of ``epoch``, of ``steps`` in an epoch."""
    return Batch(
        labels=labels,
        index=index,
        targets=targets,
        progress=(epoch * steps + step) / max(1, recipe.epochs * steps),
        epoch=epoch,
        label_smoothing=recipe.label_smoothing,
        supervised=binary_cross_entropy if recipe.loss == "bce" else None,
    )
