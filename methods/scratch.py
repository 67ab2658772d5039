"""Training without a teacher: the baseline of every gain."""

from __future__ import annotations

from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Task, register_method


@register_method("scratch")
class Scratch(Method):
    """The recipe's supervised loss alone; no teacher takes part."""

    display, family, fidelity = "From scratch", "baseline", "reference"
    needs = frozenset()
    uses_teacher = False

    def __init__(self, student: NetInfo, teacher: NetInfo, task: Task) -> None:
        super().__init__(student, teacher, task)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        return {"ce": batch.task_loss(student.logits)}
