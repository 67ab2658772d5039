"""Students in lockstep: one batch, one teacher forward, then one step of every cell, each on its own."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

from kdbench.data.pipeline import Pipeline, TrainingBatch
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer, NonFiniteLossError, Stopwatch
from kdbench.engine.compiled import Forward
from kdbench.engine.graphs import CohortGraphs
from kdbench.engine.precision import Precision
from kdbench.engine.teachercache import TeacherCache
from kdbench.errors import KdbenchError
from kdbench.method import Outputs, binary_cross_entropy
from kdbench.nets.tapped import TappedNet


class SharedStateError(KdbenchError):
    """A method that changed in place what its cohort shares."""


class TooLargeError(KdbenchError):
    """Too little memory for a step of these cells on a whole batch."""


class Shared:
    """What the cells of a cohort share in one step, with a memory of its versions so that a change in place is seen."""

    def __init__(
        self,
        data: TrainingBatch,
        teacher: TappedNet | None,
        needs: frozenset[str],
        precision: Precision | None = None,
        run: Callable[[Tensor, frozenset[str]], Outputs] | None = None,
    ) -> None:
        self.data = data
        #: Whether its tensors are those of a CUDA graph, which stay from step to step.
        self.static = False
        self._inputs: dict[tuple[object, ...], tuple[Tensor, int]] = {}
        self.teacher: Outputs | None = None
        if teacher is not None:
            # Not inference_mode: its tensors cannot be kept for a backward pass, and methods multiply students' by them.
            with torch.no_grad(), precision.autocast() if precision else contextlib.nullcontext():
                run = run or teacher.run
                self.teacher = run(self.input_for(teacher, data.images), needs)
                if data.strong is not None and "strong" in needs:
                    self.teacher.strong = run(self.input_for(teacher, data.strong), needs)
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
                found += [outputs.logits, *(value for stage in outputs.stages or () for value in stage.tensors)]
                found += [value for value in (outputs.embedding, outputs.images) if value is not None]
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was too small, on a GPU or the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower()


class CohortModel(nn.Module):
    """The model that mmengine's runner trains. The teacher is no submodule: it is in no state, and ``train()`` leaves it alone.

    Args:
        cells: the students.
        teacher: frozen, or None.
        on_failure: called with a cell, the kind of its failure, a sentence, and the traceback.
        forward: the teacher's forward pass, if not the plain one.
        cache: of what the teacher computed for these batches before.
        graphs: what records steps as CUDA graphs, or None.
    """

    def __init__(
        self,
        cells: list[CellTrainer],
        teacher: TappedNet | None,
        pipeline: Pipeline,
        device: torch.device,
        on_failure: Callable[[CellTrainer, str, str, str], None],
        forward: Forward | None = None,
        cache: TeacherCache | None = None,
        graphs: CohortGraphs | None = None,
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.pipeline = pipeline
        self.device = device
        self.on_failure = on_failure
        self.failed: set[str] = set()
        self.watches = {cell.trainee.key: Stopwatch(device) for cell in cells}
        self._teacher = (teacher, forward)
        self.cache = cache
        self._graphs = graphs
        self._step = 0

    @property
    def alive(self) -> list[CellTrainer]:
        """Cells that have not failed."""
        cells: Any = self.cells
        return [cell for cell in cells if cell.trainee.key not in self.failed]

    def train_step(self, data: TrainingBatch, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """One step of every living cell. Called by the runner; returns nothing to log, since logging would wait for the device."""
        with contextlib.nullcontext() if self._graphs is None else self._graphs.recorder.active():
            self._train_step(data, optim_wrapper)
        self._step += 1
        return {}

    def _train_step(self, data: TrainingBatch, optim_wrapper: OptimWrapperDict) -> None:
        try:
            shared = self._share(data)
        except Exception as error:
            if is_out_of_memory(error):
                raise TooLargeError("a forward pass of the teacher") from error
            raise
        alive = self.alive
        first = self._step % max(1, len(alive))  # taking turns: the first cell of a step finds cold caches
        for cell in alive[first:] + alive[:first]:
            key = cell.trainee.key
            try:
                with self.watches[key]:
                    if self._graphs is None:
                        with cell.stream.active(), torch.enable_grad():
                            cell.step(shared.data.batch, *shared.given_to(cell), optim_wrapper[key])
                    else:
                        self._graphs.step(cell, shared, optim_wrapper[key])
                if shared.was_changed():
                    raise SharedStateError(
                        "the method changed the batch or the teacher's outputs in place; clone before writing"
                    )
            except Exception as error:
                if is_out_of_memory(error) and parallel.world_size() == 1:
                    raise TooLargeError(f"a step of {key}") from error
                self.fail(cell, error)
                if shared.was_changed():
                    data = self.pipeline.make(data.batch.epoch, self._step)
                    shared = self._share(data)

    def val_step(self, data: Any) -> list[Any]:
        """Not used: evaluation is done by ``EvaluationLoop``. mmengine wants it to be there."""
        return []

    def start_epoch(self, step: int = 0) -> None:
        self._step = step

    def _share(self, data: TrainingBatch) -> Shared:
        needs: set[str] = {"logits"}
        wanted = False
        for cell in self.alive:
            if cell.method.uses_teacher:
                wanted = True
                needs |= cell.needs
        if self.alive and self.alive[0].trainee.recipe.loss == "bce":
            data.batch.supervised = binary_cross_entropy

        def make(data: TrainingBatch) -> Shared:
            shared = self._make(data, frozenset(needs) if wanted else None)
            for cell in self.alive:  # their inputs belong to what is shared
                shared.given_to(cell)
            return shared

        return make(data) if self._graphs is None else self._graphs.share(data, make)

    def _make(self, data: TrainingBatch, needs: frozenset[str] | None) -> Shared:
        """What is shared on a batch; without the teacher where no cell needs it."""
        precision = self.alive[0].precision if self.alive else None
        teacher, forward = self._teacher
        if teacher is None or needs is None:
            return Shared(data, None, frozenset(), precision)
        run = forward or teacher.run
        if self.cache is None:
            return Shared(data, teacher, needs, precision, run)
        cache, net, epoch, step = self.cache, teacher, data.batch.epoch, self._step
        return Shared(
            data, teacher, needs, precision,
            lambda inputs, needs: cache.get(epoch, step, needs, net, lambda: run(inputs, needs)),
        )  # fmt: skip

    def drop(self, cell: CellTrainer) -> None:
        """Take a cell out of the cohort without a word: another process trains it."""
        self.failed.add(cell.trainee.key)
        cell.optim_wrapper.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def failing(self, cell: CellTrainer) -> Iterator[None]:
        """An exception inside the block fails the cell, and no other."""
        try:
            yield
        except Exception as error:
            self.fail(cell, error)

    def fail(self, cell: CellTrainer, error: Exception) -> None:
        """Take a cell out of the cohort and report why."""
        self.failed.add(cell.trainee.key)
        if isinstance(error, NonFiniteLossError):
            kind = "non-finite loss"
        elif is_out_of_memory(error):
            kind = "out of memory"
        else:
            kind = "exception"
        sentence = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        details = "".join(traceback.format_exception(error))
        self.on_failure(cell, kind, sentence.strip().splitlines()[0] if sentence.strip() else kind, details)
        cell.optim_wrapper.optimizer.zero_grad(set_to_none=True)
