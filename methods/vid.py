"""Variational information distillation."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import match_maps
from kdbench.errors import HyperparameterError
from kdbench.method import stage_numbers


def vid_loss(mean: Tensor, teacher_map: Tensor, alpha: Tensor, min_variance: float = 1e-5) -> Tensor:
    """Negative Gaussian log-likelihood of the teacher's map, without its constant (Ahn et al. 2019).

    Args:
        mean: (B, c, h, w), the student's prediction of the teacher's map.
        teacher_map: (B, c, h, w).
        alpha: (c,); the variance of a channel is softplus(alpha) + ``min_variance``.
        min_variance: keeps the variance above 0.

    Mean over batch, channels and positions. May be negative; smallest for a mean equal to the map and a variance
    equal to the mean squared error of the channel.
    """
    variance = (F.softplus(alpha) + min_variance).view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher_map).pow(2) / variance + variance.log()).mean()


@register_method("vid")
class VID(Method):
    """Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019 (arXiv:1904.05835).

    Per stage a regressor of three 1 x 1 convolutions (as wide as the teacher's stage) predicts the teacher's map, with
    one learned variance per channel. Defaults follow RepDistiller (weights 1, initial variance 5, no logit term); the
    paper weighs each layer by hand. Where grids differ the larger map is average-pooled to the smaller one, the
    student's before its regressor.

    Trap: in one widely used code the variances are not among the trained parameters and stay at 5; here they are
    trained, as in the paper. The term is a log-likelihood and becomes negative late in training.
    """

    display, family, fidelity = "VID", "hint", "paper"
    needs = frozenset({"logits", "stages"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "ahn2019vid",
        "authors": "Ahn, Sungsoo and Hu, Shell Xu and Damianou, Andreas and Lawrence, Neil D. and Dai, Zhenwen",
        "title": "Variational Information Distillation for Knowledge Transfer",
        "venue": "CVPR",
        "year": 2019,
        "arxiv": "1904.05835",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
        init_variance: Annotated[float, Range(above=0)] = 5.0,
        min_variance: Annotated[float, Range(above=0)] = 1e-5,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        vid_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        if init_variance <= min_variance:
            raise HyperparameterError(
                f"init_variance = {init_variance!r}: must be above min_variance = {min_variance!r}"
            )
        self.stages = stages
        self.min_variance = min_variance
        self.ce_weight = ce_weight
        self.vid_weight = vid_weight
        widths = [(student.stages[n - 1].channels, teacher.stages[n - 1].channels) for n in stages]
        self.regressors = nn.ModuleList(_regressor(width_in, width_out) for width_in, width_out in widths)
        # the inverse of softplus, written so that large variances do not overflow
        raised = init_variance - min_variance
        alpha = raised + math.log(-math.expm1(-raised))
        self.alphas = nn.ParameterList(nn.Parameter(torch.full((width_out,), alpha)) for _, width_out in widths)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        losses = []
        for number, regressor, alpha in zip(self.stages, self.regressors, self.alphas, strict=True):
            source, target = match_maps(student.stages[number - 1].map, teacher.stages[number - 1].map)
            losses.append(vid_loss(regressor(source), target, alpha, self.min_variance))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "vid": self.vid_weight * sum(losses[1:], losses[0]),
        }


def _regressor(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 1, bias=False),
    )
