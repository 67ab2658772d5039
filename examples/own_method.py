"""A method outside the tree, with a metric and a hook of its own, in one file.

kdbench test mine-margin --plugin examples/own_method.py
kdbench run digits --protocol smoke --methods scratch,kd,mine-margin --plugin examples/own_method.py --hook examples/own_method.py
kdbench table digits --protocol smoke --plugin examples/own_method.py --metric margin
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method, register_metric


def margins(logits: Tensor) -> Tensor:
    """Logits (B, C) -> (B,): the largest logit minus the second."""
    best = logits.float().topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


@register_method("mine-margin")
class MarginMatching(Method):
    """An example, not from a paper: the student's margin between its two best classes follows the teacher's."""

    display, family, fidelity = "Margin matching", "logits", "paper"

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        margin_weight: Annotated[float, Range(at_least=0)] = 0.1,
    ):
        super().__init__(student, teacher, task)
        self.margin_weight = margin_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        difference = F.smooth_l1_loss(margins(student.logits), margins(teacher.logits))
        return {"ce": batch.task_loss(student.logits), "margin": self.margin_weight * difference}


@register_metric("margin", title="Mean margin", unit="logits", higher_is_better=True, decimals=2)
def margin(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """Mean difference of the two largest logits."""
    return margins(logits).mean()


@HOOKS.register_module()
class SaysMargin(Hook):
    """Writes the metric into the cell's log after every evaluation."""

    observes = True  # changes nothing that is trained, and so no identity

    def after_val_epoch(self, runner, metrics=None):  # type: ignore[no-untyped-def]
        runner.logger.info(f"epoch {runner.epoch}: margin {metrics['margin']:.3f}")
