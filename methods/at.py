"""Attention transfer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import match_maps
from kdbench.method import stage_numbers


def attention(feature_map: Tensor, p: int = 2) -> Tensor:
    """(B, c, h, w) to (B, h * w): mean over the channels of the p-th power, each sample scaled to unit length.

    Activation-based attention of Zagoruyko & Komodakis 2017, sec. 3.1.
    """
    return F.normalize(feature_map.pow(p).mean(dim=1).flatten(1), dim=1)


def at_loss(student_map: Tensor, teacher_map: Tensor, p: int = 2) -> Tensor:
    """Mean squared difference of the two attention maps, over batch and positions (Zagoruyko & Komodakis 2017).

    Maps (B, c, h, w), any widths; the larger one is average-pooled to the size of the smaller before the attention is
    taken. 0, with zero gradient, when one map is the other times a number per sample; always 0 for 1 x 1 maps.
    """
    student_map, teacher_map = match_maps(student_map, teacher_map)
    return (attention(student_map, p) - attention(teacher_map, p)).pow(2).mean()


@register_method("at")
class AT(Method):
    """Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017 (arXiv:1612.03928).

    Defaults are those of RepDistiller on CIFAR-100 (weight 1000, squares, every stage); no logit term. The maps of
    token nets are their patch tokens, class tokens dropped. Needs no projector: widths may differ.

    Traps: the mean over positions makes the loss shrink with the resolution, so the weight of 32 px maps (up to
    32 x 32) is small for 224 px nets (56 x 56) and needs retuning there. An odd ``p`` lets features of opposite sign
    cancel, as in the reference code (the paper takes absolute values, the same for even ``p`` and after a ReLU).
    """

    display, family, fidelity = "AT", "hint", "reference"
    needs = frozenset({"logits", "stages"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "zagoruyko2017at",
        "authors": "Zagoruyko, Sergey and Komodakis, Nikos",
        "title": "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        "venue": "ICLR",
        "year": 2017,
        "arxiv": "1612.03928",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
        p: Annotated[int, Range(at_least=1)] = 2,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        at_weight: Annotated[float, Range(at_least=0, search=(100, 10000), scale="log")] = 1000.0,
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.stages = stages
        self.p = p
        self.ce_weight = ce_weight
        self.at_weight = at_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        losses = [at_loss(student.stages[n - 1].map, teacher.stages[n - 1].map, self.p) for n in self.stages]
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "at": self.at_weight * sum(losses[1:], losses[0]),
        }
