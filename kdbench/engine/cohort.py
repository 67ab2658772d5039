"""Students in lockstep: one batch, one teacher forward, then one step of every cell, each on its own.

The training loop is at the end: ``CohortModel.train_step`` and ``CohortLoop``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.runner import BaseLoop, Runner
from torch import nn

from kdbench.data.batches import Pipeline, TrainingBatch
from kdbench.engine import fate
from kdbench.engine.cell import CellTrainer
from kdbench.engine.checkpoint import Position
from kdbench.engine.compiled import Forward
from kdbench.engine.faults import CellFailure, judge
from kdbench.engine.graphs import CohortGraphs
from kdbench.engine.shared import Shared
from kdbench.errors import KdbenchError


class SharedStateError(KdbenchError):
    """A method that changed in place what its cohort shares."""


class CohortModel(nn.Module):
    """The model that mmengine's runner trains: students and methods of all cells.

    Args:
        cells: the students.
        teacher: the forward pass of a frozen net; None where teachers are trained. No module: it is in no state of the cohort,
            and ``train()`` leaves it alone.
        pipeline: of their batches.
        device: where they are trained.
        on_failure: called with a cell that failed.
        graphs: what records steps as CUDA graphs, or None.
        position: where training begins.
    """

    def __init__(
        self,
        cells: Sequence[CellTrainer],
        teacher: Forward | None,
        pipeline: Pipeline,
        device: torch.device,
        on_failure: Callable[[CellTrainer, CellFailure], None],
        graphs: CohortGraphs | None = None,
        position: Position = Position(),  # noqa: B008 - immutable
    ) -> None:
        super().__init__()
        self.distillers = nn.ModuleList(cell.distiller for cell in cells)
        self.cells = tuple(cells)
        self.teacher = teacher
        self.pipeline = pipeline
        self.device = device
        self.on_failure = on_failure
        self.position = position
        self.failed: set[str] = set()
        self.graphs = graphs

    @property
    def alive(self) -> list[CellTrainer]:
        """Cells that have not failed."""
        return [cell for cell in self.cells if cell.key not in self.failed]

    @contextlib.contextmanager
    def failing(self, cell: CellTrainer, what: str) -> Iterator[None]:
        """An exception inside the block, which does ``what``, fails the cell, and no other."""
        try:
            yield
        except Exception as error:
            self.fail(cell, error, what)

    def fail(self, cell: CellTrainer, error: Exception, what: str) -> None:
        """Take a cell out of the cohort and report why.

        Raises:
            TooLargeError: if memory was short.
            DeviceLostError: if the device is lost.
            CellFailedError: where several processes train the cell, and the others may not know.
        """
        failure = judge(error, f"{what} of {cell.key}", self.position.epoch)
        fate.tell_others(cell.key, failure)
        self.drop(cell)
        self.on_failure(cell, failure)

    def drop(self, cell: CellTrainer) -> None:
        """Take a cell out of the cohort without a word: another process trains it."""
        self.failed.add(cell.key)
        cell.optim_wrapper.optimizer.zero_grad(set_to_none=True)

    def val_step(self, data: Any) -> None:
        """mmengine wants it to be there; ``EvaluationLoop`` evaluates."""

    def share(self, data: TrainingBatch) -> Shared:
        """The inputs of all cells, and the teacher's outputs if one of them uses it.

        Raises:
            TooLargeError: if the memory is too small for it.
            DeviceLostError: if the device is lost.
        """
        users = [cell for cell in self.alive if cell.method.uses_teacher]
        needs = frozenset({"logits"}).union(*(cell.needs for cell in users))
        precision = self.alive[0].precision if self.alive else None

        def make(data: TrainingBatch) -> Shared:
            shared = Shared(data, self.teacher if users else None, needs, precision)
            for cell in self.alive:  # their inputs belong to what is shared
                shared.given_to(cell)
            return shared

        try:
            return make(data) if self.graphs is None else self.graphs.share(data, make)
        except Exception as error:
            judge(error, "a forward pass of the teacher")
            raise

    def train_step(self, data: TrainingBatch) -> None:
        """One step of every living cell. There is nothing to log: that would wait for the device."""
        with contextlib.nullcontext() if self.graphs is None else self.graphs.active():
            shared = self.share(data)
            alive = self.alive
            first = self.position.step % max(1, len(alive))  # taking turns: the first cell of a step finds cold caches
            for cell in alive[first:] + alive[:first]:
                try:
                    if self.graphs is None:
                        with cell.watch:
                            cell.step(shared.data.batch, *shared.given_to(cell))
                    else:
                        with self.graphs.on_stream_of(cell, shared), cell.watch:
                            self.graphs.step(cell, shared)
                    if shared.was_changed():
                        raise SharedStateError(
                            "the method changed the batch or the teacher's outputs in place; clone before writing"
                        )
                except Exception as error:
                    self.fail(cell, error, "a step")
                    if shared.was_changed():
                        shared = self.share(self.pipeline.make(*self.position))


class CohortLoop(BaseLoop):
    """The training of a cohort, from its position on.

    Args:
        runner: mmengine's, with a ``saver``.
        dataloader: the pipeline (mmengine's name for it).
        max_epochs: number of epochs in all.
        val_interval: epochs from one evaluation to the next; the last epoch is always evaluated.
    """

    val_begin = 1

    def __init__(self, runner: Runner, dataloader: Pipeline, max_epochs: int, val_interval: int) -> None:
        super().__init__(runner, dataloader)
        self.max_epochs = max_epochs
        self.max_iters = max_epochs * len(dataloader)
        self.val_interval = val_interval
        self.saver = runner.saver

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.runner.model.position.epoch

    @property
    def iter(self) -> int:
        """Steps that are complete, of all epochs."""
        epoch, step = self.runner.model.position
        return epoch * len(self.dataloader) + step

    def run(self) -> CohortModel:
        """Train to the last epoch, or until no cell is left."""
        runner, cohort = self.runner, self.runner.model
        runner.call_hook("before_train")
        while self.epoch < self.max_epochs and cohort.alive:
            self.run_epoch()
        runner.call_hook("after_train")
        return cohort

    def run_epoch(self) -> None:
        """The steps that are left of an epoch, and its evaluation."""
        runner, cohort = self.runner, self.runner.model
        self.saver.start_epoch()
        cohort.train()
        runner.call_hook("before_train_epoch")
        for data in self.dataloader.batches(*cohort.position):
            epoch, step = cohort.position
            for cell in cohort.alive:
                cell.schedule.set(epoch, step)
            runner.call_hook("before_train_iter", batch_idx=step, data_batch=data)
            cohort.train_step(data)
            runner.call_hook("after_train_iter", batch_idx=step, data_batch=data)
            cohort.position = Position(epoch, step + 1)
            self.saver.after_step(runner)
        for cell in cohort.alive:
            with cohort.failing(cell, "the end of an epoch"):
                cell.end_epoch(self.epoch)
        runner.call_hook("after_train_epoch")
        cohort.position = Position(self.epoch + 1)
        if self.epoch % self.val_interval == 0 or self.epoch == self.max_epochs:
            runner.val_loop.run()
        self.saver.after_epoch(runner)
