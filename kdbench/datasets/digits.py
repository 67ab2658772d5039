"""Real handwritten digits that need no download: the 1,797 images inside scikit-learn, as 32 x 32 px colour images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from kdbench.data.images import Dataset, ImageSet

if TYPE_CHECKING:
    from kdbench.suite.dataset import DatasetSpec

TEST_PER_CLASS = 50
VALIDATION_PER_CLASS = 30
SPLIT_SEED = 20260101  # fixes the splits, for every run on every machine


def load(folder: Path | None = None, spec: DatasetSpec | None = None) -> Dataset:
    """Load the digits: 500 test and 300 validation images with equal classes, the other 997 for training."""
    raw = load_digits()
    pixels = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)  # 8 x 8, grey values 0 to 16
    pixels = F.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False).round().clamp(0, 255)
    images = pixels.to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(raw.target.astype(np.int64))

    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(labels))
    parts: dict[str, list[int]] = {"test": [], "validation": [], "train": []}
    for digit in range(10):
        members = order[labels.numpy()[order] == digit]
        parts["test"] += members[:TEST_PER_CLASS].tolist()
        parts["validation"] += members[TEST_PER_CLASS : TEST_PER_CLASS + VALIDATION_PER_CLASS].tolist()
        parts["train"] += members[TEST_PER_CLASS + VALIDATION_PER_CLASS :].tolist()
    splits = {name: ImageSet(images[index], labels[index]) for name, index in parts.items()}
    return Dataset("digits", 10, splits["train"], splits["validation"], splits["test"])
