"""Softmax regression representation learning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import BatchNormAnySize


def srrl_losses(
    projected: Tensor, teacher_embedding: Tensor, logits: Tensor, teacher_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Feature matching and softmax regression (Yang et al. 2021), both mean squared errors.

    Args:
        projected: (B, d), the student's pooled, projected feature.
        teacher_embedding: (B, d), what enters the teacher's classifier.
        logits: (B, C), the teacher's classifier on ``projected``.
        teacher_logits: (B, C).
    """
    return F.mse_loss(projected, teacher_embedding), F.mse_loss(logits, teacher_logits)


@register_method("srrl")
class SRRL(Method):
    """Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021
    (openreview ZzwDy_wiWv).

    The student's last map goes through a 1 x 1 convolution, batch normalisation and ReLU to the teacher's width; its
    average is compared with the teacher's pooled vector and, through the teacher's frozen classifier, with its logits.
    The regression weight is 5 on CIFAR and 1 on ImageNet (cls_KD).

    Ours for heterogeneous pairs: the target is the vector that enters the teacher's classifier, after its final
    normalisation: the class token of a ViT, the mean of the normalised tokens of a Swin or a Mixer, the average-pooled
    map of a ResNet (there it is the paper's). A ReLU can reach no negative target, so it is left out whenever the
    teacher's vectors of the batch have a negative entry, which is always so after a layer normalisation (ViT, Swin,
    MLP, ConvNeXt) and never after a ReLU. The student's own class tokens take no part.
    """

    display, family, fidelity = "SRRL", "hint", "paper"
    needs = frozenset({"logits", "stages", "embedding", "classifier"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet1k": {"regression_weight": 1.0}}
    citation: ClassVar[dict[str, Any]] = {
        "key": "yang2021srrl",
        "authors": "Yang, Jing and Martinez, Brais and Bulat, Adrian and Tzimiropoulos, Georgios",
        "title": "Knowledge Distillation via Softmax Regression Representation Learning",
        "venue": "ICLR",
        "year": 2021,
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        feature_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        regression_weight: Annotated[float, Range(at_least=0, search=(0.1, 50), scale="log")] = 5.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.ce_weight = ce_weight
        self.feature_weight = feature_weight
        self.regression_weight = regression_weight
        self.connector = nn.Sequential(
            nn.Conv2d(student.stages[-1].channels, teacher.embedding_dim, 1, bias=False),
            BatchNormAnySize(teacher.embedding_dim),
        )

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.embedding is not None
        assert teacher.classifier is not None
        projected = self.connector(student.stages[-1].map)
        # a choice on the device: no value is read back
        projected = torch.where((teacher.embedding < 0).any(), projected, projected.relu()).mean(dim=(2, 3))
        feature, regression = srrl_losses(projected, teacher.embedding, teacher.classifier(projected), teacher.logits)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "feature": self.feature_weight * feature,
            "regression": self.regression_weight * regression,
        }
