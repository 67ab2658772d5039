"""Distillation as a bare PyTorch loop, with the arithmetic of the engine and nothing else: what it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batches import TrainingBatch
from kdbench.engine.cell import CellTrainer
from kdbench.method import Batch, Method, Outputs
from kdbench.nets.tapped import TappedNet


class BareStudent:
    """One student with its method and optimiser; made from an engine's cell, whose nets it takes over.

    Args:
        cell: gives the student, the method and the optimiser. It must not be trained elsewhere.
    """

    def __init__(self, cell: CellTrainer) -> None:
        self.student: TappedNet = cell.student
        self.method: Method = cell.method
        self.optimizer: torch.optim.Optimizer = cell.optim_wrapper.optimizer
        self.needs = frozenset(cell.method.needs)
        self.clip = cell.spec.recipe.clip_norm
        self.precision = cell.precision
        self.parameters: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, batch: Batch, images: Tensor, teacher: Outputs | None) -> None:
        """Forward, losses, backward, update."""
        with self.precision.autocast():
            outputs: Any = teacher
            terms = self.method(batch, self.student.run(images, self.needs), outputs)
        torch.stack([term.reshape(()) for term in terms.values()]).sum().backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def teacher_forward(teacher: TappedNet, data: TrainingBatch, needs: frozenset[str], student: CellTrainer) -> Outputs:
    """What a teacher computes for one batch."""
    with torch.no_grad(), student.precision.autocast():
        return teacher.run(teacher.preprocess(data.images), needs)
