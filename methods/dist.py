"""Logit distillation by correlation instead of divergence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.distributed import gather_batch

#: Added to the product of the norms, so that constant rows have correlation 0.
_EPS = 1e-8


def dist_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inter- and intra-class term (Huang et al. 2022), each times T^2.

    Logits (B, C). The inter-class term is 1 minus the correlation of the predictions of one sample across classes, mean
    over samples; the intra-class term that of one class across samples, mean over classes. A single sample has no
    intra-class correlation: that term is then T^2, without gradient.
    """
    student = _probabilities(student_logits, temperature)
    teacher = _probabilities(teacher_logits, temperature)
    inter = temperature**2 * (1 - _correlation(student, teacher).mean())
    intra = temperature**2 * (1 - _correlation(student.t(), teacher.t()).mean())
    return inter, intra


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """``beta`` * inter-class term + ``gamma`` * intra-class term; see ``dist_terms``.

    0, with zero gradient, when both nets predict the same (up to the 1e-8 in the correlation).
    """
    inter, intra = dist_terms(student_logits, teacher_logits, temperature)
    return beta * inter + gamma * intra


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).softmax(dim=1)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of the rows of two matrices, (rows,)."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    # vector_norm, not a square root of a sum: its gradient at 0 is 0.
    norms = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(dim=1) / (norms + _EPS)


@register_method("dist")
class DIST(Method):
    """Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022 (arXiv:2205.10536).

    The defaults are those of OFA-KD's protocol (T 1, all weights 1), half the official weight. The official CIFAR-100
    settings (T 4, weight 2) are the preset ``cifar100-32``. The intra-class term correlates over the batch: with few
    samples per class it is nearly noise. Under several processes the official code correlates within each; here the
    batch is that of all processes, so that their number changes nothing.
    """

    display, family, fidelity = "DIST", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cifar100-32": {"temperature": 4.0, "dist_weight": 2.0}}
    citation: ClassVar[dict[str, Any]] = {
        "key": "huang2022dist",
        "authors": "Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang",
        "title": "Knowledge Distillation from A Stronger Teacher",
        "venue": "NeurIPS",
        "year": 2022,
        "arxiv": "2205.10536",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        beta: Annotated[float, Range(at_least=0, search=(0.25, 4), scale="log")] = 1.0,
        gamma: Annotated[float, Range(at_least=0, search=(0.25, 4), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        dist_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.dist_weight = dist_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        inter, intra = dist_terms(gather_batch(student.logits), gather_batch(teacher.logits), self.temperature)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "inter": self.dist_weight * self.beta * inter,
            "intra": self.dist_weight * self.gamma * intra,
        }
