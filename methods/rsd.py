"""Distillation by the cross-correlation between the dimensions of both embeddings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import init_like_ofa
from kdbench.distributed import gather_batch


def rsd_loss(student_embedding: Tensor, teacher_embedding: Tensor, kappa: float = 0.01) -> Tensor:
    """Squared distance of the cross-correlation of the dimensions from the identity, off the diagonal times ``kappa``.

    Embeddings (B, d) of one width; each dimension is standardised over the batch. A sum over d x d entries, so it grows
    with d. The minimum, about 0, is a student that equals a teacher of uncorrelated dimensions, up to a positive factor
    and a shift of each; a teacher of correlated dimensions keeps it above 0. The order of the batch does not matter. A
    single sample has no correlation: d, with zero gradient.
    """
    student, teacher = _standardize(student_embedding), _standardize(teacher_embedding)
    with torch.autocast(student.device.type, enabled=False):
        correlation = teacher.t() @ student / len(student)
    residual = correlation - torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    return kappa * residual.square().sum() + (1 - kappa) * residual.diagonal().square().sum()


def _standardize(embedding: Tensor) -> Tensor:
    """Mean 0 and (population) deviation 1 of each dimension over the batch, up to 1e-5 in the deviation."""
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    deviation = embedding.std(dim=0, correction=0, keepdim=True)
    return (embedding - embedding.mean(dim=0, keepdim=True)) / (deviation + 1e-5)


@register_method("rsd")
class RSD(Method):
    """Cross-Architecture Distillation Made Simple with Redundancy Suppression, ICCV 2025 (arXiv:2507.21844).

    The student's embedding passes a projector (linear, batch normalisation, GELU, linear) to the teacher's width. Needs
    a batch that is large beside 1; the loss is a sum over d_t x d_t entries.

    Under several processes the embeddings of all of them are gathered before the projector, so that the statistics of
    its batch normalisation, like those of the loss, are of the joint batch, with or without SyncBatchNorm; each process
    projects the joint batch. The official code has the statistics of each process. With one sample in the joint batch
    the normalisation uses its running statistics, as a single value has no deviation.
    """

    display, family, fidelity = "RSD", "relation", "reference"
    needs = frozenset({"logits", "embedding"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "zhang2025rsd",
        "authors": "Zhang, Weijia and Liu, Yuehao and Ran, Wu and Ma, Chao",
        "title": "Cross-Architecture Distillation Made Simple with Redundancy Suppression",
        "venue": "ICCV",
        "year": 2025,
        "arxiv": "2507.21844",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        expansion: Annotated[int, Range(at_least=1)] = 2,
        kappa: Annotated[float, Range(at_least=0, search=(0.001, 0.1), scale="log")] = 0.01,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        rsd_weight: Annotated[float, Range(at_least=0, search=(0.01, 1), scale="log")] = 0.1,
    ) -> None:
        super().__init__(student, teacher, task)
        self.expansion = expansion
        self.kappa = kappa
        self.ce_weight = ce_weight
        self.rsd_weight = rsd_weight
        width = expansion * student.embedding_dim
        self.expand = nn.Linear(student.embedding_dim, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.reduce = nn.Linear(width, teacher.embedding_dim, bias=False)
        init_like_ofa(self)

    def project(self, embedding: Tensor) -> Tensor:
        """Student embedding (B, d_s) to the teacher's width, (B, d_t)."""
        hidden = self.expand(embedding.to(self.expand.weight.dtype))
        norm = self.norm
        # By hand, since what is normalised is the joint batch already, which a layer that synchronises would join again.
        hidden = F.batch_norm(
            hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias,
            training=norm.training and len(hidden) > 1, momentum=norm.momentum or 0.0, eps=norm.eps,
        )  # fmt: skip
        return self.reduce(F.gelu(hidden))

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        projected = self.project(gather_batch(student.embedding))
        loss = rsd_loss(projected, gather_batch(teacher.embedding), self.kappa)
        return {"ce": self.ce_weight * batch.task_loss(student.logits), "rsd": self.rsd_weight * loss}
