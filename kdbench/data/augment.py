"""Augmentation of whole batches on the device. Everything is drawn per image, without waiting for the device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.resample import crop_and_resize, resize_and_centre
from kdbench.suite.recipe import Augment, ResizedCrop

#: Boxes drawn before the fallback, in torchvision's RandomResizedCrop and timm's RandomErasing.
ATTEMPTS = 10


def augment(pixels: Tensor, recipe: Augment, size: int | None, generator: torch.Generator) -> Tensor:
    """Crop, resize and flip images (B, 3, H, W) uint8, as a recipe says; raw images in [0, 1].

    Args:
        size: side (px) of the result; None leaves the images' own.
        generator: on the images' device.
    """
    if recipe.crop_padding:
        pixels = random_shift(pixels, recipe.crop_padding, generator)
    if recipe.resized_crop:
        pixels = random_resized_crop(pixels, size or pixels.shape[2], recipe.resized_crop, generator)
    elif size is not None and tuple(pixels.shape[2:]) != (size, size):
        pixels = resize_and_centre(pixels, size, size, bicubic=False)  # as timm does without a random crop
    if recipe.flip:
        flipped = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    return pixels.float().div_(255)


def random_shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros on all sides and crop back to the old size at an offset drawn for each image. (B, 3, H, W) uint8."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    sample = torch.arange(count, device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_resized_crop(images: Tensor, size: int, crop: ResizedCrop, generator: torch.Generator) -> Tensor:
    """torchvision's and timm's RandomResizedCrop of images (B, 3, H, W) uint8, to float with whole values in [0, 255]."""
    boxes = crop_boxes(len(images), images.shape[2], images.shape[3], crop, generator)
    if crop.interpolation == "random":
        bicubic = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    else:
        bicubic = torch.full((len(images),), crop.interpolation == "bicubic", device=images.device)
    return crop_and_resize(images, boxes, size, bicubic)


def crop_boxes(count: int, height: int, width: int, crop: ResizedCrop, generator: torch.Generator) -> Tensor:
    """Boxes (4, count) (top, left, height, width) in whole pixels, as RandomResizedCrop draws them.

    The first of ten boxes that fits into the image, or the largest central one of an admitted ratio.
    """
    drawn = torch.rand((4, count, ATTEMPTS), generator=generator, device=generator.device, dtype=torch.float64)
    area = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * drawn[0]) * (height * width)
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    ratio = (low + (high - low) * drawn[1]).exp()
    wide = (area * ratio).sqrt().round().clamp(min=1)
    tall = (area / ratio).sqrt().round().clamp(min=1)
    fits = (wide <= width) & (tall <= height)
    own_height, own_width = height, width
    if width / height < crop.ratio[0]:
        own_height = round(width / crop.ratio[0])
    elif width / height > crop.ratio[1]:
        own_width = round(height * crop.ratio[1])
    found, (tall, wide, top, left) = _first(fits, tall, wide, drawn[2], drawn[3])
    tall, wide = tall.where(found, own_height), wide.where(found, own_width)
    top = torch.where(found, place(top, height - tall), (height - own_height) // 2)
    left = torch.where(found, place(left, width - wide), (width - own_width) // 2)
    return torch.stack([top, left, tall, wide])


def place(share: Tensor, room: Tensor) -> Tensor:
    """A whole number in [0, room] from ``share`` in [0, 1)."""
    return torch.minimum((share * (room + 1)).floor(), room)


def random_erasing(
    images: Tensor, probability: float, mean: Tensor, std: Tensor, generator: torch.Generator, chunk: int = 128
) -> Tensor:
    """timm's RandomErasing in mode ``pixel`` on raw images (B, 3, H, W), in place.

    Args:
        mean, std: (3,) on the device: noise is N(0, 1) for images that are normalised with them.
        chunk: images whose noise is drawn at a time.
    """
    height, width = images.shape[2:]
    top, left, tall, wide = erased_boxes(len(images), height, width, probability, generator)[:, :, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    erased = ((y >= top) & (y < top + tall))[:, None, :, None] & ((x >= left) & (x < left + wide))[:, None, None, :]
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        noise = torch.randn(part.shape, generator=generator, device=images.device)
        noise = noise.mul_(std[:, None, None]).add_(mean[:, None, None])
        part.copy_(torch.where(erased[start : start + chunk], noise, part))
    return images


def erased_boxes(count: int, height: int, width: int, probability: float, generator: torch.Generator) -> Tensor:
    """Boxes (4, count) (top, left, height, width) as RandomErasing draws them; of no height where nothing is erased.

    The first of ten boxes that leave a margin, of 2 % to a third of the area and a ratio of 0.3 to 1 / 0.3.
    """
    drawn = torch.rand((4, count, ATTEMPTS), generator=generator, device=generator.device, dtype=torch.float64)
    chosen = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64) <= probability
    area = (0.02 + (1 / 3 - 0.02) * drawn[0]) * (height * width)
    low, high = math.log(0.3), math.log(1 / 0.3)
    ratio = (low + (high - low) * drawn[1]).exp()
    tall = (area * ratio).sqrt().round()
    wide = (area / ratio).sqrt().round()
    found, (tall, wide, top, left) = _first((wide < width) & (tall < height), tall, wide, drawn[2], drawn[3])
    tall = tall * (found & chosen)
    return torch.stack([place(top, height - tall), place(left, width - wide), tall, wide])


def _first(fits: Tensor, *values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Whether an attempt fits (B,), and the values (B,) of the first that does; all are (B, attempts)."""
    order = torch.arange(fits.shape[1], 0, -1, device=fits.device)
    first = (fits * order).argmax(1, keepdim=True)
    return fits.any(1), [value.gather(1, first)[:, 0] for value in values]


def strong_augment(
    images: Tensor, generator: torch.Generator, rows: Tensor | None = None, whole: int | None = None
) -> Tensor:
    """A strong view: a random affine map, contrast, brightness and one erased square per image.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: on the images' device.
        rows: the images' positions in a batch of ``whole`` images, of which these are a part.
    """
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(whole or count, generator=generator, device=images.device)
        return (drawn if rows is None else drawn[rows]) * (high - low) + low

    angle = uniform(-0.35, 0.35)
    scale = uniform(0.8, 1.2)
    shear = uniform(-0.3, 0.3)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    affine = [torch.stack([cos, -sin + shear, uniform(-0.2, 0.2)], 1), torch.stack([sin, cos, uniform(-0.2, 0.2)], 1)]
    grid = F.affine_grid(torch.stack(affine, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    images = images * uniform(0.6, 1.4)[:, None, None, None] + uniform(-0.2, 0.2)[:, None, None, None]
    side = height // 4
    top = (uniform(0, 1) * (height - side)).long()[:, None]
    left = (uniform(0, 1) * (width - side)).long()[:, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    erased = ((y >= top) & (y < top + side))[:, :, None] & ((x >= left) & (x < left + side))[:, None, :]
    return images.clamp(0, 1).masked_fill(erased[:, None], 0.5)
