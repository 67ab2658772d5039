"""Scale decoupled distillation: logit distillation in every cell of pooled class maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import embedding_map, full_precision, warmup_factor
from kdbench.errors import HyperparameterError
from kdbench.methods.catkd import why_no_class_maps
from kdbench.methods.dkd import split_target

#: Side of the grid that all cells are pooled from.
_GRID = 4


def sdd_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    scales: Sequence[int],
) -> Tensor:
    """DKD in every cell of the class maps, cells against the trend doubled (Wei et al. 2024, SD-DKD).

    Class maps (B, C, h, w), that is the classifier's output at every position; their grids may differ. target (B,)
    int64. Both maps are pooled to 4 x 4, and that to s x s cells for every s of ``scales``, of which the first is 1: the
    global cell. A cell has weight 2 where the teacher is right in it and not in the global cell, or the other way
    round, and 1 elsewhere. The weighted sum is divided by the number of samples times that of cells.
    """
    student, teacher, labels, weights = _cells(student_map, teacher_map, target, scales)
    student_two_way, student_others = split_target(student, labels, temperature)
    teacher_two_way, teacher_others = split_target(teacher, labels, temperature)
    rows = alpha * _divergences(student_two_way, teacher_two_way) + beta * _divergences(student_others, teacher_others)
    return temperature**2 * (weights * rows).mean()


def sdd_kd_loss(
    student_map: Tensor, teacher_map: Tensor, target: Tensor, temperature: float, scales: Sequence[int]
) -> Tensor:
    """KD in every cell of the class maps, weighted as in ``sdd_loss`` (Wei et al. 2024, SD-KD)."""
    student, teacher, _, weights = _cells(student_map, teacher_map, target, scales)
    student_log, teacher_log = (F.log_softmax(cells / temperature, dim=1) for cells in (student, teacher))
    return temperature**2 * (weights * _divergences(student_log, teacher_log)).mean()


def _cells(
    student_map: Tensor, teacher_map: Tensor, target: Tensor, scales: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The n cells of all samples as rows: logits of both (B * n, C), labels (B * n,), weights (B * n,)."""
    student, teacher = _pool(student_map, scales), _pool(teacher_map, scales)
    right = teacher.argmax(dim=2) == target.unsqueeze(1)
    weights = 1 + (right != right[:, :1]).to(teacher.dtype)
    return student.flatten(0, 1), teacher.flatten(0, 1), target.repeat_interleave(right.shape[1]), weights.flatten()


def _pool(class_map: Tensor, scales: Sequence[int]) -> Tensor:
    """(B, C, h, w) to the logits of all cells, (B, n, C)."""
    grid = F.adaptive_avg_pool2d(full_precision(class_map), _GRID)
    return torch.cat([F.adaptive_avg_pool2d(grid, scale).flatten(2) for scale in scales], dim=2).transpose(1, 2)


def _divergences(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """KL(teacher || student) of each row of log-probabilities."""
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)


class ScaleDecoupled(Method):
    """What SD-KD and SD-DKD share: the class maps."""

    family, fidelity = "logits", "reference"
    needs = frozenset({"logits", "stages", "embedding", "classifier"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "wei2024sdd",
        "authors": "Wei, Shicai and Luo, Chunbo and Luo, Yang",
        "title": "Scale Decoupled Distillation",
        "venue": "CVPR",
        "year": 2024,
        "arxiv": "2403.13512",
    }

    def __init__(self, student: NetInfo, teacher: NetInfo, task: Task, scales: tuple[int, ...]) -> None:
        super().__init__(student, teacher, task)
        if scales[:1] != (1,) or len(set(scales)) < len(scales):
            raise HyperparameterError(f"scales = {scales!r}: must begin with 1, the global cell, and repeat none")
        self.scales = scales

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        return why_no_class_maps(student) or why_no_class_maps(teacher)

    def class_map(self, outputs: Outputs) -> Tensor:
        """(B, C, 4, 4), pooled before the classifier: both are linear and commute, and this order is cheaper."""
        assert outputs.stages is not None
        assert outputs.embedding is not None
        assert outputs.classifier is not None
        grid = F.adaptive_avg_pool2d(embedding_map(outputs.stages[-1].map, outputs.embedding), _GRID)
        return outputs.classifier(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register_method("sdd-kd")
class SDKD(ScaleDecoupled):
    """Wei et al., Scale Decoupled Distillation, CVPR 2024 (arXiv:2403.13512).

    SD-KD: KD in every cell of the 1 x 1, 2 x 2 and 4 x 4 grids of both nets' class maps. The defaults (T 4, weights 0.1
    and 0.9, scales 1, 2, 4) are the official ones for CIFAR-100; VGG13 to VGG8 has the scales 1, 2. The official
    configurations for ImageNet set none of them, and neither does a preset here.

    Cells and nets are those of SD-DKD; see there.
    """

    display = "SD-KD"

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(0.5, 8), scale="log")] = 4.0,
        scales: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 4),
        ce_weight: Annotated[float, Range(at_least=0)] = 0.1,
        sdd_weight: Annotated[float, Range(at_least=0)] = 0.9,
    ) -> None:
        super().__init__(student, teacher, task, scales)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.sdd_weight = sdd_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        maps = self.class_map(student), self.class_map(teacher)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "sdd": self.sdd_weight * sdd_kd_loss(*maps, batch.hard_labels, self.temperature, self.scales),
        }


@register_method("sdd-dkd")
class SDDKD(ScaleDecoupled):
    """Wei et al., Scale Decoupled Distillation, CVPR 2024 (arXiv:2403.13512).

    SD-DKD: DKD in every cell of the 1 x 1, 2 x 2 and 4 x 4 grids of both nets' class maps. The defaults are the
    official ones for CIFAR-100 (alpha 1, beta 8, T 4, scales 1, 2, 4, warm-up over 20 epochs); beta is 2 for ResNet56
    to ResNet20 and ResNet110 to ResNet32, and 6 for VGG13, ResNet32 to MobileNetV2 and most pairs of WRN-40-2; VGG13 to
    VGG8 has the scales 1, 2. The preset ``imagenet1k`` is that of ResNet34 to ResNet18; ResNet50 to MobileNetV2 has
    beta 2 and the scales 1, 2, 4.

    During the first ``warmup_epochs`` epochs the term grows linearly, from 1 / ``warmup_epochs`` in the first one: a
    run shorter than that never gives it its full weight, one of n epochs n / ``warmup_epochs`` at most.

    All cells are pooled from a 4 x 4 grid: where 4 does not divide the map (7 x 7) its windows overlap, and the global
    cell is near the net's logits without being them; a smaller map is repeated. The nets' own logits serve the
    supervised loss alone. After mixup the target is the class with the largest soft label.

    Ours for heterogeneous pairs: stage 4 lies before the final normalisation of ViT, Swin, MLP and ConvNeXt, which does
    not commute with pooling, so every map first goes through ``embedding_map``: its mean through the classifier is the
    net's logits, for every net. A ViT's classifier was trained on the class token, so only the mean of its class
    maps, not their layout, enters its decision.
    """

    display = "SD-DKD"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"beta": 0.5, "temperature": 1.0, "scales": (1, 2), "warmup_epochs": 1},
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        alpha: Annotated[float, Range(at_least=0)] = 1.0,
        beta: Annotated[float, Range(at_least=0, search=(0.5, 16), scale="log")] = 8.0,
        temperature: Annotated[float, Range(above=0, search=(0.5, 8), scale="log")] = 4.0,
        scales: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 4),
        warmup_epochs: Annotated[int, Range(at_least=0)] = 20,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task, scales)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_epochs
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        maps = self.class_map(student), self.class_map(teacher)
        loss = sdd_loss(*maps, batch.hard_labels, self.alpha, self.beta, self.temperature, self.scales)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "sdd": warmup_factor(batch.epoch, self.warmup_epochs) * loss,
        }
