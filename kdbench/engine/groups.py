"""Trainings on one data set in groups: of cells that go on from the same position, and smaller ones where memory is short."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdbench.data.batches import Pipeline
from kdbench.data.images import Dataset, Images
from kdbench.data.pipeline import make_pipeline
from kdbench.engine import fate, parallel
from kdbench.engine.cell import CellTrainer, TrainingSpec
from kdbench.engine.checkpoint import Position, common_start, load_checkpoints
from kdbench.engine.cohort import CohortModel
from kdbench.engine.compiled import Forward
from kdbench.engine.evaluation import Evaluated
from kdbench.engine.faults import CellFailure, TooLargeError, free_memory, is_out_of_memory, judge, release
from kdbench.engine.graphs import graphs_of
from kdbench.engine.runner import CohortRunner
from kdbench.engine.saver import Emit
from kdbench.errors import StopRequested
from kdbench.matrix.cells import Plan
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.hooks import HookEntry
from kdbench.store.claims import ClaimLostError


@dataclass
class Session:
    """What all trainings of a teacher, or of a cohort, share.

    Attributes:
        plan: of the run.
        root: the run directory.
        dataset: of its suite.
        data: training images.
        split: what is evaluated.
        device: where they are trained.
        emit: receives events.
        data_seed: of the order of the data and of its augmentation.
        keep: writes the result of a cell that is trained to the end.
        teacher: frozen; None where a teacher itself is trained.
        hooks: of the user.
    """

    plan: Plan
    root: Path
    dataset: Dataset
    data: Images
    split: Evaluated
    device: torch.device
    emit: Emit
    data_seed: int
    keep: Callable[[CellTrainer], None]
    teacher: TappedNet | None = None
    hooks: Sequence[HookEntry] = ()
    #: Cells that are done, have failed, or were taken over by another run.
    _over: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not parallel.is_first():
            self.emit = lambda event: None

    def train(self, specs: Sequence[TrainingSpec]) -> None:
        """Train, and where memory is too small, in smaller groups, then in parts of a batch, from the last checkpoints on."""
        waiting = [(list(specs), 1)]
        while waiting:
            members, micro_batches = waiting.pop(0)
            saved = {spec.key: load_checkpoints(spec.folder) for spec in members}
            groups = common_start({key: set(states) for key, states in saved.items()})
            if len(groups) > 1:
                by_key = {spec.key: spec for spec in members}
                waiting[:0] = [([by_key[key] for key in keys], micro_batches) for keys in groups.values()]
                continue
            (start,) = groups
            states = {key: found[start] for key, found in saved.items() if start in found}
            error = self._attempt(members, start, states, micro_batches)
            if error is not None:
                saved.clear()
                states.clear()
                free_memory(self.device)
                waiting[:0] = self._instead(members, start, error, micro_batches)

    def _attempt(
        self, specs: Sequence[TrainingSpec], start: Position, states: Mapping[str, dict[str, Any]], micro_batches: int
    ) -> TooLargeError | fate.CellFailedError | None:
        """Train cells from ``start`` to the end; what stood in the way, for which there is something to do instead."""
        fate.on_end = lambda failed: self._take_out(specs, failed)
        try:
            with contextlib.closing(self._pipeline(specs)) as pipeline:  # ends loader processes
                self._train_group(specs, start, states, pipeline, micro_batches)
                parallel.barrier()  # the first process has kept the results
            return None
        except StopRequested:
            raise
        except Exception as raised:
            error = fate.agreed(raised)
            if isinstance(error, (TooLargeError, fate.CellFailedError)):
                release(raised)
                return error.with_traceback(None)
            if error is raised:
                raise
            raise error from raised
        finally:
            fate.on_end = fate.ignore

    def _instead(
        self,
        specs: Sequence[TrainingSpec],
        start: Position,
        error: TooLargeError | fate.CellFailedError,
        micro_batches: int,
    ) -> list[tuple[list[TrainingSpec], int]]:
        """What is left to do, without the cell that failed, or in smaller groups or batches."""
        if isinstance(error, fate.CellFailedError):
            self._take_out(specs, error)
        over = json.loads(parallel.send(json.dumps(sorted(self._over))) or "")
        left = [spec for spec in specs if spec.key not in over]
        if isinstance(error, TooLargeError):
            return self._smaller(left, start, error, micro_batches)
        return [(left, micro_batches)] if left else []

    def _pipeline(self, specs: Sequence[TrainingSpec]) -> Pipeline:
        def say(text: str) -> None:
            for spec in specs:
                spec.folder.say(text)
            self.emit({"event": "warning", "reason": text})

        recipe = specs[0].recipe
        try:
            return make_pipeline(
                self.data, self.plan.suite.dataset, recipe, self.dataset.num_classes, self.data_seed, self.device,
                any("strong" in spec.method.needs for spec in specs),
                rows=parallel.local_rows(recipe.batch_size, recipe.augment.mixes),
                workers=self.plan.request.loaders, say=say,
            )  # fmt: skip
        except Exception as error:
            if is_out_of_memory(error):
                judge(error, "the data")
            raise

    def _take_out(self, specs: Sequence[TrainingSpec], error: fate.CellFailedError) -> None:
        """What is left of a cell that leaves all processes: its failure, unless another run has it."""
        self._over.add(error.key)
        if error.failure is not None:
            self._record(next(spec for spec in specs if spec.key == error.key), error.failure)

    def _smaller(
        self, specs: list[TrainingSpec], start: Position, error: TooLargeError, micro_batches: int
    ) -> list[tuple[list[TrainingSpec], int]]:
        """What to try instead of what did not fit: half of the cells, or one cell in twice as many parts of a batch."""
        if len(specs) > 1:
            half = len(specs) // 2
            for spec in specs:
                self._say(spec, f"too little memory for {error}: {len(specs)} cells go on in two groups")
            return [(specs[:half], micro_batches), (specs[half:], micro_batches)]
        for spec in specs:
            parts = 2 * micro_batches
            if error.smaller and parts <= spec.recipe.batch_size // parallel.world_size():
                self._say(spec, f"too little memory for {error}: it goes on with each batch in {parts} parts")
                return [(specs, parts)]
            least = "even with one image at a time" if error.smaller else "even alone"
            reason = f"out of memory in {error}, {least}"
            self._record(spec, CellFailure("out of memory", reason, start.epoch, error.details))
        return []

    def _train_group(
        self,
        specs: Sequence[TrainingSpec],
        start: Position,
        states: Mapping[str, dict[str, Any]],
        pipeline: Pipeline,
        micro_batches: int,
    ) -> None:
        """Train cells in lockstep from ``start`` to the end, and keep what came out."""
        cells = []
        for spec in specs:
            try:
                cells.append(self._build(spec, len(pipeline), micro_batches))
            except Exception as error:
                failure = judge(error, f"building {spec.key}")
                fate.tell_others(spec.key, failure)
                self._record(spec, failure)
        if not cells:
            return
        teacher = None
        if self.teacher is not None:
            teacher = Forward(self.teacher, self.plan.request.compile, cells[0].spec.folder.say)
        request = self.plan.request
        graphs = graphs_of(cells, self.device, self._warn, self.hooks, request.cuda_streams) if request.graphs else None
        record = lambda cell, failure: self._record(cell.spec, failure)  # noqa: E731
        cohort = CohortModel(cells, teacher, pipeline, self.device, record, graphs, start)
        with tempfile.TemporaryDirectory(prefix="kdbench-") as work_dir:
            CohortRunner(
                cohort, self.split, Path(work_dir), self.emit, states, self.hooks, self.plan.request.log, self.root
            ).train()
        for cell in cohort.alive if parallel.is_first() else ():
            try:
                self.keep(cell)
                self._over.add(cell.key)
            except OSError as error:
                if is_out_of_memory(error):
                    judge(error, f"measuring {cell.key}")
                raise
            except ClaimLostError as error:
                self._over.add(cell.key)
                self.emit({"event": "lost", "cell": cell.key, "reason": str(error)})
            except Exception as error:
                self._record(cell.spec, judge(error, f"measuring {cell.key}", cohort.position.epoch))

    def _build(self, spec: TrainingSpec, steps: int, micro_batches: int) -> CellTrainer:
        data = self.data
        task = Task(self.dataset.num_classes, len(data), data.labels, self.dataset.name, spec.recipe.epochs)
        teacher = None if self.teacher is None else self.teacher.describe()
        cell = CellTrainer(spec, task, teacher, steps, self.device, self.plan.request.compile)
        cell.micro_batches = micro_batches
        request = self.plan.request
        chosen = {"deterministic": request.deterministic, "cudnn_benchmark": request.cudnn_benchmark}
        cell.tuning = {name: True for name, value in chosen.items() if value}
        cell.captured = None if self.plan.request.graphs else False
        return cell

    @staticmethod
    def _say(spec: TrainingSpec, text: str) -> None:
        if parallel.is_first():
            spec.folder.say(text)

    def _warn(self, cell: CellTrainer, text: str) -> None:
        self._say(cell.spec, text)
        self.emit({"event": "warning", "reason": text})

    def _record(self, spec: TrainingSpec, failure: CellFailure) -> None:
        self._over.add(spec.key)
        if not parallel.is_first():
            return
        try:
            spec.folder.confirm()
        except ClaimLostError as error:
            self.emit({"event": "lost", "cell": spec.key, "reason": str(error)})
            return
        spec.folder.say(f"failed ({failure.kind}): {failure.reason}\n{failure.details}")
        spec.folder.fail(failure.kind, failure.reason, failure.epoch)
        self.emit({"event": "failed", "cell": spec.key, "kind": failure.kind, "reason": failure.reason})
