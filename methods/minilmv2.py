"""MiniLMv2: how tokens relate to each other in the queries, keys and values of a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import kl_divergence, resize_map
from kdbench.errors import HyperparameterError


def relation_loss(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Self-attention relations (Wang et al., arXiv:2012.15828, sec. 3) of the queries, keys or values of both nets.

    1 / (A_r |x|) sum_a sum_t KL(R^T_at || R^S_at), R_a = softmax(A_a A_a^T / sqrt(d_r)): the vectors (B, N, D) of N = |x| tokens
    are cut into ``heads`` = A_r relation heads of width d_r = D / A_r. Mean over the batch; 0 for equal relations.
    """
    logits = []
    for vectors in (student, teacher):
        parts = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).unflatten(2, (heads, -1)).transpose(1, 2)
        logits.append((parts @ parts.transpose(-2, -1) / math.sqrt(parts.shape[-1])).flatten(0, 2))
    return kl_divergence(*logits)


@register_method("minilmv2")
class MiniLMv2(Method):
    """Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers, Findings of
    ACL 2021 (arXiv:2012.15828).

    The relations of tokens in the queries, keys and values of one block of each net (``relation_loss``), the sum of the three
    (alpha = 1 each). ``stage`` is the block of the teacher, the one that ends this stage; of the student it is the last, as in
    the paper. ``relation_heads`` divides the widths of both; 0 takes the largest number up to the teacher's heads that does.

    Ours: the paper pretrains language models by this loss alone; here it is added to the supervised one. Of images, all
    tokens take part: as many class tokens as both nets have, and the patches on the smaller grid. Both nets must be ViTs of
    timm.
    """

    display, family, fidelity = "MiniLMv2", "relation", "reconstruction"
    needs = frozenset({"logits", "attention"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "wang2021minilmv2",
        "authors": "Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu",
        "title": "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
        "venue": "Findings of ACL",
        "year": 2021,
        "arxiv": "2012.15828",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        stage: Annotated[int, Range(at_least=1, at_most=4)] = 4,
        relation_heads: Annotated[int, Range(at_least=0)] = 0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        relation_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.infos = student.stages[-1], teacher.stages[stage - 1]
        self.widths = [info.channels for info in self.infos]
        if relation_heads and any(width % relation_heads for width in self.widths):
            raise HyperparameterError(
                f"relation_heads = {relation_heads}: must divide {self.widths[0]} and {self.widths[1]}, the widths of the blocks"
            )
        self.stage = stage
        self.relation_heads = relation_heads
        self.ce_weight = ce_weight
        self.relation_weight = relation_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.attention is not None
        assert teacher.attention is not None
        own, taught = student.attention[-1], teacher.attention[self.stage - 1]
        heads = self.relation_heads or _most_heads(taught.queries.shape[1], self.widths)
        relation = student.logits.new_zeros(())
        for pair in zip(own.tensors, taught.tensors, strict=True):
            vectors = [self._aligned(value, info) for value, info in zip(pair, self.infos, strict=True)]
            relation = relation + relation_loss(vectors[0], vectors[1], heads)
        return {"ce": self.ce_weight * batch.task_loss(student.logits), "relation": self.relation_weight * relation}

    def _aligned(self, value: Tensor, info: StageInfo) -> Tensor:
        """(B, heads, P + L, d) to (B, P' + L', heads * d), on the class tokens and the grid that both nets have."""
        student, teacher = self.infos
        vectors = value.transpose(1, 2).flatten(2)
        shared = min(student.class_tokens, teacher.class_tokens)
        grid = min(student.height, teacher.height), min(student.width, teacher.width)
        values = vectors[:, info.class_tokens :].transpose(1, 2).unflatten(2, (info.height, info.width))
        return torch.cat([vectors[:, :shared], resize_map(values, grid).flatten(2).transpose(1, 2)], dim=1)


def _most_heads(at_most: int, widths: Sequence[int]) -> int:
    """The largest number up to ``at_most`` that divides all widths."""
    return max(number for number in range(1, at_most + 1) if all(width % number == 0 for width in widths))
