"""From encoded images to bytes with timm's own transforms: the work that loader processes do, a part of a batch at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image as pillow
from PIL.Image import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms

from kdbench.data.batches import Frame
from kdbench.data.images import Images, ImageSet
from kdbench.errors import KdbenchError
from kdbench.seeding import seed_everything, seed_for, untouched_randomness
from kdbench.suite.recipe import Augment

#: Takes a sentence for the log.
Say = Callable[[str], None]

#: What Pillow raises for files that are damaged in one way or another.
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError)


@dataclass(frozen=True)
class Failure:
    """An image that does not decode: its position, why, and the position of the one in its place (None: a black image)."""

    position: int
    reason: str
    stand_in: int | None


@dataclass
class Part:
    """Some images of a batch, as they travel from a loader process: in shared memory, so without a copy.

    Attributes:
        count: of the images n.
        images: (n, 3, H, W) uint8.
        positions: of each image in the data set; another's than asked for where that does not decode.
        boxes: (image, top, left, height, width) of each erased box.
        noise: the boxes' raw pixels (3, height, width), flat float32.
    """

    count: int
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    positions: list[int] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, pixels: Tensor, position: int) -> None:
        if not self.positions:
            self.images = torch.empty((self.count, *pixels.shape), dtype=torch.uint8)
            if torch.multiprocessing.parent_process() is not None:
                self.images.share_memory_()
        if pixels.shape != self.images.shape[1:]:
            sizes = [f"{shape[2]} x {shape[1]} px" for shape in (pixels.shape, self.images.shape[1:])]
            raise KdbenchError(f"images of a batch differ in size ({sizes[0]}, {sizes[1]}); set image_size")
        self.images[len(self.positions)] = pixels
        self.positions.append(position)


@dataclass(frozen=True)
class TrainingJob:
    """Images of an epoch: (place in its order, position in the data set) of each."""

    epoch: int
    images: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TrainingWork:
    """Decodes and augments training images. Every image has a random stream of its own, from (seed, epoch, place)."""

    data: Images
    augment: Augment
    frame: Frame
    seed: int

    def __call__(self, job: TrainingJob) -> Part:
        part = Part(len(job.images))
        with untouched_randomness():
            for place, position in job.images:
                image, position = self._decode(position, part)
                seed_everything(seed_for(self.seed, "sample", job.epoch, place))
                part.add(self.transform(image), position)
                if self.augment.erasing:
                    self._erase(part)
        if part.noise:
            part.noise = [torch.cat(part.noise)]
        return part

    def describe(self, job: TrainingJob) -> str:
        return _describe(self.data, [position for _, position in job.images])

    @cached_property
    def transform(self) -> Any:
        """Image -> (3, H, W) uint8, as timm makes it before it normalises."""
        side = self.data.images.shape[2] if isinstance(self.data, ImageSet) else None
        return training_transform(self.augment, self.frame, side)

    def _decode(self, position: int, part: Part) -> tuple[Image, int]:
        try:
            return self.data.image(position), position
        except UNDECODABLE as error:
            reason = reason_of(error, self.data.name(position))
        labels = self.data.labels.cpu()
        after = (torch.arange(1, len(labels)) + position) % len(labels)
        same = labels[after] == labels[position]
        # The next images, those of the class first.
        for other in itertools.chain.from_iterable(after[mask].tolist() for mask in (same, ~same)):
            try:
                image = self.data.image(other)
            except UNDECODABLE:
                continue
            part.failures.append(Failure(position, reason, other))
            return image, other
        raise KdbenchError(f"{self.data.name(position)} does not decode ({reason}), and no other image does")

    @cached_property
    def _eraser(self) -> Any:
        return RandomErasing(self.augment.erasing, mode="pixel", max_count=1, device="cpu")

    def _erase(self, part: Part) -> None:
        """timm's RandomErasing on an empty canvas: what it writes there is the noise for the normalised image."""
        canvas = torch.full(part.images.shape[1:], torch.nan)
        self._eraser(canvas)
        written = ~canvas[0].isnan()
        if not written.any():
            return
        rows, columns = written.any(1).nonzero()[:, 0], written.any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.frame.mean, self.frame.std))
        noise = canvas[:, top : top + height, left : left + width] * std + mean
        part.boxes.append((len(part.positions) - 1, top, left, height, width))
        part.noise.append(noise.flatten())


@dataclass(frozen=True)
class EvaluationView:
    """Resize the shorter side to ``int(size / crop)`` px, then cut ``size`` px from the centre (timm's evaluation transform).

    ``size`` None leaves images as they are. ``exact`` decodes and resizes with Pillow in loader processes, else images that
    are in memory are resized on the device.
    """

    size: int | None = None
    crop: float = 1.0
    interpolation: str = "bilinear"
    exact: bool = False


@dataclass(frozen=True)
class EvaluationWork:
    """Decodes images and resizes them as timm does in evaluation. An image that does not decode is black, which tells nothing."""

    data: Images
    view: EvaluationView

    def __call__(self, positions: range) -> Part:
        assert self.view.size is not None
        part = Part(len(positions))
        for position in positions:
            try:
                pixels = self.transform(self.data.image(position))
            except UNDECODABLE as error:
                part.failures.append(Failure(position, reason_of(error, self.data.name(position)), None))
                pixels = torch.zeros((3, self.view.size, self.view.size), dtype=torch.uint8)
            part.add(pixels, position)
        return part

    def describe(self, positions: range) -> str:
        return _describe(self.data, positions)

    @cached_property
    def transform(self) -> Any:
        """Image -> (3, size, size) uint8."""
        return evaluation_transform(self.view)


def evaluation_transform(view: EvaluationView) -> Any:
    """timm's evaluation transform, image to (3, size, size) uint8; ``view`` has a size."""
    return create_transform(
        input_size=view.size,
        is_training=False,
        use_prefetcher=True,
        crop_pct=view.crop,
        interpolation=view.interpolation,
    )


def training_transform(augment: Augment, frame: Frame, side: int | None) -> Any:
    """timm's training transform to (3, H, W) uint8, without normalisation and erasing.

    Without ``resized_crop`` images are resized to the suite's size and cut from the centre, or padded and cropped by
    torchvision; then flipped and augmented as in timm.

    Args:
        side: of all images (px), where they have one size; ``crop_padding`` then crops before they are resized.
    """
    crop = augment.resized_crop
    primary, secondary, final = create_transform(
        input_size=frame.size or side or 224,
        is_training=True,
        use_prefetcher=True,
        separate=True,
        scale=crop.scale if crop else None,
        ratio=crop.ratio if crop else None,
        hflip=0.5 if augment.flip else 0.0,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.randaugment,
        interpolation=crop.interpolation if crop else "random",
        mean=frame.mean,
        std=frame.std,
    )
    for operation in (op for step in secondary.transforms for op in getattr(step, "ops", ())):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = functools.partial(_posterized, operation.aug_fn)
    if crop:
        return transforms.Compose([primary, secondary, final])
    resize = [] if frame.size is None else [transforms.Resize(frame.size), transforms.CenterCrop(frame.size)]
    cropping = [functools.partial(_padded_crop, augment.crop_padding)] if augment.crop_padding else []
    steps: list[Any] = [*resize, *cropping] if side is None else [*cropping, *resize]
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, secondary, final])


def _posterized(posterize: Callable[..., Image], image: Image, bits: int, **options: Any) -> Image:
    """Keep ``bits`` bits of each colour. timm's RandAugment asks for none at its highest level; newer Pillow refuses that."""
    return posterize(image, bits, **options) if bits > 0 else pillow.new(image.mode, image.size)


def _padded_crop(padding: int, image: Image) -> Any:
    """torchvision's RandomCrop with zero padding, to the size that the image has."""
    return transforms.RandomCrop((image.height, image.width), padding=padding)(image)


class FailureCount:
    """Counts the images of ``data`` that do not decode; ``say`` gets a sentence for each. A share ``undecodable`` may fail."""

    def __init__(self, data: Images, say: Say) -> None:
        self.data = data
        self.say = say
        self.failed: set[int] = set()

    def take(self, failures: Sequence[Failure]) -> None:
        """Count new failures.

        Raises:
            KdbenchError: if more images have failed than ``undecodable`` admits.
        """
        for failure in failures:
            if failure.position in self.failed:
                continue
            self.failed.add(failure.position)
            sentence = f"{self.data.name(failure.position)} does not decode ({failure.reason})"
            share = getattr(self.data, "undecodable", 0.0)
            if len(self.failed) > share * len(self.data):
                raise KdbenchError(
                    f"{sentence}: {len(self.failed)} of {len(self.data)} images have failed, "
                    f"more than undecodable = {share:g} admits"
                )
            instead = "a black image" if failure.stand_in is None else self.data.name(failure.stand_in)
            self.say(f"{sentence}; {instead} takes its place")


def reason_of(error: Exception, name: str) -> str:
    """Why an image does not decode, without its name."""
    return str(error).removeprefix(f"{name} does not decode: ") or type(error).__name__


def _describe(data: Images, positions: Sequence[int]) -> str:
    names = [data.name(position) for position in positions]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} images)"
