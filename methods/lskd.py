"""Logit distillation after standardising the logits of each sample."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


def standardize(logits: Tensor) -> Tensor:
    """Logits (B, C) minus their mean, over their standard deviation (C - 1 degrees of freedom) + 1e-7, per sample."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def lskd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Softened KL divergence, times T^2, of the standardised logits (Sun et al. 2024).

    Logits (B, C); mean over the batch. 0, with zero gradient, when the student's logits are the teacher's times a
    positive factor plus a constant per sample (up to the 1e-7).
    """
    return kl_divergence(standardize(student_logits), standardize(teacher_logits), temperature)


@register_method("lskd")
class LSKD(Method):
    """Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024 (arXiv:2403.01427).

    KD on standardised logits; the supervised loss sees the raw ones. The defaults are the official ones for CNN students
    on CIFAR-100 (T 2, weights 0.1 and 9); ViT students have weights 0.5 and 10 there, and on ImageNet the supervised
    loss has weight 1. The deviation is the unbiased one, as ``torch.std`` gives it and ``numpy.std`` does not.
    """

    display, family, fidelity = "LSKD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100:vit": {"ce_weight": 0.5, "kd_weight": 10.0},
        "imagenet1k": {"ce_weight": 1.0},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "sun2024lskd",
        "authors": "Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun",
        "title": "Logit Standardization in Knowledge Distillation",
        "venue": "CVPR",
        "year": 2024,
        "arxiv": "2403.01427",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 2.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 0.1,
        kd_weight: Annotated[float, Range(at_least=0, search=(1, 20), scale="log")] = 9.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * lskd_loss(student.logits, teacher.logits, self.temperature),
        }
