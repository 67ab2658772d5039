"""Curriculum temperature: a learned temperature that the loss is made hard with."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, kl_divergence


def ctkd_loss(
    student_logits: Tensor, theta: Tensor, teacher_logits: Tensor, reversal: float, start: float, end: float
) -> Tensor:
    """KD at the temperature T = ``start`` + ``end`` * sigmoid(theta), T^2 included (Li et al. 2023, global T).

    Logits (B, C), theta (1,); mean over the batch. The gradient of theta, through T^2 and both distributions, is
    multiplied by ``reversal``: with a negative one the temperature ascends the loss that the student descends.
    """
    reversed_theta = theta.detach() + reversal * (theta - theta.detach())
    temperature = start + end * reversed_theta.sigmoid().squeeze(0)
    return kl_divergence(full_precision(student_logits), full_precision(teacher_logits), temperature)


def ctkd_schedule(epoch: int, epochs: int) -> float:
    """``reversal`` in an epoch counted from 1: from 0 to -1 along half a cosine over the first ``epochs``, then -1."""
    return (math.cos(math.pi * min(epoch, epochs) / epochs) - 1) / 2


@register_method("ctkd")
class CTKD(Method):
    """Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023 (arXiv:2211.16231).

    KD with one learned temperature for all samples (the paper's global version), T = start + end * sigmoid(theta):
    ``end`` is the width of the interval, so that by default T lies between 1 and 21, and begins at 15.62 with theta 1.
    theta is a parameter of the method, trained by the student's optimiser, with a reversed gradient: it makes the loss
    larger. The reversal grows from 0 to -1 over the first ``curriculum_epochs`` epochs; a run shorter than that stays
    below -1, and one of a few epochs trains at nearly the first temperature.

    The defaults are the official ones for CIFAR-100 (weights 0.1 and 0.9, curriculum of 10 epochs), the preset
    ``imagenet1k`` those for ResNet34 to ResNet18 (both weights 1, 5 epochs).

    Trap: the official code decays theta, which moves it even where the reversal is 0. Here it is exempt, as all
    one-dimensional parameters are, unless the recipe decays those.
    """

    display, family, fidelity = "CTKD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"curriculum_epochs": 5, "ce_weight": 1.0, "kd_weight": 1.0},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "li2023ctkd",
        "authors": "Li, Zheng and Li, Xiang and Yang, Lingfeng and Zhao, Borui and Song, Renjie and Luo, Lei and Li, Jun "
        "and Yang, Jian",
        "title": "Curriculum Temperature for Knowledge Distillation",
        "venue": "AAAI",
        "year": 2023,
        "arxiv": "2211.16231",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        start: Annotated[float, Range(above=0)] = 1.0,
        end: Annotated[float, Range(at_least=0, search=(2, 40), scale="log")] = 20.0,
        curriculum_epochs: Annotated[int, Range(at_least=1)] = 10,
        ce_weight: Annotated[float, Range(at_least=0)] = 0.1,
        kd_weight: Annotated[float, Range(at_least=0)] = 0.9,
    ) -> None:
        super().__init__(student, teacher, task)
        self.start = start
        self.end = end
        self.curriculum_epochs = curriculum_epochs
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        reversal = ctkd_schedule(batch.epoch + 1, self.curriculum_epochs)
        loss = ctkd_loss(student.logits, self.theta, teacher.logits, reversal, self.start, self.end)
        return {"ce": self.ce_weight * batch.task_loss(student.logits), "kd": self.kd_weight * loss}
