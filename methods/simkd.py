"""Reused teacher classifier."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import BatchNormAnySize, embedding_map, resize_map
from kdbench.methods.catkd import why_no_class_maps


@register_method("simkd")
class SimKD(Method):
    """Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022 (arXiv:2203.14001).

    A projector (1 x 1, 3 x 3, 1 x 1 convolutions with batch normalisation, half the teacher's width inside) maps the
    student's last map onto the teacher's; the mean squared error is the only loss. At test time the teacher's
    classifier reads the pooled projection: projector and classifier belong to the deployed net and count in its
    size, and the student's own classifier is never trained. The larger map is average-pooled to the smaller grid.

    Ours: the teacher's classifier is copied into buffers at the first step, so that the checkpoint predicts without
    the teacher. Stage 4 lies before the final normalisation of ViT, Swin, MLP and ConvNeXt, and a ViT's classifier
    reads its class token, so the target is ``embedding_map`` of the teacher's map: its mean over the positions is the
    vector that enters the classifier, for every net, and for a ResNet it is the map itself, as in the paper. With a
    perfect projection the prediction is the teacher's.

    A final ReLU in the projector, as in the official code, reaches no negative target. It is kept only while the
    teacher's maps and vectors have shown no negative value (a ResNet; never a net with a layer normalisation), which is
    remembered in the buffer ``signed``.
    """

    display, family, fidelity = "SimKD", "hint", "paper"
    needs = frozenset({"logits", "stages", "embedding", "classifier"})
    predict_needs = frozenset({"logits", "stages"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "chen2022simkd",
        "authors": "Chen, Defang and Mei, Jian-Ping and Zhang, Hailin and Wang, Can and Feng, Yan and Chen, Chun",
        "title": "Knowledge Distillation with the Reused Teacher Classifier",
        "venue": "CVPR",
        "year": 2022,
        "arxiv": "2203.14001",
    }

    classifier_weight: Tensor
    classifier_bias: Tensor
    signed: Tensor

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        reduction: Annotated[int, Range(at_least=1)] = 2,
        feature_weight: Annotated[float, Range(above=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.feature_weight = feature_weight
        width = teacher.stages[-1].channels
        mid = max(width // reduction, 1)
        self.projector = nn.Sequential(
            nn.Conv2d(student.stages[-1].channels, mid, 1, bias=False),
            BatchNormAnySize(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, padding=1, bias=False),
            BatchNormAnySize(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, width, 1, bias=False),
            BatchNormAnySize(width),
        )
        self.register_buffer("classifier_weight", torch.zeros(teacher.num_classes, width))
        self.register_buffer("classifier_bias", torch.zeros(teacher.num_classes))
        self.register_buffer("signed", torch.zeros((), dtype=torch.bool))
        self._has_classifier = False  # of this process; the copy itself is in the checkpoint

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        return why_no_class_maps(teacher)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert teacher.stages is not None
        assert teacher.embedding is not None
        self._copy_classifier(teacher)
        value = teacher.stages[-1].map
        with torch.no_grad():
            self.signed.logical_or_((value < 0).any() | (teacher.embedding < 0).any())
        projected = self._project(student)
        target = embedding_map(resize_map(value, (projected.shape[2], projected.shape[3])), teacher.embedding)
        return {"feature": self.feature_weight * F.mse_loss(projected, target)}

    def predict(self, student: Outputs) -> Tensor:
        """Logits (B, C) of the teacher's classifier on the pooled projection."""
        return F.linear(self._project(student).mean(dim=(2, 3)), self.classifier_weight, self.classifier_bias)

    def _project(self, student: Outputs) -> Tensor:
        assert student.stages is not None
        value, stage = student.stages[-1].map, self.teacher_info.stages[-1]
        size = min(value.shape[2], stage.height), min(value.shape[3], stage.width)
        projected = self.projector(resize_map(value, size))
        # the clone, because a later step may change the buffer before this step's backward
        return torch.where(self.signed.clone(), projected, projected.relu())

    def _copy_classifier(self, teacher: Outputs) -> None:
        if self._has_classifier:
            return
        layer: nn.Linear = teacher.classifier  # type: ignore[assignment]  # supports() demands one linear layer
        with torch.no_grad():
            self.classifier_weight.copy_(layer.weight)
            if layer.bias is not None:
                self.classifier_bias.copy_(layer.bias)
        self._has_classifier = True
