"""Resizing whole batches on the device as Pillow does it: crop box first, antialiased when shrinking, rounded to 8 bits.

Pillow resizes along one axis after the other, each a weighted sum over the pixels of the crop. Here the weights of an axis are
a matrix for each image, so that a batch is two batched matrix products. They are in double precision, which holds the sums of
Pillow's fixed-point arithmetic without error, so that the bytes are the same; but Pillow 13 resizes some tall crops along the
other axis first, which rounds differently, by two levels at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The interpolations that are known here; others are left to Pillow.
FILTERS = ("bilinear", "bicubic")

#: Numbers that a product may make at a time (128 MiB); larger batches go through in parts.
CHUNK_NUMBERS = 2**24

#: Pillow's weights are whole multiples of 1 / 2^22.
_PRECISION = 2.0**22


def axis_weights(start: Tensor, length: Tensor, size: int, source: int, bicubic: Tensor) -> Tensor:
    """Weights (B, size, source) float64 that resize ``length`` pixels from ``start`` of an axis of ``source`` pixels to ``size``.

    Args:
        start, length: (B,), in pixels.
        bicubic: (B,) bool: bicubic (a = -0.5), else bilinear.
    """
    start, length = (value.to(torch.float64)[:, None, None] for value in (start, length))
    pixel = torch.arange(source, device=start.device, dtype=torch.float64) - start
    scale = length / size
    centre = (torch.arange(size, device=start.device, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = ((pixel - centre + 0.5) * (1 / scale.clamp(min=1))).abs()
    weights = torch.where(bicubic[:, None, None], _cubic(distance), (1 - distance).clamp(min=0))
    weights = weights * ((pixel >= 0) & (pixel < length))
    weights = weights / weights.sum(2, keepdim=True)
    return (weights * _PRECISION).round() / _PRECISION


def _cubic(distance: Tensor) -> Tensor:
    a = -0.5
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize images (B, 3, H, W) uint8 to (B, 3, h, w) float with whole values in [0, 255].

    Args:
        rows: weights (B, h, H), or (1, h, H) for all images alike.
        columns: weights (B, w, W) or (1, w, W).
    """
    height, width = rows.shape[1], columns.shape[1]
    resized = torch.empty((*images.shape[:2], height, width), device=images.device)
    per_image = images[0].numel() + images.shape[1] * width * (images.shape[2] + height)
    step = max(1, CHUNK_NUMBERS // per_image)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        own_rows, own_columns = (weights if len(weights) == 1 else weights[part] for weights in (rows, columns))
        wide = _to_8_bits(images[part].double() @ own_columns.transpose(1, 2)[:, None])
        resized[part] = _to_8_bits(own_rows[:, None] @ wide)
    return resized


def _to_8_bits(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def crop_and_resize(images: Tensor, boxes: Tensor, size: int, bicubic: Tensor) -> Tensor:
    """Cut ``boxes`` (4, B) (top, left, height, width) out of images (B, 3, H, W) uint8 and resize them to ``size`` x ``size``.

    Returns:
        (B, 3, size, size) float with whole values in [0, 255].
    """
    top, left, height, width = boxes
    rows = axis_weights(top, height, size, images.shape[2], bicubic)
    columns = axis_weights(left, width, size, images.shape[3], bicubic)
    return resample(images, rows, columns)


def resize_and_centre(images: Tensor, shorter: int, size: int, bicubic: bool) -> Tensor:
    """Resize the shorter side of images (B, 3, H, W) uint8 to ``shorter`` px, then cut ``size`` px from the centre.

    torchvision's ``Resize`` and ``CenterCrop``.

    Returns:
        (B, 3, size, size) float with whole values in [0, 255].
    """
    height, width = images.shape[2:]
    short = min(height, width)
    chosen = torch.full((1,), bicubic, device=images.device)
    weights = []
    for side in (height, width):
        resized = shorter if side == short else int(shorter * side / short)
        first = round((resized - size) / 2)
        start, length = (torch.full((1,), value, device=images.device) for value in (0, side))
        whole = axis_weights(start, length, resized, side, chosen)
        weights.append(whole[:, first : first + size])
    return resample(images, weights[0], weights[1])
