"""Relation distillation by the probability that one sample of the batch is the neighbour of another."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, inner_products
from kdbench.distributed import gather_batch

#: Added to norms and inside the logarithm. Below the resolution of half precision, so half precision is left first.
_EPS = 1e-7


def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """KL divergence of the neighbour distributions of both nets, mean over B^2 (Passalis and Tefas 2018).

    Embeddings (B, d_s) and (B, d_t). A sample's distribution over the batch, itself included, is its cosine similarity,
    shifted to [0, 1], over the row's sum. 0, with hardly any gradient, when both agree up to the lengths of the
    embeddings. The order of the batch does not matter. 0 for a single sample.
    """
    student, teacher = _neighbours(student_embedding), _neighbours(teacher_embedding)
    return (teacher * ((teacher + _EPS) / (student + _EPS)).log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """(B, B), rows sum to 1."""
    embedding = full_precision(embedding)
    # vector_norm, not a square root of a sum: a zero vector has a zero gradient instead of NaN.
    unit = embedding / (torch.linalg.vector_norm(embedding, dim=1, keepdim=True) + _EPS)
    similarity = ((inner_products(unit, unit) + 1) / 2).clamp_min(0.0)  # rounding may go below -1
    return similarity / similarity.sum(dim=1, keepdim=True)


@register_method("pkt")
class PKT(Method):
    """Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018
    (arXiv:1803.10837).

    On the pooled embeddings, of any two widths: no projector. The mean is over B^2 entries, not over the B rows, hence
    the large weight. The batch is that of all processes.

    Trap: the term falls with the batch, nearly as 1 / B: the weight 30000 belongs to the batch of 64 that it was tuned
    at (RepDistiller). Suites with larger batches multiply it by B / 64, which is ours.
    """

    display, family, fidelity = "PKT", "relation", "reference"
    needs = frozenset({"logits", "embedding"})
    follows_batch = frozenset({"pkt"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "passalis2018pkt",
        "authors": "Passalis, Nikolaos and Tefas, Anastasios",
        "title": "Learning Deep Representations with Probabilistic Knowledge Transfer",
        "venue": "ECCV",
        "year": 2018,
        "arxiv": "1803.10837",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        pkt_weight: Annotated[float, Range(at_least=0, search=(3000, 3000000), scale="log")] = 30000.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.ce_weight = ce_weight
        self.pkt_weight = pkt_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        student_embedding, teacher_embedding = gather_batch(student.embedding), gather_batch(teacher.embedding)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "pkt": self.pkt_weight * pkt_loss(student_embedding, teacher_embedding),
        }
