"""Trainings on one data set in groups: of cells that go on from the same position, and smaller ones where memory is short."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdbench.data.batches import Pipeline
from kdbench.data.images import Dataset, Images
from kdbench.data.pipeline import make_pipeline
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer, TrainingSpec
from kdbench.engine.checkpoint import Position, common_start, load_checkpoints
from kdbench.engine.cohort import CellFailure, CohortModel, TooLargeError
from kdbench.engine.compiled import Forward
from kdbench.engine.evaluation import Evaluated
from kdbench.engine.graphs import graphs_of
from kdbench.engine.runner import CohortRunner
from kdbench.engine.saver import Emit
from kdbench.matrix.cells import Plan
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.hooks import HookEntry
from kdbench.store.claims import ClaimLostError


def release(error: BaseException | None) -> None:
    """Clear the frames that an exception and its causes remember: their variables hold nets that have to be freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


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

    def __post_init__(self) -> None:
        if not parallel.is_first():
            self.emit = lambda event: None

    def train(self, specs: Sequence[TrainingSpec], micro_batches: int = 1) -> None:
        """Train, and where memory is too small, in smaller groups, then in parts of a batch, from the last checkpoints on."""
        recipe = specs[0].recipe
        strong = any("strong" in spec.method.needs for spec in specs)
        rows = parallel.local_rows(recipe.batch_size, recipe.augment.mixes)

        def say(text: str) -> None:
            for spec in specs:
                spec.folder.say(text)
            self.emit({"event": "warning", "reason": text})

        pipeline = make_pipeline(
            self.data, self.plan.suite.dataset, recipe, self.dataset.num_classes, self.data_seed, self.device, strong,
            rows=rows, say=say,
        )  # fmt: skip
        saved = {spec.key: load_checkpoints(spec.folder) for spec in specs}
        groups = common_start({key: set(states) for key, states in saved.items()})
        by_key = {spec.key: spec for spec in specs}
        for start, keys in groups.items():
            states = {key: saved[key][start] for key in keys if start in saved[key]}
            members = [by_key[key] for key in keys]
            try:
                with contextlib.closing(pipeline):  # ends loader processes; they start again where batches are made
                    self._train_group(members, start, states, pipeline, micro_batches)
                continue
            except TooLargeError as error:
                failure = CellFailure(
                    "out of memory", str(error), start.epoch, "".join(traceback.format_exception(error))
                )
                release(error)
            states.clear()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for smaller, parts in self._smaller(members, micro_batches, recipe.batch_size, failure):
                self.train(smaller, parts)

    def _smaller(
        self, specs: Sequence[TrainingSpec], micro_batches: int, batch_size: int, failure: CellFailure
    ) -> list[tuple[Sequence[TrainingSpec], int]]:
        """What to try instead of what did not fit: half of the cells, or one cell in twice as many parts of a batch."""
        what = failure.reason
        if len(specs) > 1:
            half = len(specs) // 2
            for spec in specs:
                spec.folder.say(f"too little memory for {what}: {len(specs)} cells go on in two groups")
            return [(specs[:half], micro_batches), (specs[half:], micro_batches)]
        (spec,) = specs
        if 2 * micro_batches > batch_size:
            reason = f"out of memory in {what}, even with one image at a time"
            self._record(spec, replace(failure, reason=reason))
            return []
        spec.folder.say(f"too little memory for {what}: it goes on with each batch in {2 * micro_batches} parts")
        return [(specs, 2 * micro_batches)]

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
                self._record(spec, CellFailure.of(error))
        if not cells:
            return
        teacher = None
        if self.teacher is not None:
            teacher = Forward(self.teacher, self.plan.request.compile, cells[0].spec.folder.say)
        graphs = graphs_of(cells, self.device, self._warn, self.hooks) if self.plan.request.graphs else None
        record = lambda cell, failure: self._record(cell.spec, failure)  # noqa: E731
        cohort = CohortModel(cells, teacher, pipeline, self.device, record, graphs, start)
        with tempfile.TemporaryDirectory(prefix="kdbench-") as work_dir:
            CohortRunner(
                cohort, self.split, Path(work_dir), self.emit, states, self.hooks, self.plan.request.log, self.root
            ).train()
        for cell in cohort.alive:
            if not parallel.is_first():
                continue
            try:
                self.keep(cell)
            except OSError:
                raise
            except ClaimLostError as error:
                self.emit({"event": "lost", "cell": cell.key, "reason": str(error)})
            except Exception as error:
                cohort.fail(cell, error)

    def _build(self, spec: TrainingSpec, steps: int, micro_batches: int) -> CellTrainer:
        data = self.data
        task = Task(self.dataset.num_classes, len(data), data.labels, self.dataset.name, spec.recipe.epochs)
        teacher = None if self.teacher is None else self.teacher.describe()
        cell = CellTrainer(spec, task, teacher, steps, self.device, self.plan.request.compile)
        cell.micro_batches = micro_batches
        cell.captured = None if self.plan.request.graphs else False
        return cell

    def _warn(self, cell: CellTrainer, text: str) -> None:
        if parallel.is_first():
            cell.spec.folder.say(text)
        self.emit({"event": "warning", "reason": text})

    def _record(self, spec: TrainingSpec, failure: CellFailure) -> None:
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
