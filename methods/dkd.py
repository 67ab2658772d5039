"""Decoupled logit distillation: the target class apart from the others."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, warmup_factor


def dkd_terms(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD (Zhao et al. 2022), each times T^2 and meant over the batch.

    Logits (B, C) with C of at least 2, target (B,) int64. TCKD is the divergence of the two-way distribution (target,
    not target), NCKD that of the distribution over the C - 1 other classes.
    """
    student_two_way, student_others = split_target(student_logits, target, temperature)
    teacher_two_way, teacher_others = split_target(teacher_logits, target, temperature)
    return (
        F.kl_div(student_two_way, teacher_two_way, reduction="batchmean", log_target=True) * temperature**2,
        F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True) * temperature**2,
    )


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """``alpha`` * TCKD + ``beta`` * NCKD (Zhao et al. 2022, eq. 7); see ``dkd_terms``.

    0, with zero gradient, when both logits differ by a constant per sample. Finite at any gap of the
    logits, where the official code, which takes the logarithm of 1 - p, is not.
    """
    tckd, nckd = dkd_terms(student_logits, teacher_logits, target, temperature)
    return alpha * tckd + beta * nckd


def split_target(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target), (B, 2), and of the other classes among themselves, (B, C - 1)."""
    scaled = full_precision(logits) / temperature
    position = torch.arange(scaled.shape[1] - 1, device=scaled.device).unsqueeze(0)
    column = target.unsqueeze(1)
    others = scaled.gather(1, position + (position >= column).to(position.dtype))
    # log(1 - p) as a logsumexp over the others: 1 - p itself rounds to 0 for a confident net.
    two_way = torch.cat([scaled.gather(1, column), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(two_way, dim=1), F.log_softmax(others, dim=1)


@register_method("dkd")
class DKD(Method):
    """Zhao et al., Decoupled Knowledge Distillation, CVPR 2022 (arXiv:2203.08679).

    The defaults are those of OFA-KD's protocol (alpha 1, beta 2, T 1, no warm-up); its released baseline does not run,
    so they are its settings, not its numbers. The paper's own CIFAR-100 settings are the preset ``cifar100-32``; beta
    is 2, 6 or 8 there, by pair. During the first ``warmup_epochs`` epochs both terms grow linearly, from
    1 / ``warmup_epochs`` in the first one. After mixup the target is the class with the largest soft label.
    """

    display, family, fidelity = "DKD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100-32": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_epochs": 20},
        "imagenet1k": {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "warmup_epochs": 1},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "zhao2022dkd",
        "authors": "Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun",
        "title": "Decoupled Knowledge Distillation",
        "venue": "CVPR",
        "year": 2022,
        "arxiv": "2203.08679",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        alpha: Annotated[float, Range(at_least=0, search=(0.25, 4), scale="log")] = 1.0,
        beta: Annotated[float, Range(at_least=0, search=(0.5, 16), scale="log")] = 2.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        warmup_epochs: Annotated[int, Range(at_least=0)] = 0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_epochs
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        tckd, nckd = dkd_terms(student.logits, teacher.logits, batch.hard_labels, self.temperature)
        factor = warmup_factor(batch.epoch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "tckd": factor * self.alpha * tckd,
            "nckd": factor * self.beta * nckd,
        }
