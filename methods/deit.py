"""DeiT: the teacher's decision as a second label, for a distillation token where the student has one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


@register_method("deit")
class DeiT(Method):
    """Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, ICML 2021 (arXiv:2012.12877), hard.

    1/2 CE(z, y) + 1/2 CE(z_d, argmax z_t) (eq. 3), without label smoothing in the second; ``alpha`` is its share. z and z_d are
    the logits of class and distillation token of students that have two heads (timm's ``deit_*_distilled`` and
    ``deit_32px_small``, its distilled LeViTs), of which inference takes the mean. For any other student both are its
    logits, which is the distillation without a token of the paper's table 3.
    """

    display, family, fidelity = "DeiT", "logits", "paper"
    citation: ClassVar[dict[str, Any]] = {
        "key": "touvron2021deit",
        "authors": "Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and "
        "Jégou, Hervé",
        "title": "Training Data-Efficient Image Transformers & Distillation through Attention",
        "venue": "ICML",
        "year": 2021,
        "arxiv": "2012.12877",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        alpha: Annotated[float, Range(at_least=0, at_most=1, search=(0.1, 0.9))] = 0.5,
    ) -> None:
        super().__init__(student, teacher, task)
        self.alpha = alpha

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        own = distilled = student.logits
        heads = student.heads or ()
        if [head.shape for head in heads] == [own.shape] * 2:
            own, distilled = heads
        taught = self.distil(distilled, teacher.logits)
        return {"ce": (1 - self.alpha) * batch.task_loss(own), "kd": self.alpha * taught}

    def distil(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """What the distillation token, or the student, learns of the teacher; both (B, C)."""
        return F.cross_entropy(logits, teacher_logits.argmax(dim=1))


@register_method("deit-soft")
class DeiTSoft(DeiT):
    """Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, ICML 2021 (arXiv:2012.12877), soft.

    (1 - lambda) CE(z, y) + lambda tau^2 KL(z_t / tau || z_d / tau) (eq. 2), lambda = 0.1 (``alpha``) and tau = 3
    (``temperature``); z and z_d as in ``deit``. The official code divides the second by the number of classes
    too (a sum over all numbers, divided by their count); the paper's equation, which this is, does not.
    """

    display = "DeiT (soft)"

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        alpha: Annotated[float, Range(at_least=0, at_most=1, search=(0.1, 0.9))] = 0.1,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 3.0,
    ) -> None:
        super().__init__(student, teacher, task, alpha=alpha)
        self.temperature = temperature

    def distil(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The softened divergence."""
        return kl_divergence(logits, teacher_logits, self.temperature)
