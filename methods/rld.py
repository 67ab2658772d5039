"""Refined logit distillation: the teacher's confidence for the label, its correlations among the classes below the label."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, kl_divergence, warmup_factor
from kdbench.methods.dkd import split_target


def rld_terms(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float, label_temperature: float
) -> tuple[Tensor, Tensor]:
    """Sample confidence and masked correlation (Sun et al. 2025, SCD and MCD), each times its T^2, mean over the batch.

    Logits (B, C) with C of at least 2, target (B,) int64. SCD is the divergence, at ``label_temperature``, of two-way
    distributions: the teacher's best class, whichever it is, against the rest, and the student's target against the
    rest. MCD is the divergence, at ``temperature``, over the classes whose teacher logit is strictly below that of the
    target; a sample with fewer than two of them adds 0 and no gradient.
    """
    student, teacher = full_precision(student_logits), full_precision(teacher_logits)
    student_two_way, _ = split_target(student, target, label_temperature)
    teacher_two_way, _ = split_target(teacher, teacher.argmax(dim=1), label_temperature)
    left_out = teacher >= teacher.gather(1, target.unsqueeze(1))
    # The lowest finite number and not -inf: a sample with no class left is then uniform on both sides, and not NaN.
    masked_student, masked_teacher = (
        (logits / temperature).masked_fill(left_out, torch.finfo(logits.dtype).min) for logits in (student, teacher)
    )
    return (
        F.kl_div(student_two_way, teacher_two_way, reduction="batchmean", log_target=True) * label_temperature**2,
        kl_divergence(masked_student, masked_teacher) * temperature**2,
    )


def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    label_temperature: float,
) -> Tensor:
    """``alpha`` * SCD + ``beta`` * MCD; see ``rld_terms``.

    Finite at any gap of the logits, where the official code, which takes the logarithm of 1 - p, is not.
    """
    confidence, correlation = rld_terms(student_logits, teacher_logits, target, temperature, label_temperature)
    return alpha * confidence + beta * correlation


@register_method("rld")
class RLD(Method):
    """Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025 (arXiv:2408.07703).

    The defaults are the official ones for CIFAR-100, the same for every pair: alpha 1, beta 8, T 4 in both terms
    (``label_temperature`` None is the flag ``--same-t`` of the official command; without the flag it is 1), warm-up
    over 20 epochs. The preset ``imagenet1k`` is that of ResNet34 to ResNet18; ResNet50 to MobileNetV1 has beta 2.
    Where the official logits are standardised first (``--logit-stand``), ours are not.

    During the first ``warmup_epochs`` epochs both terms grow linearly, from 1 / ``warmup_epochs`` in the first one: a
    run shorter than that never gives them their full weight, one of n epochs n / ``warmup_epochs`` at most.

    The method needs one class per image: after mixup it is the one with the largest soft label, for the teacher's mask
    too. A class that ties with it in the teacher's logits is left out, which is common where those are rounded to
    bfloat16.
    """

    display, family, fidelity = "RLD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"beta": 0.5, "temperature": 1.0, "warmup_epochs": 1},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "sun2025rld",
        "authors": "Sun, Wujie and Chen, Defang and Lyu, Siwei and Chen, Genlang and Chen, Chun and Wang, Can",
        "title": "Knowledge Distillation with Refined Logits",
        "venue": "ICCV",
        "year": 2025,
        "arxiv": "2408.07703",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        alpha: Annotated[float, Range(at_least=0)] = 1.0,
        beta: Annotated[float, Range(at_least=0, search=(0.5, 16), scale="log")] = 8.0,
        temperature: Annotated[float, Range(above=0, search=(0.5, 8), scale="log")] = 4.0,
        label_temperature: Annotated[float | None, Range(above=0)] = None,
        warmup_epochs: Annotated[int, Range(at_least=0)] = 20,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.label_temperature = temperature if label_temperature is None else label_temperature
        self.warmup_epochs = warmup_epochs
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        confidence, correlation = rld_terms(
            student.logits, teacher.logits, batch.hard_labels, self.temperature, self.label_temperature
        )
        factor = warmup_factor(batch.epoch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "confidence": factor * self.alpha * confidence,
            "correlation": factor * self.beta * correlation,
        }
