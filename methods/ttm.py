"""Transformed teacher matching: the teacher's distribution raised to a power, the student without a temperature."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """KL(q || p_s), q the teacher's distribution to the power ``gamma``, normalised (Zheng and Yang 2024, TTM).

    Logits (B, C); mean over the batch, no factor T^2. q is the teacher's softmax at the temperature 1 / ``gamma``; with
    ``gamma`` 1 this is KD at temperature 1.
    """
    divergence, _ = _divergence_and_norm(student_logits, teacher_logits, gamma)
    return divergence.mean()


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """``ttm_loss`` with every sample weighted by Z, the sum of its teacher's p^gamma (Zheng and Yang 2024, WTTM).

    Z is large where the teacher is unsure: for ``gamma`` in (0, 1] it lies between 1 and C^(1 - gamma).
    """
    divergence, norm = _divergence_and_norm(student_logits, teacher_logits, gamma)
    return (norm * divergence).mean()


def _divergence_and_norm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """KL(q || p_s) and Z of each sample, both (B,)."""
    student_log = F.log_softmax(full_precision(student_logits), dim=1)
    # In logarithms: p itself rounds to 0 in the tail, which the power is there to raise.
    powered = gamma * F.log_softmax(full_precision(teacher_logits), dim=1)
    divergence = F.kl_div(student_log, F.log_softmax(powered, dim=1), reduction="none", log_target=True).sum(dim=1)
    return divergence, powered.logsumexp(dim=1).exp()


@register_method("ttm")
class TTM(Method):
    """Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024 (arXiv:2402.11148).

    The defaults (gamma 0.1, weight 45) are those of VGG13 to VGG8 on CIFAR-100, the only ones that the official code
    gives; it has none for ImageNet, where the defaults apply untried. The weight takes the place of T^2, so that it is
    to be set again with gamma.
    """

    display, family, fidelity = "TTM", "logits", "reference"
    citation: ClassVar[dict[str, Any]] = {
        "key": "zheng2024ttm",
        "authors": "Zheng, Kaixiang and Yang, En-Hui",
        "title": "Knowledge Distillation Based on Transformed Teacher Matching",
        "venue": "ICLR",
        "year": 2024,
        "arxiv": "2402.11148",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        gamma: Annotated[float, Range(above=0, search=(0.05, 1), scale="log")] = 0.1,
        ttm_weight: Annotated[float, Range(at_least=0, search=(1, 100), scale="log")] = 45.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.gamma = gamma
        self.ttm_weight = ttm_weight
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "ttm": self.ttm_weight * ttm_loss(student.logits, teacher.logits, self.gamma),
        }


@register_method("wttm")
class WTTM(Method):
    """Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024 (arXiv:2402.11148).

    TTM with each sample weighted by how unsure its teacher is, by a factor of up to C^(1 - gamma) (40 with 100 classes
    and gamma 0.2, 251 with 1,000), so that the weights of TTM and WTTM are not comparable. The defaults (gamma 0.2,
    weight 4) are the only ones that the official code gives, for VGG13 to VGG8 on CIFAR-100, where they are
    used with CRD of weight 0.8. It has none for WTTM alone and none for ImageNet: the defaults apply untried.
    """

    display, family, fidelity = "WTTM", "logits", "reference"
    citation: ClassVar[dict[str, Any]] = {
        "key": "zheng2024ttm",
        "authors": "Zheng, Kaixiang and Yang, En-Hui",
        "title": "Knowledge Distillation Based on Transformed Teacher Matching",
        "venue": "ICLR",
        "year": 2024,
        "arxiv": "2402.11148",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        gamma: Annotated[float, Range(above=0, search=(0.05, 1), scale="log")] = 0.2,
        wttm_weight: Annotated[float, Range(at_least=0, search=(0.5, 50), scale="log")] = 4.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.gamma = gamma
        self.wttm_weight = wttm_weight
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "wttm": self.wttm_weight * wttm_loss(student.logits, teacher.logits, self.gamma),
        }
