"""OFA-KD: every stage of the student gets an exit branch that learns from the teacher's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from kdbench import Batch, Feature, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import SepConv, init_like_ofa, one_hot
from kdbench.errors import HyperparameterError
from kdbench.method import NUM_STAGES, stage_numbers

#: Side of the token grid that OFA-KD merges down to, that of Swin's last stage at 224 px.
_GRID = 7


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target_mask: Tensor,
    eps: float | Sequence[float],
    temperature: float = 1.0,
) -> Tensor:
    """OFA loss (Hao et al., arXiv:2310.19444; the exponent is the paper's gamma).

    -sum_c [(p_t + m)^eps - m] log p_s, mean over the batch. Logits (B, C); ``target_mask`` m (B, C) is one-hot. With
    eps = 1 it is the cross-entropy with the teacher's distribution, whose gradient is that of KD; no factor T^2, as in
    the code.

    Several exits at once: student's logits (E, B, C), E exponents, losses (E,).
    """
    student_log = F.log_softmax(student_logits / temperature, dim=-1)
    teacher_prob = F.softmax(teacher_logits / temperature, dim=-1)
    if isinstance(eps, Sequence):
        each = {value: (teacher_prob + target_mask) ** value - target_mask for value in dict.fromkeys(eps)}
        coefficient = torch.stack([each[value] for value in eps])
    else:
        coefficient = (teacher_prob + target_mask) ** eps - target_mask
    return -(coefficient * student_log).sum(dim=-1).mean(dim=-1)


@register_method("ofa")
class OFA(Method):
    """Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    NeurIPS 2023 (arXiv:2310.19444).

    Training-only branches map the student's four stages to class logits; each branch and the final logits learn from
    the teacher's logits with ``ofa_loss``. Loss, branches, their initialisation and their sizes are those of the
    official code.

    ``ofa_weight`` is 1 by default, as in the released ``train.py``, which PAT and RSD ran. The author's own runs on
    CIFAR-100 had 0.1 (Hao840/OFAKD, issues 14 and 32, with logs): the preset ``cifar100``. The protocol ``as-released``
    keeps 1.

    ``eps`` is one exponent, or one for each stage and a last one for the final logits. The code's default is 1; the
    preset for ImageNet-1K, 1.5, is the value that its README gives for DeiT-T to ResNet18. Of the teacher only the
    width of the embedding enters the branches. After mixup or cutmix the target is the class with the largest share.

    Ours, where the official code has no answer: log-softmax in place of the logarithm of a softmax; class tokens
    counted with current timm; token grids are merged to 7 x 7 or, if that is smaller, to the grid of the student's
    last stage (equal to the code's rule at 224 px), odd grids padded with zeros; a linear layer where a stage needs no
    merging but is not as wide as the embedding; the largest number of heads up to 4 that divides the width; in a
    BatchNorm that sees a single value per channel (batch of one, 1 x 1 map) the running statistics.
    """

    display, family, fidelity = "OFA-KD", "hybrid", "reference"
    needs = frozenset({"logits", "stages"})
    version = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100": {"ofa_weight": 0.1},
        "imagenet1k": {"eps": 1.5},
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "hao2023ofa",
        "authors": "Hao, Zhiwei and Guo, Jianyuan and Han, Kai and Tang, Yehui and Hu, Han and Wang, Yunhe and Xu, "
        "Chang",
        "title": "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        "venue": "NeurIPS",
        "year": 2023,
        "arxiv": "2310.19444",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        eps: Annotated[float | tuple[float, ...], Range(above=0, search=(1, 2))] = 1.0,
        temperature: Annotated[float, Range(above=0)] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        ofa_weight: Annotated[float, Range(at_least=0, search=(0.03, 3), scale="log")] = 1.0,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.stages = tuple(stages)
        self.eps = _exponents(eps, len(self.stages))
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.ofa_weight = ofa_weight
        self.branches = nn.ModuleList(branch(student, teacher, number) for number in self.stages)
        init_like_ofa(self.branches)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        mask = one_hot(batch.hard_labels, student.logits.shape[1], teacher.logits.dtype)
        exits = [
            exit_branch(student.stages[number - 1])
            for number, exit_branch in zip(self.stages, self.branches, strict=True)
        ]
        losses = ofa_loss(torch.stack([*exits, student.logits]), teacher.logits, mask, self.eps, self.temperature)
        *stage_losses, final_loss = losses.unbind()
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * final_loss,
            "ofa": self.ofa_weight * sum(stage_losses, losses.new_zeros(())),
        }


def branch(student: NetInfo, teacher: NetInfo, number: int) -> nn.Module:
    """Exit branch of stage ``number`` (1 to 4): a module from its ``Feature`` to logits (B, C)."""
    stage = student.stages[number - 1]
    if stage.layout == "map":
        width = max(student.embedding_dim, teacher.embedding_dim)
        return MapBranch(stage.channels, width, student.num_classes, halvings=NUM_STAGES - number)
    target = min(_GRID, student.stages[-1].height, student.stages[-1].width)
    return TokenBranch(
        stage, student.embedding_dim, student.num_classes, blocks=max(NUM_STAGES - number, 1), target_grid=target
    )


class MapBranch(nn.Sequential):
    """Branch of a CNN: ``halvings`` separable convolutions (if none, a 1 x 1 one) to ``width``, pooling, linear."""

    def __init__(self, channels: int, width: int, num_classes: int, halvings: int) -> None:
        layers: list[nn.Module] = []
        for left in range(halvings, 0, -1):
            channels_out = width if left == 1 else channels * 2
            layers.append(SepConv(channels, channels_out))
            channels = channels_out
        if not layers:
            layers.append(nn.Conv2d(channels, width, 1))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

    def forward(self, feature: Feature) -> Tensor:
        return super().forward(feature.map)


class TokenBranch(nn.Module):
    """Branch of a ViT or MLP: patch merging to ``target_grid``, transformer blocks, class tokens or mean token, linear.

    Class tokens pass by the merging and are read out, all of them side by side; without any, the mean token is.
    """

    def __init__(self, stage: StageInfo, width: int, num_classes: int, blocks: int, target_grid: int) -> None:
        super().__init__()
        merges = max(int(math.log2(min(stage.height, stage.width) / target_grid)), 0)
        self.merge = nn.Sequential()
        for number in range(merges):
            # The code gives the last of several merges no activation, and the only one GELU.
            act = nn.GELU() if number == 0 or number < merges - 1 else nn.Identity()
            self.merge.append(PatchMerging(stage.channels if number == 0 else width, width, act))
        fits = stage.channels == width
        self.widen = nn.Identity() if merges or fits else nn.Linear(stage.channels, width)
        self.widen_class = nn.Identity() if fits or not stage.class_tokens else nn.Linear(stage.channels, width)
        heads = max(count for count in (1, 2, 3, 4) if width % count == 0)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.classifier = nn.Linear(width * max(stage.class_tokens, 1), num_classes)

    def forward(self, feature: Feature) -> Tensor:
        grid = self.merge(feature.map.permute(0, 2, 3, 1))
        tokens = self.widen(grid.flatten(1, 2))
        count = 0
        if feature.class_tokens is not None:
            count = feature.class_tokens.shape[1]
            tokens = torch.cat([self.widen_class(feature.class_tokens), tokens], dim=1)
        tokens = self.blocks(tokens)
        pooled = tokens[:, :count].flatten(1) if count else tokens.mean(dim=1)
        return self.classifier(pooled)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours of (B, h, w, d) on channels, normalise, map: (B, ceil(h/2), ceil(w/2), width)."""

    def __init__(self, channels: int, width: int, act: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, width, bias=False)
        self.act = act

    def forward(self, grid: Tensor) -> Tensor:
        height, width = grid.shape[1:3]
        grid = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
        # Order of the neighbours, (row, column): (0, 0), (1, 0), (0, 1), (1, 1).
        joined = torch.cat([grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.act(self.reduction(self.norm(joined)))


def _exponents(eps: Any, stages: int) -> tuple[float, ...]:
    """One exponent per stage and one for the final logits.

    Raises:
        HyperparameterError: for another number of values.
    """
    values = tuple(eps) if isinstance(eps, (tuple, list)) else (eps,)
    if len(values) not in (1, stages + 1):
        raise HyperparameterError(
            f"eps = {eps!r}: must be one number, or {stages + 1} (one for each stage, one for the final logits)"
        )
    return values if len(values) > 1 else values * (stages + 1)
