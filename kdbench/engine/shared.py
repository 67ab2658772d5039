"""What the cells of a cohort share in a step: inputs of students, outputs of the teacher."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from kdbench.data.batches import TrainingBatch
from kdbench.engine.cell import CellTrainer
from kdbench.engine.compiled import Forward
from kdbench.engine.precision import Precision
from kdbench.method import Outputs
from kdbench.nets.tapped import TappedNet


class Shared:
    """What the cells of a cohort share in one step, with a memory of its versions so that a change in place is seen."""

    def __init__(
        self,
        data: TrainingBatch,
        teacher: Forward | None,
        needs: frozenset[str],
        precision: Precision | None = None,
    ) -> None:
        self.data = data
        #: Whether its tensors are those of a CUDA graph, which stay from step to step.
        self.static = False
        self._inputs: dict[tuple[object, ...], tuple[Tensor, int]] = {}
        self.teacher: Outputs | None = None
        if teacher is not None:
            # Not inference_mode: its tensors cannot be kept for a backward pass, and methods multiply students' by them.
            with torch.no_grad(), precision.autocast() if precision else contextlib.nullcontext():
                self.teacher = teacher(self.input_for(teacher.net, data.images), needs)
                if data.strong is not None and "strong" in needs:
                    self.teacher.strong = teacher(self.input_for(teacher.net, data.strong), needs)
        self._versions = [value._version for value in self._tensors()]

    def input_for(self, net: TappedNet, images: Tensor) -> Tensor:
        """Images as ``net`` wants them; nets that preprocess alike share one tensor."""
        key = (id(images), *net.preprocessing)
        if key not in self._inputs:
            inputs = net.preprocess(images)
            self._inputs[key] = (inputs, inputs._version)
        return self._inputs[key][0]

    def given_to(self, cell: CellTrainer) -> tuple[Tensor, Tensor | None, Outputs | None]:
        """Inputs of the student, of both views, and the teacher's outputs."""
        strong = self.data.strong if "strong" in cell.needs else None
        # Features remember their tokens, which must not outlive a step.
        teacher = self.teacher.detach() if self.static and self.teacher is not None else self.teacher
        return (
            self.input_for(cell.student, self.data.images),
            None if strong is None else self.input_for(cell.student, strong),
            teacher,
        )

    def renew(self, data: TrainingBatch) -> None:
        """The tensors hold the next step's values, of ``data``."""
        self.data = data
        self._inputs = {key: (inputs, inputs._version) for key, (inputs, _) in self._inputs.items()}
        self._versions = [value._version for value in self._tensors()]

    def was_changed(self) -> bool:
        """Whether a shared tensor was written to since the step began."""
        if any(inputs._version != version for inputs, version in self._inputs.values()):
            return True
        return [value._version for value in self._tensors()] != self._versions

    def _tensors(self) -> list[Tensor]:
        batch, found = self.data.batch, [self.data.images]
        found += [value for value in (batch.labels, batch.index, batch.targets, self.data.strong) if value is not None]
        for outputs in (self.teacher, self.teacher.strong if self.teacher else None):
            if outputs is not None:
                found += [
                    outputs.logits,
                    *(outputs.heads or ()),
                    *(value for feature in outputs.features for value in feature.tensors),
                ]
                found += [value for value in (outputs.embedding, outputs.images) if value is not None]
        return found
