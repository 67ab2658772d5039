"""Class attention transfer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import embedding_map


def cat_loss(student_cam: Tensor, teacher_cam: Tensor, resolution: int, normalize: bool) -> Tensor:
    """Mean squared difference of class activation maps pooled to ``resolution`` x ``resolution`` (Guo et al. 2023).

    Maps (B, C, h, w), whose grids may differ. With ``normalize`` each class's map is scaled to unit length over its
    cells. 0, with zero gradient, for equal maps.
    """
    student_cam = F.adaptive_avg_pool2d(student_cam, resolution)
    teacher_cam = F.adaptive_avg_pool2d(teacher_cam, resolution)
    if normalize:
        student_cam, teacher_cam = _unit_maps(student_cam), _unit_maps(teacher_cam)
    return F.mse_loss(student_cam, teacher_cam)


def _unit_maps(cam: Tensor) -> Tensor:
    cells = cam.flatten(2)
    length = torch.linalg.vector_norm(cells, dim=2, keepdim=True)
    # a classifier that starts at zero (timm's MLPs) gives maps of zeros: dividing by a tiny number there, as is usual,
    # would give gradients of 1e12
    return cells / length.masked_fill(length <= 1e-12, 1.0)


@register_method("catkd")
class CATKD(Method):
    """Guo et al., Class Attention Transfer Based Knowledge Distillation, CVPR 2023 (arXiv:2304.12777).

    A class activation map is the classifier's weights applied at every position of the last stage, without the bias.
    The official code rewrites nets so that the classifier comes before the pooling; here the live classifier of the
    student and the frozen one of the teacher are applied to their maps, which is the same for a ResNet.

    The weight is set per pair: with equal architectures 0.7 to 15 on plain maps, with different ones 15 to 600 on
    normalised maps. The defaults are those of ResNet50 to MobileNetV2 (40, normalised, 2 x 2); for ImageNet those of
    the same pair (10, normalised: r50_mv2.yaml). ResNet34 to ResNet18 has 0.5 on plain maps of 4 x 4.

    Ours for heterogeneous pairs: stage 4 lies before the final normalisation of ViT, Swin, MLP and ConvNeXt, so every
    map first goes through ``embedding_map``: then, for every net, the mean of the class maps is the logits less their
    bias, as the paper requires. A ViT's classifier was trained on the class token, so only the mean of its class
    maps, not their layout, enters its decision.

    Trap: on a 1 x 1 map normalisation leaves only signs, and the term teaches nothing.
    """

    display, family, fidelity = "CAT-KD", "hint", "reference"
    needs = frozenset({"logits", "stages", "embedding", "classifier"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"cat_weight": 10.0},
        "imagenet1k-resnet18": {"cat_weight": 0.5, "resolution": 4, "normalize": False},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "guo2023catkd",
        "authors": "Guo, Ziyao and Yan, Haonan and Li, Hui and Lin, Xiaodong",
        "title": "Class Attention Transfer Based Knowledge Distillation",
        "venue": "CVPR",
        "year": 2023,
        "arxiv": "2304.12777",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        resolution: Annotated[int, Range(at_least=1)] = 2,
        normalize: bool = True,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        cat_weight: Annotated[float, Range(at_least=0, search=(0.5, 600), scale="log")] = 40.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.resolution = resolution
        self.normalize = normalize
        self.ce_weight = ce_weight
        self.cat_weight = cat_weight

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        return why_no_class_maps(student) or why_no_class_maps(teacher)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        loss = cat_loss(self._class_maps(student), self._class_maps(teacher), self.resolution, self.normalize)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "cat": self.cat_weight * loss,
        }

    def _class_maps(self, outputs: Outputs) -> Tensor:
        """(B, C, r, r), pooled before the classifier: both are linear and commute, and this order is cheaper."""
        assert outputs.stages is not None
        assert outputs.embedding is not None
        weight: Tensor = outputs.classifier.weight  # type: ignore[union-attr]  # supports() demands one linear layer
        cells = F.adaptive_avg_pool2d(embedding_map(outputs.stages[-1].map, outputs.embedding), self.resolution)
        return F.conv2d(cells, weight[:, :, None, None])


def why_no_class_maps(net: NetInfo) -> str | None:
    """The reason why the classifier of ``net`` cannot be applied at every position of its last stage, or None."""
    if not net.linear_classifier:
        return f"the classifier of {net.name} is not one linear layer, so it has no class activation maps"
    if net.stages[-1].channels != net.embedding_dim:
        return (
            f"stage 4 of {net.name} has {net.stages[-1].channels} channels, its classifier reads {net.embedding_dim};"
            ' let its taps end with "final"'
        )
    return None
