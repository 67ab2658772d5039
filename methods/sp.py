"""Relation distillation by which samples of the batch activate a net alike."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import inner_products
from kdbench.distributed import gather_batch

#: A row below this, of a sample without any activation, is 0 with gradient 0 (normalising it would give one of 1e12).
_MIN_NORM = 1e-12


def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared difference of the row-normalised similarity matrices, mean over B^2 (Tung and Mori 2019).

    Maps (B, ...), flattened after the batch; their shapes may differ. 0, with zero gradient, when one map is the other
    times a factor. The order of the batch does not matter. 0 for a single sample.
    """
    return (_similarities(teacher_map) - _similarities(student_map)).square().mean()


def _similarities(value: Tensor) -> Tensor:
    """(B, B): inner products of the samples, each row with Euclidean norm 1."""
    flat = value.flatten(1)
    gram = inner_products(flat, flat)
    norm = torch.linalg.vector_norm(gram, dim=1, keepdim=True)
    return gram / norm.masked_fill(norm <= _MIN_NORM, torch.inf)


@register_method("sp")
class SP(Method):
    """Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (arXiv:1907.09682).

    On the last map before the pooling, class tokens left out; any two shapes, no projector. The batch is that of all
    processes, so that their number changes nothing; the usual code takes the batch of each process.

    Trap: the term falls with the batch, nearly as 1 / B: the weight 3000 belongs to the batch of 64 that it was tuned
    at (RepDistiller). Suites with larger batches multiply it by B / 64, which is ours.
    """

    display, family, fidelity = "SP", "relation", "reference"
    needs = frozenset({"logits", "stages"})
    follows_batch = frozenset({"sp"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "tung2019sp",
        "authors": "Tung, Frederick and Mori, Greg",
        "title": "Similarity-Preserving Knowledge Distillation",
        "venue": "ICCV",
        "year": 2019,
        "arxiv": "1907.09682",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        sp_weight: Annotated[float, Range(at_least=0, search=(300, 300000), scale="log")] = 3000.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.ce_weight = ce_weight
        self.sp_weight = sp_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        student_map, teacher_map = gather_batch(student.stages[-1].map), gather_batch(teacher.stages[-1].map)
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "sp": self.sp_weight * sp_loss(student_map, teacher_map),
        }
