"""Relation distillation between neighbours in the batch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.distributed import gather_batch


def cc_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Inner product of |student - teacher| of each sample and of the next one in the batch, mean over the B - 1 pairs.

    Embeddings (B, d) of one width. 0 when both agree; 0, with zero gradient, for a single sample. Depends on the order
    of the batch. This is what the authors' code computes, not the kernel correlation of the paper (Peng et al. 2019).
    """
    student = student_embedding.to(torch.promote_types(student_embedding.dtype, torch.float32))
    teacher = teacher_embedding.to(torch.promote_types(teacher_embedding.dtype, torch.float32))
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


@register_method("cc")
class CC(Method):
    """Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019 (arXiv:1904.01802).

    What is compared everywhere under this name is the authors' simplification in RepDistiller, and so is this: no
    Gaussian kernel and no sampler with several images per class. Both embeddings pass a linear layer that is trained,
    the teacher's too, so that both layers may collapse to the same constant. Neighbours are those of the joint batch of
    all processes.
    """

    display, family, fidelity = "CC", "relation", "reference"
    needs = frozenset({"logits", "embedding"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "peng2019cc",
        "authors": "Peng, Baoyun and Jin, Xiao and Liu, Jiaheng and Li, Dongsheng and Wu, Yichao and Liu, Yu and Zhou, "
        "Shunfeng and Zhang, Zhaoning",
        "title": "Correlation Congruence for Knowledge Distillation",
        "venue": "ICCV",
        "year": 2019,
        "arxiv": "1904.01802",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        dim: Annotated[int, Range(at_least=1)] = 128,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        cc_weight: Annotated[float, Range(at_least=0, search=(0.002, 0.2), scale="log")] = 0.02,
    ) -> None:
        super().__init__(student, teacher, task)
        self.dim = dim
        self.ce_weight = ce_weight
        self.cc_weight = cc_weight
        self.embed_student = nn.Linear(student.embedding_dim, dim)
        self.embed_teacher = nn.Linear(teacher.embedding_dim, dim)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        dtype = self.embed_student.weight.dtype
        student_embedding = gather_batch(self.embed_student(student.embedding.to(dtype)))
        teacher_embedding = gather_batch(self.embed_teacher(teacher.embedding.to(dtype)))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "cc": self.cc_weight * cc_loss(student_embedding, teacher_embedding),
        }
