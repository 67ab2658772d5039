"""Relation distillation by distances between two samples and angles between three."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.distributed import gather_batch

#: Distances between two samples are at least this, and differences shorter than ``_MIN_LENGTH`` have no direction.
_MIN_DISTANCE = 1e-6
_MIN_LENGTH = 1e-12

#: Angles held at once: 2^25 of them are 128 MiB in float32. A batch of 128 has 2^21, one of 1024 has 2^30.
_MAX_ANGLES = 2**25


def rkd_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Weighted sum of the distance-wise and the angle-wise loss (Park et al. 2019); see ``rkd_terms``."""
    distance, angle = rkd_terms(student_embedding, teacher_embedding)
    return distance_weight * distance + angle_weight * angle


def rkd_terms(student_embedding: Tensor, teacher_embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 between the distances of both nets, mean over B^2, and between their angles, mean over B^3.

    Embeddings (B, d_s) and (B, d_t), anything after the batch flattened. Distances are over their mean in the batch.
    Both are 0, with zero gradient, when the embeddings agree up to rotation, shift and scale, and for a single sample.
    The order of the batch does not matter.
    """
    student = student_embedding.flatten(1).to(torch.promote_types(student_embedding.dtype, torch.float32))
    teacher = teacher_embedding.flatten(1).to(torch.promote_types(teacher_embedding.dtype, torch.float32))
    student_lengths, teacher_lengths = _lengths(student), _lengths(teacher)
    distance = F.smooth_l1_loss(_relative(student_lengths), _relative(teacher_lengths))
    return distance, _angle_loss(student_lengths, teacher_lengths)


def _lengths(embedding: Tensor) -> Tensor:
    """Lengths of all differences, (B, B); 0, with gradient 0, between equal samples.

    The value comes from the differences, since products would leave equal samples a rounding error apart. The gradient
    comes through products, since that of ``cdist`` has a (B, B, d) tensor on a GPU.
    """
    embedding = embedding - embedding.mean(dim=0, keepdim=True)
    with torch.no_grad():
        exact = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    with torch.autocast(embedding.device.type, enabled=False):
        gram = embedding @ embedding.t()
    squares = gram.diagonal().unsqueeze(1) + gram.diagonal().unsqueeze(0) - 2 * gram
    return exact + (squares - squares.detach()) * _reciprocal(exact) / 2


def _reciprocal(lengths: Tensor) -> Tensor:
    """1 / length, and 0 with gradient 0 where there is no length."""
    return lengths.masked_fill(lengths <= _MIN_LENGTH, torch.inf).reciprocal()


def _relative(lengths: Tensor) -> Tensor:
    """Distances over their mean, without the diagonal, whose entries are 0."""
    count = len(lengths)
    same = torch.eye(count, dtype=torch.bool, device=lengths.device)
    distances = lengths.clamp_min(_MIN_DISTANCE).masked_fill(same, 0.0)
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / mean.clamp_min(_MIN_LENGTH)  # the bound is for a single sample, which has no distance


def _cosines(lengths: Tensor, first: int, last: int) -> Tensor:
    """Cosines (last - first, B, B) of the angles at samples k in [first, last) between the directions to i and to j.

    By the law of cosines, from the lengths (B, B) alone: no (B, B, d) tensor of differences, and, unlike subtracted
    inner products, safe for samples that nearly coincide. A sample has no direction to itself or to its duplicate: 0
    there, as after a normalisation that guards against 0, but with gradient 0 and not 1e12.
    """
    squares = lengths.square()
    inner = (squares[first:last, :, None] + squares[first:last, None, :] - squares) / 2
    inverse = _reciprocal(lengths[first:last])
    return inner * inverse.unsqueeze(2) * inverse.unsqueeze(1)


def _angle_loss(student_lengths: Tensor, teacher_lengths: Tensor) -> Tensor:
    count = len(student_lengths)
    step = max(_MAX_ANGLES // count**2, 1)

    def part(first: int, lengths: Tensor) -> Tensor:
        last = min(first + step, count)
        angles, wanted = _cosines(lengths, first, last), _cosines(teacher_lengths, first, last)
        return F.smooth_l1_loss(angles, wanted, reduction="sum")

    if step >= count:
        return part(0, student_lengths) / count**3
    # Large batches by parts, whose angles are computed again in the backward pass: memory for one part instead of B^3.
    parts = [
        checkpoint(part, first, student_lengths, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, count, step)
    ]
    return torch.stack(parts).sum() / count**3


@register_method("rkd")
class RKD(Method):
    """Park et al., Relational Knowledge Distillation, CVPR 2019 (arXiv:1904.05068).

    On the pooled embeddings, of any two widths: no projector. The weights are the authors' 25 and 50, and both terms
    are over the joint batch of all processes. The angles of a batch are B^3 numbers, so the time grows with the cube
    of the batch; their memory does not beyond a batch of 322.
    """

    display, family, fidelity = "RKD", "relation", "reference"
    needs = frozenset({"logits", "embedding"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "park2019rkd",
        "authors": "Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu",
        "title": "Relational Knowledge Distillation",
        "venue": "CVPR",
        "year": 2019,
        "arxiv": "1904.05068",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        distance_weight: Annotated[float, Range(at_least=0, search=(2.5, 250), scale="log")] = 25.0,
        angle_weight: Annotated[float, Range(at_least=0, search=(5, 500), scale="log")] = 50.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.ce_weight = ce_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        distance, angle = rkd_terms(gather_batch(student.embedding), gather_batch(teacher.embedding))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "distance": self.distance_weight * distance,
            "angle": self.angle_weight * angle,
        }
