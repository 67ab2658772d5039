"""Label-free logit distillation by a symmetric divergence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method

#: Added to both probabilities inside the logarithm, as in the first release.
_EPS = 1e-10


def ssld_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the sum of both KL divergences between the predictions (Cui et al. 2021, who call it JS divergence).

    Logits (B, C); mean over the batch. 0, with zero gradient, when both nets predict the same. The 1e-10 bounds it by
    log(1e10), about 23: a student that gives the teacher's class less than that has hardly any gradient from it.
    """
    student, teacher = _probabilities(student_logits), _probabilities(teacher_logits)
    log_ratio = (teacher + _EPS).log() - (student + _EPS).log()
    return 0.5 * ((teacher - student) * log_ratio).sum(dim=1).mean()


def _probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


@register_method("ssld")
class SSLD(Method):
    """Cui et al., Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve
    Backbones, 2021 (arXiv:2103.05959).

    The loss alone: no labels (``ce_weight`` is 0) and T = 1. The four million extra images, the 360 epochs and the
    fine-tuning that the published figures rest on are no part of a method, so those figures are not comparable. The
    original also ran its teacher in train mode (0.16 points on ImageNet); here every teacher is in eval mode. On
    CIFAR-100 the paper has no recipe: this is an adaptation.
    """

    display, family, fidelity = "SSLD", "logits", "reference"
    citation: ClassVar[dict[str, Any]] = {
        "key": "cui2021ssld",
        "authors": "Cui, Cheng and Guo, Ruoyu and Du, Yuning and He, Dongliang and Li, Fu and Wu, Zewu and Liu, Qiwen "
        "and Wen, Shilei and Huang, Jizhou and Hu, Xiaoguang and Yu, Dianhai and Ding, Errui and Ma, Yanjun",
        "title": "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve "
        "Backbones",
        "venue": "arXiv",
        "year": 2021,
        "arxiv": "2103.05959",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ssld_weight: Annotated[float, Range(at_least=0)] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0, search=(0.01, 1), scale="log")] = 0.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.ssld_weight = ssld_weight
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        terms = {"ssld": self.ssld_weight * ssld_loss(student.logits, teacher.logits)}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * batch.task_loss(student.logits)
        return terms
