"""ScaleKD: cross-attention gives the student's maps the teacher's form; a frozen teacher stage reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import BatchNormAnySize, full_precision, kl_divergence, tokens_to_map


def spatial_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared distance of maps (B, c, h, w) that have unit length over the channels at each position (arXiv:2411.06786).

    The sum over channels and positions, mean over the batch: 2 - 2 cos for each position.
    """
    difference = F.normalize(full_precision(student_map)) - F.normalize(full_precision(teacher_map))
    return difference.square().sum() / len(difference)


def frequency_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """``spatial_loss`` of the maps (B, c, h, w) without their mean over the positions (arXiv:2411.06786).

    The official code sets the first coefficient of a cosine transform to 0 and transforms back, which is the same. A
    position whose deviation from the mean is no more than rounding counts as 0 and has no gradient.
    """
    return spatial_loss(_without_mean(student_map), _without_mean(teacher_map))


def _without_mean(value: Tensor) -> Tensor:
    value = full_precision(value)
    deviation = value - value.mean(dim=(2, 3), keepdim=True)
    noise = 32 * torch.finfo(value.dtype).eps * value.detach().norm(dim=1, keepdim=True)
    return torch.where(deviation.detach().norm(dim=1, keepdim=True) > noise, deviation, 0)


class CrossAttentionProjector(nn.Module):
    """A student map (B, c_s, h, w) to tokens (B, n, c_t): one cross-attention and one MLP (arXiv:2411.06786, "CAP").

    Keys and values are the map after a 3 x 3 convolution, with learned positions; queries are learned, or given.

    Args:
        student_channels: c_s.
        teacher_channels: c_t.
        query_size: grid of the teacher's positions, whose product is n; None for a projector that is given its queries.
        heads: the number of heads, or the largest below that divides ``teacher_channels``.
        softmax_scale: a factor on the logits of the attention.
        student_size: (h, w); the teacher's grid if left out.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        query_size: tuple[int, int] | None,
        heads: int,
        softmax_scale: float = 5.0,
        student_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        size = student_size or query_size
        assert size is not None
        self.heads = max(n for n in range(1, heads + 1) if teacher_channels % n == 0)
        self.scale = softmax_scale * (teacher_channels // self.heads) ** -0.5
        self.student = nn.Sequential(
            nn.Conv2d(student_channels, student_channels, 3, padding=1), BatchNormAnySize(student_channels), nn.ReLU()
        )
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, student_channels, *size), std=0.02))
        self.queries = (
            nn.Parameter(torch.randn(query_size[0] * query_size[1], teacher_channels)) if query_size else None
        )
        self.embed_query = nn.Sequential(nn.Linear(teacher_channels, teacher_channels), nn.ReLU())
        self.query = nn.Linear(teacher_channels, teacher_channels)
        self.key = nn.Linear(student_channels, teacher_channels)
        self.value = nn.Linear(student_channels, teacher_channels)
        self.out = nn.Linear(teacher_channels, teacher_channels)
        self.norm = nn.LayerNorm(teacher_channels)
        self.mlp = nn.Sequential(
            nn.Linear(teacher_channels, 4 * teacher_channels),
            nn.ReLU(),
            nn.Linear(4 * teacher_channels, teacher_channels),
        )

    def forward(self, student_map: Tensor, queries: Tensor | None = None) -> Tensor:
        """Map (B, c_s, h, w) to tokens (B, n, c_t), row by row; ``queries`` (B, n, c_t) in place of the own ones."""
        if queries is None:
            assert self.queries is not None
            queries = self.queries.expand(len(student_map), -1, -1)
        source = (self.student(student_map) + self.positions).flatten(2).transpose(1, 2)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.embed_query(queries)), self.key(source), self.value(source))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale).transpose(1, 2).flatten(2)
        tokens = self.norm(self.out(mixed))
        return tokens + self.mlp(tokens)


@register_method("scalekd")
class ScaleKD(Method):
    """Fan et al., ScaleKD: Strong Vision Transformers Could Be Excellent Teachers, NeurIPS 2024 (arXiv:2411.06786).

    L = ce_weight CE + kd_weight KD + sum over stages 3 and 4 of (spatial_weight ``spatial_loss`` + frequency_weight
    ``frequency_loss``). Either loss has a projector of its own at each stage. Stage 3's gives the student's third map the
    form of the teacher's; the teacher's frozen stage 4 and final norm read it, and pass the gradient on. Stage 4's gives
    the student's fourth map the form of the teacher's final map, with the result of stage 3 as its queries, not detached.
    Both are compared with the teacher's final map. Defaults are the official code's for Swin teachers on ImageNet-1K; it
    has none for CIFAR-100. KL stands for the code's soft cross-entropy, whose gradient is the same.

    The losses are sums over the teacher's positions: the weights are for 49. For EVA's 256 the code takes 0.016 and
    0.008, and 0.2 for ``softmax_scale``. ``heads`` are those of stages 3 and 4 for Swin-B (Swin-S 3 and 6, Swin-L 16 and
    24); where they do not divide the teacher's width, the largest number below that does is taken.

    Ours: grids of any size, with positions of the student's grid; teachers of any kind that can be run stage by stage;
    beside the projected positions, a teacher's stage 4 gets the class tokens that its own stage 3 has made of the image;
    for a teacher with batch normalisation it is in eval mode, as always.
    """

    display, family, fidelity = "ScaleKD", "hint", "reference"
    needs = frozenset({"logits", "stages", "stagewise"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar100": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
        "cifar100-32": {},  # KD's settings
        "imagenet1k": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
    }
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "fan2024scalekd",
        "authors": "Fan, Jiawei and Li, Chao and Liu, Xiaolong and Yao, Anbang",
        "title": "ScaleKD: Strong Vision Transformers Could Be Excellent Teachers",
        "venue": "NeurIPS",
        "year": 2024,
        "arxiv": "2411.06786",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        spatial_weight: Annotated[float, Range(at_least=0, search=(0.008, 0.8), scale="log")] = 0.08,
        frequency_weight: Annotated[float, Range(at_least=0, search=(0.006, 0.6), scale="log")] = 0.06,
        ce_weight: Annotated[float, Range(at_least=0)] = 0.5,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 0.5,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        softmax_scale: Annotated[float, Range(above=0, search=(0.2, 5), scale="log")] = 5.0,
        heads: Annotated[tuple[int, int], Range(at_least=1)] = (8, 16),
    ) -> None:
        super().__init__(student, teacher, task)
        self.spatial_weight = spatial_weight
        self.frequency_weight = frequency_weight
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        third, fourth, entry = student.stages[2], student.stages[3], teacher.stage_inputs[3]
        self.size = (entry.height, entry.width)
        self.third, self.fourth = nn.ModuleList(), nn.ModuleList()
        for _ in ("spatial", "frequency"):
            self.third.append(
                CrossAttentionProjector(
                    third.channels, entry.channels, self.size, heads[0], softmax_scale, (third.height, third.width)
                )
            )
            self.fourth.append(
                CrossAttentionProjector(
                    fourth.channels, teacher.embedding_dim, None, heads[1], softmax_scale, (fourth.height, fourth.width)
                )
            )

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        if not teacher.stagewise:
            return f"projected features go through the teacher's stage 4; {teacher.name} does not run stage by stage"
        return None

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        assert teacher.stagewise is not None
        net, own_third, own_fourth = teacher.stagewise, teacher.stages[2], teacher.stages[3]
        target = net.final(net.state_from_map(own_fourth.map, own_fourth.class_tokens)).map
        losses = []
        for third, fourth, loss in zip(self.third, self.fourth, (spatial_loss, frequency_loss), strict=True):
            projected = tokens_to_map(third(student.stages[2].map), *self.size)
            read = net.final(net.stage(4, net.state_from_map(projected, own_third.class_tokens))).map
            tokens = fourth(student.stages[3].map, read.flatten(2).transpose(1, 2))
            losses.append(loss(read, target) + loss(tokens_to_map(tokens, *target.shape[2:]), target))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "spatial": self.spatial_weight * losses[0],
            "frequency": self.frequency_weight * losses[1],
        }
