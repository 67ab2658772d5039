"""Binary logit distillation: every class on its own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision


def bkd_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the student's sigmoids with the teacher's softmax as targets (OFA-KD's code, BKD).

    Logits (B, C); mean over batch and classes, so about 1 / C of a cross-entropy. Smallest, and then the mean binary
    entropy of the targets, where the student's sigmoids are the teacher's probabilities; they then sum to 1.
    """
    return F.binary_cross_entropy_with_logits(
        full_precision(student_logits), full_precision(teacher_logits).softmax(dim=1)
    )


@register_method("bkd")
class BKD(Method):
    """Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, NeurIPS
    2023 (arXiv:2310.19444).

    In the code of that paper, not in its text: KD for recipes whose supervised loss is the binary cross-entropy too,
    with which it shares scale and minimum. Beside a cross-entropy it weighs about 1 / C. The defaults (both weights 1)
    are the code's on every data set; no configuration of it uses the method.
    """

    display, family, fidelity = "BKD", "logits", "reference"
    citation: ClassVar[dict[str, Any]] = {
        "key": "hao2023ofa",
        "authors": "Hao, Zhiwei and Guo, Jianyuan and Han, Kai and Tang, Yehui and Hu, Han and Wang, Yunhe and Xu, Chang",
        "title": "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        "venue": "NeurIPS",
        "year": 2023,
        "arxiv": "2310.19444",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        bkd_weight: Annotated[float, Range(at_least=0, search=(0.1, 1000), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.bkd_weight = bkd_weight
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "bkd": self.bkd_weight * bkd_loss(student.logits, teacher.logits),
        }
