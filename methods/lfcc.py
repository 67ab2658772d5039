"""LFCC, reconstructed: contrast of low-pass filtered features in a compact space."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Feature, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import inner_products, kl_divergence
from kdbench.distributed import gather_batch
from kdbench.errors import HyperparameterError
from kdbench.method import stage_numbers


def contrast_loss(student_embedding: Tensor, teacher_embedding: Tensor, temperature: float) -> Tensor:
    """Contrast of each sample's student and teacher embeddings against those of the other samples of the batch.

    Embeddings (..., B, d) of length 1. With A = <s_i, t_j> / temperature, the cross-entropy of its rows and of its
    columns with the diagonal as target, averaged over both directions, the batch and the leading dimensions. A batch
    of one has no negatives: then 1 - <s, t>.
    """
    similarity = inner_products(student_embedding, teacher_embedding)
    if similarity.shape[-1] == 1:
        return (1 - similarity).mean()
    logits = similarity / temperature
    positives = logits.diagonal(dim1=-2, dim2=-1)
    return ((logits.logsumexp(-1) + logits.logsumexp(-2)) / 2 - positives).mean()


@register_method("lfcc")
class LFCC(Method):
    """Wu et al., Aligning in a Compact Space: Contrastive Knowledge Distillation between Heterogeneous Architectures,
    2024 (arXiv:2405.18524).

    A reconstruction: only the abstract was read, and no code is published. Known are multi-scale low-pass filters of
    two kinds on the intermediate features of both nets, one of them average pooling, a compact space, and contrast
    between samples. Everything else here is our choice and a hyper-parameter, so figures of the paper must not be set
    beside ours as if they were reproduced. That only the last stage is compared by default was chosen on held-out images of
    digits, among the variants of docs/lfcc.md.

    At each stage and for each scale g that both maps can hold, the teacher's map is average-pooled to g x g; the
    student's goes through a learnable smoothing filter (``LowPass``) first, unless ``kernel`` is 1. Each is flattened, mapped to ``dim``
    numbers by its own linear layer and normalised; ``contrast_loss`` compares them within the batch, over all
    processes. The loss is the supervised one, plus KD (at KD's settings on the suite), plus the mean of the contrasts over
    stages and scales.
    """

    display, family, fidelity = "LFCC", "hybrid", "reconstruction"
    needs = frozenset({"logits", "stages"})
    version = 2
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "wu2024lfcc",
        "authors": "Wu, Hongjun and Xiao, Li and Zhang, Xingkuo and Miao, Yining",
        "title": "Aligning in a Compact Space: Contrastive Knowledge Distillation between Heterogeneous Architectures",
        "venue": "arXiv",
        "year": 2024,
        "arxiv": "2405.18524",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        contrast_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        contrast_temperature: Annotated[float, Range(above=0, search=(0.03, 0.5), scale="log")] = 0.07,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        dim: Annotated[int, Range(at_least=1)] = 128,
        scales: Annotated[tuple[int, ...], Range(at_least=1)] = (1, 2, 4),
        kernel: Literal[1, 3, 5, 7] = 3,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (4,),
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        if not scales or len(set(scales)) != len(scales):
            raise HyperparameterError(f"scales = {scales!r}: must be distinct grid sizes")
        self.contrast_weight = contrast_weight
        self.contrast_temperature = contrast_temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.stages = tuple(stages)
        self.compact = nn.ModuleList()
        for number in self.stages:
            pair = student.stages[number - 1], teacher.stages[number - 1]
            fitting = tuple(g for g in scales if all(g <= min(stage.height, stage.width) for stage in pair))
            self.compact.append(CompactSpace(*pair, fitting, dim, kernel))
        if not any(space.scales for space in self.compact):
            raise HyperparameterError(f"scales = {scales!r}: every map of the stages {self.stages} is smaller")

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        embeddings: list[Tensor] = []
        for number, space in zip(self.stages, self.compact, strict=True):
            embeddings += space(student.stages[number - 1], teacher.stages[number - 1])
        # (2, stages and scales, world * B, dim): one gather for all of them
        joint = gather_batch(F.normalize(torch.stack(embeddings, dim=1), dim=-1)).permute(2, 1, 0, 3)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "contrast": self.contrast_weight * contrast_loss(joint[0], joint[1], self.contrast_temperature),
        }


class LowPass(nn.Module):
    """Learnable smoothing: depthwise convolutions whose kernels are non-negative and sum to 1.

    A kernel is a softmax over its taps, so its gain is 1 for constants and below 1 for every other frequency, whatever
    the parameters: it can only smooth. It starts as a box filter. Borders are replicated, so that a constant stays
    one.

    Args:
        channels: of the map.
        filters: number of kernels for each channel.
        kernel: side of the kernels, odd.
    """

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.logits = nn.Parameter(torch.zeros(channels, filters, kernel**2))

    @property
    def weight(self) -> Tensor:
        """The kernels, (channels, filters, kernel, kernel)."""
        return self.logits.softmax(dim=-1).unflatten(-1, (self.kernel, self.kernel))

    def forward(self, value: Tensor) -> Tensor:
        """(B, c, h, w) to (filters, B, c, h, w)."""
        channels, filters = self.logits.shape[:2]
        padded = F.pad(value, [self.kernel // 2] * 4, mode="replicate")
        smooth = F.conv2d(padded, self.weight.flatten(0, 1).unsqueeze(1), groups=channels)
        return smooth.unflatten(1, (channels, filters)).movedim(2, 0)


class CompactSpace(nn.Module):
    """Embeddings of one stage of both nets, one pair for each scale.

    Args:
        student, teacher: the stage of both nets.
        scales: sides of the pooled grids; may be empty.
        dim: width of the embeddings.
        kernel: side of the student's smoothing kernels.
    """

    def __init__(self, student: StageInfo, teacher: StageInfo, scales: tuple[int, ...], dim: int, kernel: int) -> None:
        super().__init__()
        self.scales = scales
        # A single position cannot be smoothed, nor does a single tap smooth; its kernel would never get a gradient.
        smooths = bool(scales) and student.num_tokens > 1 and kernel > 1
        self.low_pass = LowPass(student.channels, len(scales), kernel) if smooths else None
        self.student_linear = nn.ModuleList(nn.Linear(student.channels * g**2, dim) for g in scales)
        self.teacher_linear = nn.ModuleList(nn.Linear(teacher.channels * g**2, dim) for g in scales)

    def forward(self, student: Feature, teacher: Feature) -> list[Tensor]:
        """For each scale the embeddings (B, 2, dim), student first."""
        smooth = [student.map] * len(self.scales) if self.low_pass is None else self.low_pass(student.map)
        pairs = []
        for g, value, student_linear, teacher_linear in zip(
            self.scales, smooth, self.student_linear, self.teacher_linear, strict=True
        ):
            embeddings = [
                linear(F.adaptive_avg_pool2d(pooled, g).flatten(1))
                for linear, pooled in ((student_linear, value), (teacher_linear, teacher.map))
            ]
            pairs.append(torch.stack(embeddings, dim=1))
        return pairs
