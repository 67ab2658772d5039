"""Mixup and CutMix on a batch of images, with the soft labels that they make."""

from __future__ import annotations

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from kdbench.seeding import seed_for, untouched_randomness
from kdbench.suite.recipe import Recipe


class Mixer:
    """Mixes batches as a recipe says; a pure function of (seed, epoch, step). Label smoothing is inside the soft labels.

    Args:
        rows: positions of the global batch that this process has (see ``check_rows``), or None for all.
    """

    def __init__(
        self, recipe: Recipe, num_classes: int, seed: int, device: torch.device, rows: Tensor | None = None
    ) -> None:
        self.recipe = recipe
        self.num_classes = num_classes
        self.seed = seed
        self.device = device
        self.rows = rows
        augment = recipe.augment
        self._timm = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mix_prob,
            switch_prob=augment.mix_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Mixed images (B, 3, H, W) and soft labels (B, C); or the images themselves and None. May write into ``images``."""
        augment = self.recipe.augment
        if not augment.mixes:
            return images, None
        seed = seed_for(self.seed, "mixup", epoch, step)
        if augment.mix_mode == "image":
            return self._mix_each(images, labels, torch.Generator(self.device).manual_seed(seed))
        with untouched_randomness():
            np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from NumPy's global generator
            mixed: tuple[Tensor, Tensor] = self._timm(images, labels)
        return mixed

    def _mix_each(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix every image with that of the reversed batch by its own ratio ~ Beta(a, a) (Zhang et al., arXiv:1710.09412)."""
        augment, whole = self.recipe.augment, self.recipe.batch_size
        # Beta(a, a) from two Gamma draws; torch's Beta distribution takes no generator.
        concentration = torch.full((2, whole), augment.mixup, device=images.device)
        gamma = torch._standard_gamma(concentration, generator=generator)
        ratio = gamma[0] / gamma.sum(0)
        if augment.mix_prob < 1:
            chosen = torch.rand(whole, generator=generator, device=images.device) < augment.mix_prob
            ratio = torch.where(chosen, ratio, 1.0)
        if self.rows is not None:
            ratio = ratio[self.rows]
        mixed = images * ratio[:, None, None, None] + images.flip(0) * (1 - ratio)[:, None, None, None]
        smoothing = self.recipe.label_smoothing
        hot = torch.zeros(len(labels), self.num_classes, device=images.device).scatter_(1, labels[:, None], 1.0)
        soft = hot * (1 - smoothing) + smoothing / self.num_classes
        return mixed, soft * ratio[:, None] + soft.flip(0) * (1 - ratio)[:, None]
