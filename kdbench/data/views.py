"""Evaluation batches on the device: the images of a split, resized and cropped as a net expects them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kdbench.data.hostmemory import free_host_memory
from kdbench.data.images import Images, ImageSet
from kdbench.data.loader import TIMEOUT, Loader
from kdbench.data.resample import FILTERS, resize_and_centre
from kdbench.data.transforms import EvaluationView, EvaluationWork, FailureCount, Part, Say
from kdbench.errors import KdbenchError
from kdbench.nets.models import preprocessing_of
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe

#: Images per forward pass of an evaluation.
EVALUATION_BATCH = 250
#: Images that a loader process works on at a time.
_PART_SIZE = 50
#: Of the host's free memory, that decoded images may take: each worker of a machine may keep as much.
KEPT_SHARE = 0.1


def view_of(image_size: int | None, net: NetSpec, recipe: Recipe) -> EvaluationView:
    """What a net sees in evaluation: its own size and crop, where the suite's images have no size of their own.

    Args:
        image_size: of the suite's images in pixels.
    """
    if image_size is None:
        return EvaluationView()
    own = preprocessing_of(net)
    return EvaluationView(
        size=own["input_size"][0],
        crop=recipe.eval_crop or own["crop_pct"],
        interpolation=own["interpolation"],
        exact=recipe.pipeline == "exact",
    )


def evaluation_batches(
    images: Images,
    view: EvaluationView,
    device: torch.device,
    positions: range | None = None,
    *,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    say: Say | None = None,
) -> Iterator[Tensor]:
    """Raw images (b, 3, h, w) in [0, 1] on the device, in their order.

    Args:
        positions: only these, of a split that several processes evaluate together.
        workers: loader processes for files and exact views; None by the number of cores, but 0 (in this process) for one batch.
        timeout: seconds after which a loader process that does not answer counts as hung.
        say: gets a sentence for each image that does not decode, which is black; None logs it.

    Raises:
        KdbenchError: for files without a size; if a loader process dies or hangs, or more images do not decode than the data
            set admits.
    """
    chosen = range(len(images)) if positions is None else positions
    if not decodes(images, view):
        assert isinstance(images, ImageSet)
        return _in_memory(images, view, device, chosen)
    return _shown(decoded(images, view, chosen, workers=workers, timeout=timeout, say=say), device)


def decodes(images: Images, view: EvaluationView) -> bool:
    """Whether a view is made image by image on the host, not from images in memory on the device."""
    return not isinstance(images, ImageSet) or not (
        view.size is None or (not view.exact and view.interpolation in FILTERS)
    )


def _in_memory(images: ImageSet, view: EvaluationView, device: torch.device, chosen: range) -> Iterator[Tensor]:
    for start in range(chosen.start, chosen.stop, EVALUATION_BATCH):
        part = images.images[start : min(start + EVALUATION_BATCH, chosen.stop)].to(device)
        if view.size is None:
            yield part.float() / 255
        else:
            shorter = math.floor(view.size / view.crop)  # as in timm
            yield resize_and_centre(part, shorter, view.size, view.interpolation == "bicubic").div_(255)


def decoded(
    images: Images,
    view: EvaluationView,
    positions: range,
    *,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    say: Say | None = None,
) -> Iterator[Tensor]:
    """What ``evaluation_batches`` shows of images that are decoded on the host, as bytes (b, 3, h, w) there."""
    if view.size is None:
        raise KdbenchError("images in files have many sizes: an evaluation needs a size (px)")
    if workers is None and len(positions) <= EVALUATION_BATCH:
        workers = 0
    failures = FailureCount(images, say or logging.getLogger(__name__).warning)
    loader: Loader[range, Part] = Loader(EvaluationWork(images, view), workers, timeout)
    batches = (positions[start : start + EVALUATION_BATCH] for start in range(0, len(positions), EVALUATION_BATCH))
    jobs = ([batch[at : at + _PART_SIZE] for at in range(0, len(batch), _PART_SIZE)] for batch in batches)
    try:
        for parts in loader.batches(jobs, ahead=-(-2 * loader.workers * _PART_SIZE // EVALUATION_BATCH)):
            for part in parts:
                failures.take(part.failures)
            yield torch.cat([part.images for part in parts])
    finally:
        loader.close()


def _shown(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    for batch in batches:
        yield (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True).float() / 255


class KeptImages:
    """``evaluation_batches`` of one split, again and again: what has to be decoded stays in the host's memory as bytes.

    Args:
        images: the split.
        device: where batches are wanted.
        workers: see ``evaluation_batches``.
    """

    def __init__(self, images: Images, device: torch.device, workers: int | None) -> None:
        self.images, self.device, self.workers = images, device, workers
        self._kept: dict[tuple[EvaluationView, range], list[Tensor]] = {}

    def batches(self, view: EvaluationView, positions: range) -> Iterator[Tensor]:
        """See ``evaluation_batches``. Nothing stays that would take more than ``KEPT_SHARE`` of the free memory."""
        if not decodes(self.images, view):
            return evaluation_batches(self.images, view, self.device, positions)
        kept = self._kept.get((view, positions))
        return _shown(self._decode(view, positions) if kept is None else kept, self.device)

    def _decode(self, view: EvaluationView, positions: range) -> Iterator[Tensor]:
        batches = decoded(self.images, view, positions, workers=self.workers)
        if len(positions) * 3 * (view.size or 0) ** 2 > KEPT_SHARE * free_host_memory():
            yield from batches
            return
        made = []
        for batch in batches:
            made.append(batch)
            yield batch
        self._kept[view, positions] = made
