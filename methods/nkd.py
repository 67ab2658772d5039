"""Normalised logit distillation: the teacher's target probability as a weight, the others renormalised."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method


def nkd_terms(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Target and non-target term (Yang et al. 2023), each meant over the batch, the second times T^2.

    Logits (B, C) with C of at least 2, target (B,) int64. The target term is -p_t log p_s of the target class at T = 1;
    the other the cross-entropy of the two distributions over the C - 1 other classes, both softened by T.
    """
    student, teacher = _full_precision(student_logits), _full_precision(teacher_logits)
    column = target.unsqueeze(1)
    student_target = F.log_softmax(student, dim=1).gather(1, column)
    teacher_target = F.log_softmax(teacher, dim=1).gather(1, column).exp()
    student_others = F.log_softmax(_others(student, column) / temperature, dim=1)
    teacher_others = F.softmax(_others(teacher, column) / temperature, dim=1)
    return (
        -(teacher_target * student_target).mean(),
        -(teacher_others * student_others).sum(dim=1).mean() * temperature**2,
    )


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float, gamma: float
) -> Tensor:
    """Target term + ``gamma`` * non-target term; see ``nkd_terms``.

    Both are cross-entropies: the minimum is not 0, and a student equal to the teacher is still drawn to the target. The
    non-target term alone is smallest, the entropy of the teacher times T^2, when the distributions agree.
    """
    target_term, others = nkd_terms(student_logits, teacher_logits, target, temperature)
    return target_term + gamma * others


def _full_precision(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _others(logits: Tensor, column: Tensor) -> Tensor:
    """Logits of all classes but the target, (B, C - 1): taken out, since a large gap could pass a masking constant."""
    position = torch.arange(logits.shape[1] - 1, device=logits.device).unsqueeze(0)
    return logits.gather(1, position + (position >= column).to(position.dtype))


@register_method("nkd")
class NKD(Method):
    """Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels, ICCV 2023 (arXiv:2303.13005).

    The defaults (T 3, gamma 3.5) are the official ones for CIFAR-100; on ImageNet T is 1 and gamma 1.5, for a ViT
    student 1 (presets ``imagenet1k``, ``imagenet1k:vit``). Both terms come on top of the supervised loss.
    After mixup the target is the class with the largest soft label. The self-distillation of the paper is left out.
    """

    display, family, fidelity = "NKD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"temperature": 1.0, "gamma": 1.5},
        "imagenet1k:vit": {"gamma": 1.0},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "yang2023nkd",
        "authors": "Yang, Zhendong and Zeng, Ailing and Li, Zhe and Zhang, Tianke and Yuan, Chun and Li, Yu",
        "title": "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss "
        "and Customized Soft Labels",
        "venue": "ICCV",
        "year": 2023,
        "arxiv": "2303.13005",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 3.0,
        gamma: Annotated[float, Range(at_least=0, search=(0.5, 8), scale="log")] = 3.5,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.temperature = temperature
        self.gamma = gamma
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        target, others = nkd_terms(student.logits, teacher.logits, batch.hard_labels, self.temperature)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "target": target,
            "non_target": self.gamma * others,
        }
