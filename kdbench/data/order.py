"""The order of the images in an epoch: a pure function of seed and epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.seeding import seed_for


def epoch_order(count: int, seed: int, epoch: int, repeats: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Positions (count,) int64 in the order of an epoch; torch shuffles differently on CPU and CUDA.

    With ``repeats`` each drawn image comes that many times in a row, and an epoch keeps its length (repeated augmentation,
    Hoffer et al., arXiv:1901.09335). timm's ``RepeatAugSampler`` in a single process does the same, but cuts an epoch to a
    multiple of 256 images, where the pipeline drops the last, incomplete batch; in several it deals the copies out to different
    processes, where the batch here is that of a single process.
    """
    generator = torch.Generator(device).manual_seed(seed_for(seed, "order", epoch))
    order = torch.randperm(count, generator=generator, device=device)
    return order[: -(-count // repeats)].repeat_interleave(repeats)[:count] if repeats > 1 else order
