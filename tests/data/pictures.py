"""Pictures for the tests of pipelines: smooth, coloured, each another; in memory, or as encoded files that are decoded on demand."""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kdbench.data.images import FileSet, ImageSet
from kdbench.suite.recipe import Recipe


def pictures(count: int = 20, height: int = 40, width: int = 48, classes: int = 4, seed: int = 0) -> ImageSet:
    """Random pictures in memory, (count, 3, height, width) uint8."""
    coarse = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return ImageSet((fine.clamp(0, 1) * 255).to(torch.uint8), torch.arange(count) % classes)


@dataclass(frozen=True)
class Encoded:
    """PNG files in memory, of several sizes. Those in ``damaged`` do not decode, the one in ``slow`` takes its time."""

    files: tuple[bytes, ...]
    damaged: frozenset[int] = frozenset()
    deadly: int = -1
    endless: int = -1

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> Image.Image:
        if position == self.deadly:
            os._exit(7)
        if position == self.endless:
            time.sleep(60)
        if position in self.damaged:
            raise OSError("image file is truncated")
        return Image.open(io.BytesIO(self.files[position])).convert("RGB")

    def name(self, position: int) -> str:
        return f"train/{position}.png"

    def fingerprint(self) -> str:
        return "encoded"


def files(count: int = 20, classes: int = 4, undecodable: float = 0.0, **special: Any) -> FileSet:
    """Random pictures of several sizes as files."""
    encoded = []
    for number in range(count):
        pixels = pictures(1, 40 + 3 * (number % 5), 48 - 2 * (number % 7), seed=number).image(0)
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    source = Encoded(tuple(encoded), **special)
    return FileSet(source, torch.arange(count), torch.arange(count) % classes, undecodable)


def recipe(batch_size: int = 8, pipeline: str = "device", smoothing: float = 0.0, **augment: Any) -> Recipe:
    """A recipe that augments."""
    return Recipe.model_validate(
        {
            "epochs": 4,
            "batch_size": batch_size,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "pipeline": pipeline,
            "label_smoothing": smoothing,
            "augment": augment,
        }
    )


def histogram(values: Tensor, low: float, high: float, bins: int = 10) -> Tensor:
    """Shares of ``values`` in equal bins."""
    return torch.histc(values.float(), bins, low, high) / len(values)
