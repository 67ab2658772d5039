"""Knowledge review."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import BatchNormAnySize, resize_map, warmup_factor
from kdbench.method import stage_numbers

_LEVELS = (4, 2, 1)  # grids of the pyramid, finest first


def hcl_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hierarchical context loss of one stage (Chen et al. 2021).

    Maps of equal shape (B, c, h, w). The mean squared error of the maps and of their averages on 4 x 4, 2 x 2 and 1 x 1
    grids, only those coarser than the map, weighted 1, 1/2, 1/4, 1/8 in the order used and divided by the sum of the
    weights. 0, with zero gradient, for equal maps.
    """
    loss = F.mse_loss(student_map, teacher_map)
    weight, total = 1.0, 1.0
    for level in _LEVELS:
        if level >= student_map.shape[2]:
            continue
        weight /= 2
        total += weight
        pooled = F.adaptive_avg_pool2d(student_map, level), F.adaptive_avg_pool2d(teacher_map, level)
        loss = loss + weight * F.mse_loss(*pooled)
    return loss / total


class AttentionFusion(nn.Module):
    """Attention-based fusion of a student's stage with what came from the deeper one (Chen et al. 2021).

    Args:
        channels_in: width of the student's stage.
        mid: width inside, and of what is handed to the next shallower level.
        channels_out: width of the teacher's stage.
        fuse: False for the deepest level, which has nothing to fuse with.
    """

    def __init__(self, channels_in: int, mid: int, channels_out: int, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels_in, mid, 1, bias=False), BatchNormAnySize(mid))
        self.expand = nn.Sequential(
            nn.Conv2d(mid, channels_out, 3, padding=1, bias=False), BatchNormAnySize(channels_out)
        )
        self.gate = nn.Conv2d(2 * mid, 2, 1) if fuse else None
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(block.get_parameter("0.weight"), a=1)

    def forward(self, value: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return (B, channels_out, *size) to compare with the teacher, and (B, mid, *size) to hand on."""
        value = self.reduce(value)
        if self.gate is not None:
            assert deeper is not None
            deeper = resize_map(deeper, (value.shape[2], value.shape[3]))
            gates = self.gate(torch.cat([value, deeper], dim=1)).sigmoid()
            value = value * gates[:, :1] + deeper * gates[:, 1:]
        value = resize_map(value, size)
        return self.expand(value), value


@register_method("reviewkd")
class ReviewKD(Method):
    """Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021 (arXiv:2104.09044).

    The student's levels, from the pooled vector (as a 1 x 1 map) through ``stages``, deep ones first, are fused one
    after the other and each is compared with the teacher's level by ``hcl_loss``. The width inside is min(512, the
    student's pooled width). The weight is set per pair in the authors' scripts: 5 for most CIFAR-100 pairs (0.6 to 8), 1 on
    ImageNet. It ramps up linearly over ``warmup_epochs``, the first epoch having weight 1 / ``warmup_epochs``.

    The teacher's maps are those before the activation that ends a stage, as in the official code, which takes the
    student's so on ImageNet too (``student_preactivation``). mdistiller's recipe for ResNet34 to ResNet18 has batches of
    256 and a learning rate of 0.1.

    Ours for heterogeneous pairs: only ResNets end their stages with an activation; of other nets the outputs of the
    stages are taken. Grids are enlarged by nearest neighbours as in the code, and reduced by average pooling (the code,
    whose pairs never need it, would drop positions). Class tokens are dropped from the stages; a ViT's pooled vector is
    its class token.

    Trap: the errors are not normalised, so the term scales with the teacher's features. On one 1 x 1 map alone batch
    normalisation falls back on its running statistics.
    """

    display, family, fidelity = "ReviewKD", "hint", "reference"
    needs = frozenset({"logits", "stages", "preactivation", "embedding"})
    version = 2
    added_later = frozenset({"stages"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"review_weight": 1.0, "warmup_epochs": 1, "student_preactivation": True}
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "chen2021reviewkd",
        "authors": "Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya",
        "title": "Distilling Knowledge via Knowledge Review",
        "venue": "CVPR",
        "year": 2021,
        "arxiv": "2104.09044",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        review_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 5.0,
        warmup_epochs: Annotated[int, Range(at_least=0)] = 20,
        max_mid_channels: Annotated[int, Range(at_least=1)] = 512,
        student_preactivation: bool = False,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.stages = sorted(stages, reverse=True)
        self.ce_weight = ce_weight
        self.review_weight = review_weight
        self.warmup_epochs = warmup_epochs
        self.student_preactivation = student_preactivation
        widths_in = [student.embedding_dim, *(student.stages[n - 1].channels for n in self.stages)]
        widths_out = [teacher.embedding_dim, *(teacher.stages[n - 1].channels for n in self.stages)]
        mid = min(max_mid_channels, student.embedding_dim)
        self.fusions = nn.ModuleList(
            AttentionFusion(width_in, mid, width_out, fuse=level > 0)
            for level, (width_in, width_out) in enumerate(zip(widths_in, widths_out, strict=True))
        )

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        handed_on: Tensor | None = None
        losses = []
        levels = self._levels(student, self.student_preactivation), self._levels(teacher, True)
        for fusion, value, target in zip(self.fusions, *levels, strict=True):
            compared, handed_on = fusion(value, handed_on, (target.shape[2], target.shape[3]))
            losses.append(hcl_loss(compared, target))
        # the official trainer counts epochs from 1, Batch from 0
        ramp = warmup_factor(batch.epoch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "review": ramp * self.review_weight * sum(losses[1:], losses[0]),
        }

    def _levels(self, outputs: Outputs, preactivation: bool) -> list[Tensor]:
        """The pooled vector as a 1 x 1 map, then maps from deep to shallow, before their last activation where there is one."""
        assert outputs.stages is not None
        assert outputs.embedding is not None
        chosen = [outputs.stages[number - 1] for number in self.stages]
        maps = [
            stage.preactivation if preactivation and stage.preactivation is not None else stage.map for stage in chosen
        ]
        return [outputs.embedding[:, :, None, None], *maps]
