"""Locality guidance: a ViT imitates the maps of a CNN."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision
from kdbench.method import stage_numbers


def locality_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared error of two maps (B, c, h, w) and (B, c, h', w'), each enlarged to the greater height and width.

    Li et al., arXiv:2207.10026; bilinear without aligned corners, as in the official code. The student's map comes after
    its convolution to the teacher's channels.
    """
    size = (max(student_map.shape[2], teacher_map.shape[2]), max(student_map.shape[3], teacher_map.shape[3]))
    ours, theirs = (F.interpolate(full_precision(value), size, mode="bilinear") for value in (student_map, teacher_map))
    return F.mse_loss(ours, theirs)


@register_method("locality")
class Locality(Method):
    """Li et al., Locality Guidance for Improving Vision Transformers on Tiny Datasets, ECCV 2022 (arXiv:2207.10026).

    L = ce_weight CE + locality_weight sum over the stages of ``locality_loss`` between the student's map, class tokens
    dropped, after a 1 x 1 convolution to the teacher's width, and the teacher's. There is no loss on logits. The weight
    2.5 is the official code's for CIFAR-100 at 224 px; its teacher is a ResNet-56 on the same image at 32 px.

    Ours: the code compares the first, the middle and the last block of the student with the three stages of the
    ResNet-56; here the stages 1, 3 and 4 are compared, number by number, three as there, so that the weight keeps its
    meaning. Students and teachers of any kind. The convolutions are in the checkpoint, which the release leaves out.

    Departure: the release never leaves training mode, so that its teacher normalises by the statistics of the mixed-up
    batch, and they drift; here the teacher is in eval mode, as for every method.
    """

    display, family, fidelity = "Locality guidance", "hint", "reference"
    needs = frozenset({"logits", "stages"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "li2022locality",
        "authors": "Li, Kehan and Yu, Runyi and Wang, Zhennan and Yuan, Li and Song, Guoli and Chen, Jie",
        "title": "Locality Guidance for Improving Vision Transformers on Tiny Datasets",
        "venue": "ECCV",
        "year": 2022,
        "arxiv": "2207.10026",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        locality_weight: Annotated[float, Range(at_least=0, search=(0.25, 25), scale="log")] = 2.5,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 3, 4),
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.locality_weight = locality_weight
        self.ce_weight = ce_weight
        self.stages = tuple(stages)
        self.align = nn.ModuleList(
            nn.Conv2d(student.stages[n - 1].channels, teacher.stages[n - 1].channels, 1) for n in self.stages
        )

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        losses = [
            locality_loss(align(student.stages[n - 1].map), teacher.stages[n - 1].map)
            for n, align in zip(self.stages, self.align, strict=True)
        ]
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "locality": self.locality_weight * torch.stack(losses).sum(),
        }
