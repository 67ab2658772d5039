"""V_kD: an orthogonal projection of the student's embedding onto the teacher's normalised one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence


def vkd_loss(student_embedding: Tensor, teacher_embedding: Tensor, projection_weight: Tensor) -> Tensor:
    """V_kD loss (Miles et al., arXiv:2403.06213): smooth L1, mean over batch and channels.

    Student (B, d_s) times ``projection_weight`` (d_t, d_s) against the teacher (B, d_t), which a layer normalisation
    without affine parameters precedes. The student's side is not normalised.
    """
    target = F.layer_norm(teacher_embedding, teacher_embedding.shape[1:])
    return F.smooth_l1_loss(F.linear(student_embedding, projection_weight), target)


class SemiOrthogonal(nn.Module):
    """A trainable matrix W (``rows``, ``columns``) with W^T W = I, or W W^T = I where it is wide.

    W = Q H(V), with Q a random orthogonal matrix, kept in a buffer, and H the product of Householder reflections by the
    columns of V, which starts at the identity: any V gives an orthogonal W, so that optimiser, weight decay and averages
    of weights may change V as they do. The map is that of ``torch.nn.utils.parametrizations.orthogonal``, which keeps
    signs on the diagonal of its parameter and rounds them towards 0: its first step with weight decay makes W zero.
    """

    base: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.wide = rows < columns
        long, short = max(rows, columns), min(rows, columns)
        self.vectors = nn.Parameter(torch.zeros(long, short))  # below the diagonal, which is 1
        self.register_buffer("base", nn.init.orthogonal_(torch.empty(long, long)))

    def forward(self) -> Tensor:
        """W, in the precision of its parameter under autocast too, where it would be orthogonal to 4e-3 only."""
        with torch.autocast(self.vectors.device.type, enabled=False):
            weight = self.base @ reflections(self.vectors)
        return weight.T if self.wide else weight


def reflections(vectors: Tensor) -> Tensor:
    """-H_1 ... H_k without its last columns, (n, k), of the reflections by the k columns v of ``vectors`` (n, k).

    Only what lies below the diagonal counts; the diagonal is 1. In the compact form I - V T V^T, T^-1 the upper triangle
    of V^T V with half the diagonal (Puglisi, SIAM J. Sci. Stat. Comput. 13, 1992): a few matrix products, where the
    gradient of ``torch.linalg.householder_product`` takes k of them with n x n matrices, one after the other.
    """
    identity = torch.eye(*vectors.shape, dtype=vectors.dtype, device=vectors.device)
    vectors = vectors.tril(-1) + identity
    gram = vectors.T @ vectors
    inverse = gram.triu(1) + torch.diag(gram.diagonal() / 2)
    top = vectors[: len(gram)].T
    return vectors @ torch.linalg.solve_triangular(inverse, top, upper=True) - identity


@register_method("vkd")
class VKD(Method):
    """Miles et al., VkD: Improving Knowledge Distillation using Orthogonal Projections, CVPR 2024 (arXiv:2403.06213).

    L = ce_weight CE + kd_weight KD + vkd_weight ``vkd_loss``. The student's embedding, the mean over the positions
    of its last stage without class tokens, goes through a semi-orthogonal projection to the teacher's width. The teacher's
    embedding is the vector before its classifier, in the paper the mean of a RegNetY's last map. Defaults are the
    official code's for ImageNet-1K (KD at T = 1); it has none for CIFAR-100.

    Ours: CE and KL share the student's only classifier, where the code's DeiT has a head for each; a last stage lies
    before the final norm of ViT, Swin, MLP and ConvNeXt; of a teacher with class tokens the vector before the classifier
    is taken like any other's; reflections also parametrise a square projection, for which torch takes the matrix
    exponential. Product and projection are computed in single precision under autocast.

    Trap: where the teacher is narrower than the student, part of the student's space is not seen by the loss.
    """

    display, family, fidelity = "VkD", "hint", "reference"
    needs = frozenset({"logits", "stages", "embedding"})
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "miles2024vkd",
        "authors": "Miles, Roy and Elezi, Ismail and Deng, Jiankang",
        "title": "VkD: Improving Knowledge Distillation using Orthogonal Projections",
        "venue": "CVPR",
        "year": 2024,
        "arxiv": "2403.06213",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        vkd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.vkd_weight = vkd_weight
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.project = SemiOrthogonal(teacher.embedding_dim, student.stages[-1].channels)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.embedding is not None
        weight = self.project()
        with torch.autocast(weight.device.type, enabled=False):
            embedding = student.stages[-1].map.to(weight.dtype).mean(dim=(2, 3))
            vkd = vkd_loss(embedding, teacher.embedding.to(weight.dtype), weight)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "vkd": self.vkd_weight * vkd,
        }
