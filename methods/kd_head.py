"""KD whose teacher goes on learning in its classifier."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


@register_method("kd-head")
class KDHead(Method):
    """Li and Jin, Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer, NeurIPS 2022: KD with reversed
    distillation into the teacher's head.

    A baseline of that paper, KD† (head) in table 1 of its submitted version: the pre-trained teacher learns with the student,
    by mutual learning (DML), and only its classifier is updated. Student and head each have the supervised loss and the KL
    divergence to the other's predictions, lambda = 1; the paper's tau is 4. ``ce_weight`` and ``kd_weight`` belong to the
    student and are KD's; ``reverse_weight`` is the lambda of the head, whose supervised loss has weight 1. At
    ``reverse_weight`` 0 the head is fine-tuned by the labels alone.

    SHAKE itself has another head, which is not here: as released, convolutions that fuse three stages of the teacher, below its
    frozen classifier.

    Ours: the paper says in a line what is updated, and has the losses of DML for it. The head is a copy of the teacher's
    classifier, made at the first step, that reads the frozen teacher's embedding. Both losses take the other's predictions
    as constants, and one optimiser takes one step for both, where DML alternates. The head is left behind.
    """

    display, family, fidelity = "KD (trained head)", "logits", "reconstruction"
    needs = frozenset({"logits", "embedding", "classifier"})
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "li2022shake",
        "authors": "Li, Lujun and Jin, Zhe",
        "title": "Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer",
        "venue": "NeurIPS",
        "year": 2022,
    }

    filled: Tensor

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 4.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        reverse_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.reverse_weight = reverse_weight
        self.head = nn.Linear(teacher.embedding_dim, teacher.num_classes)
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        if not teacher.linear_classifier:
            return f"the classifier of {teacher.name} is not one linear layer, so it has no copy to train"
        return None

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        self._fill_head(teacher)
        logits = self.head(teacher.embedding)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, logits.detach(), self.temperature),
            "head_ce": batch.task_loss(logits),
            "reverse": self.reverse_weight * kl_divergence(logits, student.logits.detach(), self.temperature),
        }

    @torch.no_grad()
    def _fill_head(self, teacher: Outputs) -> None:
        """Begin as the teacher's classifier; later, and in a run that is resumed, keep what the head has learned."""
        layer: nn.Linear = teacher.classifier  # type: ignore[assignment]  # supports() demands one linear layer
        weight, bias = self.head.weight, self.head.bias
        weight.copy_(torch.where(self.filled, weight, layer.weight))
        bias.copy_(torch.where(self.filled, bias, torch.zeros_like(bias) if layer.bias is None else layer.bias))
        self.filled.fill_(True)
