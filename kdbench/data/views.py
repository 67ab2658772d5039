"""What a net sees in evaluation: the images of a split, resized and cropped as the net wants them, in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.data.images import Images, ImageSet
from kdbench.errors import KdbenchError

#: Images per forward pass of an evaluation.
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class EvaluationView:
    """Resize the shorter side to ``int(size / crop)`` px, then cut ``size`` px from the centre (timm's evaluation transform).

    ``size`` None leaves images as they are. ``exact`` decodes and resizes with Pillow in loader processes, else images that
    lie in memory are resized on the device.
    """

    size: int | None = None
    crop: float = 1.0
    interpolation: str = "bilinear"
    exact: bool = False


def evaluation_batches(
    images: Images, view: EvaluationView, device: torch.device, positions: range | None = None
) -> Iterator[Tensor]:
    """Raw images (b, 3, h, w) in [0, 1] on the device, in their order.

    Args:
        positions: only these, of a split that several processes evaluate together.
    """
    if view.size is not None or not isinstance(images, ImageSet):
        raise KdbenchError("evaluation at another size is not there yet")
    chosen = range(len(images)) if positions is None else positions
    for start in range(chosen.start, chosen.stop, EVALUATION_BATCH):
        part = images.images[start : min(start + EVALUATION_BATCH, chosen.stop)]
        yield part.to(device).float() / 255
