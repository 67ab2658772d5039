"""Logit distillation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened class distributions, times T^2 (Hinton et al. 2015, sec. 2).

    Logits (B, C); mean over the batch. 0, with zero gradient, when both differ by a constant per sample.
    """
    return kl_divergence(student_logits, teacher_logits, temperature)


@register_method("kd")
class KD(Method):
    """Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531).

    The defaults (T = 1, both weights 1) are those of OFA-KD's protocol, which are weak by the convention of the papers
    on CIFAR-100 at 32 px (T = 4, weights 0.1 and 0.9: mdistiller, RepDistiller), the preset ``cifar100-32``. On
    ImageNet, ResNet34 to ResNet18, mdistiller has T = 1 and 0.5 of either loss.

    Methods that add their own loss to KD's take these settings (``carries_kd``), so that what they add is not confounded
    with another temperature.
    """

    display, family, fidelity = "KD", "logits", "reference"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100-32": {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9},
        "imagenet1k-resnet18": {"ce_weight": 0.5, "kd_weight": 0.5},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "hinton2015kd",
        "authors": "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
        "title": "Distilling the Knowledge in a Neural Network",
        "venue": "arXiv",
        "year": 2015,
        "arxiv": "1503.02531",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature),
        }
