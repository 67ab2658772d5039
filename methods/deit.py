"""DeiT: the teacher's decision as a second label, for a distillation token where the student has one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


@register_method("deit")
class DeiT(Method):
    """Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, ICML 2021 (arXiv:2012.12877).

    ``hard`` (eq. 3): 1/2 CE(z, y) + 1/2 CE(z_d, argmax z_t), without label smoothing in the second. ``soft`` (eq. 2):
    (1 - lambda) CE(z, y) + lambda tau^2 KL(z_t / tau || z_d / tau), lambda = 0.1 and tau = 3 in the paper
    (``--set deit.kind=soft``, ``alpha=0.1``, ``temperature=3``); ``alpha`` is lambda, and the half of ``hard``. z and z_d are
    the logits of class and distillation token of students that have two heads (timm's ``deit_*_distilled``,
    ``deit_32px_small`` and LeViT's distilled ones), of which inference takes the mean. For any other student both are its
    logits, which is the distillation without a token of the paper's table 3.

    The official code divides the soft loss by the number of classes too (``reduction="sum"`` over ``numel()``); the paper's
    equation, which this is, does not.
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
        kind: Literal["hard", "soft"] = "hard",
        alpha: Annotated[float, Range(at_least=0, at_most=1, search=(0.1, 0.9))] = 0.5,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 3.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.kind = kind
        self.alpha = alpha
        self.temperature = temperature

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        own, distilled = student.logits, student.logits
        if student.heads is not None and all(head.shape == own.shape for head in student.heads):
            own, distilled = student.heads
        if self.kind == "hard":
            taught = F.cross_entropy(distilled, teacher.logits.argmax(dim=1))
        else:
            taught = kl_divergence(distilled, teacher.logits, self.temperature)
        return {"ce": (1 - self.alpha) * batch.task_loss(own), "kd": self.alpha * taught}
