"""UFD-KD: mean and deviation of features, over positions and over channels, each compared by direction."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import embedding_map, full_precision, kl_divergence, tokens_to_map
from kdbench.methods.scalekd import CrossAttentionProjector, frequency_loss, spatial_loss


def ufd_loss(student_map: Tensor, teacher_map: Tensor, dc_weight: float, ac_weight: float) -> Tensor:
    """Maps (B, c, h, w) split into their mean over the positions (DC) and the rest (AC), each of unit length over channels.

    dc_weight ||DC_s - DC_t||^2 + ac_weight ||AC_s - AC_t||^2 at each position, summed over positions, mean over the batch;
    DC is the same at all h w positions. The official code splits by a cosine transform, which is the same.
    """
    dc = spatial_loss(*(full_precision(value).mean(dim=(2, 3), keepdim=True) for value in (student_map, teacher_map)))
    positions = student_map[0, 0].numel()
    return dc_weight * positions * dc + ac_weight * frequency_loss(student_map, teacher_map)


def ufd_channel_loss(student_map: Tensor, teacher_map: Tensor, dc_weight: float, ac_weight: float) -> Tensor:
    """``ufd_loss`` with channels and positions exchanged: mean over the channels, unit length over the positions."""
    ours, theirs = (value.flatten(2).transpose(1, 2)[..., None] for value in (student_map, teacher_map))
    return ufd_loss(ours, theirs, dc_weight, ac_weight)


@register_method("ufd")
class UFD(Method):
    """Unified Frequency Decoupling Knowledge Distillation for Computer Vision (github.com/lusilili/UFD-KD).

    L = ce_weight CE + kd_weight KD + ``ufd_loss`` + ``ufd_channel_loss`` between the last maps. Each of the two has
    its own cross-attention projector (``kdbench.methods.scalekd``) from the student's map to the teacher's positions and
    width. Defaults are the official code's for CIFAR-100 at 224 px and for Swin-T to ResNet18 on ImageNet-1K; for
    Mixer-B/16 to MobileNetV2 it takes ``ac_weight`` 0.035 and ``channel_ac_weight`` 0.0045. KL stands for the code's soft
    cross-entropy, whose gradient is the same. 32 heads, or the largest number below that divides the teacher's width
    (the code has 24 for Swin-T).

    Ours: grids of any size; the teacher's map is brought into the space of its classifier by ``embedding_map``, so that
    its mean over the positions is the vector before the classifier, as it is in the code for nets that average after
    their final norm. The released projector enlarges its map twofold, which its own configurations do not allow; this one
    does not.

    Traps: the losses are sums over positions and over channels, so that their weights depend on the teacher's shape. A
    deviation from the mean of the size of rounding counts as 0; as a unit vector it would be noise of full length.
    """

    display, family, fidelity = "UFD-KD", "hint", "reference"
    needs = frozenset({"logits", "stages", "embedding"})
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
        "key": "ufdkd",
        "authors": "{lusilili} and others",
        "title": "Unified Frequency Decoupling Knowledge Distillation for Computer Vision",
        "venue": "GitHub, lusilili/UFD-KD",
        "year": 2025,
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        dc_weight: Annotated[float, Range(at_least=0, search=(0.003, 0.3), scale="log")] = 0.03,
        ac_weight: Annotated[float, Range(at_least=0, search=(0.0065, 0.65), scale="log")] = 0.065,
        channel_dc_weight: Annotated[float, Range(at_least=0, search=(0.0003, 0.03), scale="log")] = 0.003,
        channel_ac_weight: Annotated[float, Range(at_least=0, search=(0.00065, 0.065), scale="log")] = 0.0065,
        ce_weight: Annotated[float, Range(at_least=0)] = 0.5,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 0.5,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        softmax_scale: Annotated[float, Range(above=0)] = 5.0,
        heads: Annotated[int, Range(at_least=1)] = 32,
    ) -> None:
        super().__init__(student, teacher, task)
        self.weights = (dc_weight, ac_weight)
        self.channel_weights = (channel_dc_weight, channel_ac_weight)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        source, target = student.stages[-1], teacher.stages[-1]
        self.size = (target.height, target.width)
        self.spatial, self.channel = (
            CrossAttentionProjector(
                source.channels, target.channels, self.size, heads, softmax_scale, (source.height, source.width)
            )
            for _ in range(2)
        )

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        width = teacher.stages[-1].channels
        if width != teacher.embedding_dim:
            return f"the last map of {teacher.name} has {width} channels, its classifier reads {teacher.embedding_dim}"
        return None

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        assert teacher.embedding is not None
        source = student.stages[-1].map
        target = embedding_map(teacher.stages[-1].map, teacher.embedding)
        spatial, channel = (tokens_to_map(project(source), *self.size) for project in (self.spatial, self.channel))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "spatial": ufd_loss(spatial, target, *self.weights),
            "channel": ufd_channel_loss(channel, target, *self.channel_weights),
        }
