"""Trainees on one data set, trained together: in groups that go on from the same point, and in smaller ones where memory is short."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdbench.data.images import Dataset, Images
from kdbench.data.pipeline import Pipeline, make_pipeline
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer, Trainee
from kdbench.engine.checkpoint import Position, common_start, load_checkpoints
from kdbench.engine.cohort import CohortModel, TooLargeError
from kdbench.engine.compiled import Forward
from kdbench.engine.graphs import graphs_of
from kdbench.engine.runner import CohortRunner, Emit, Evaluated
from kdbench.engine.teachercache import TeacherCache
from kdbench.engine.tuning import PLAIN, Tuning
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Plan
from kdbench.method import NetInfo, Task
from kdbench.nets.tapped import TappedNet
from kdbench.store.claims import ClaimLostError
from kdbench.store.folders import write_json
from kdbench.store.provenance import provenance
from kdbench.suite.dataset import DatasetSpec


def release(error: BaseException | None) -> None:
    """Clear the frames that an exception and its causes remember: their variables hold nets that have to be freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_memory(device: torch.device) -> None:
    """Give back what no object holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Session:
    """Trainees on one data set, split into groups that go on from the same epoch."""

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        train: Images,
        split: Evaluated,
        device: torch.device,
        emit: Emit,
        tuning: Tuning = PLAIN,
    ) -> None:
        self.tuning = tuning
        #: What its teacher's outputs depend on beside what the session knows.
        self.describes: dict[str, Any] = {}
        self.spec: DatasetSpec = plan.suite.dataset
        self.task = Task(dataset.num_classes, len(train), train.labels, dataset.name)
        self.data = train
        self.data_checksum = dataset.checksum()
        self.split = split
        self.device = device
        self.emit = emit if parallel.is_first() else lambda event: None

    def train(
        self,
        trainees: Sequence[Trainee],
        teacher: TappedNet | None,
        teacher_info: NetInfo | None,
        data_seed: int,
        keep: Callable[[CellTrainer], None],
        micro_batches: int = 1,
    ) -> None:
        """Train, and where memory is too small, in smaller groups, then in parts of a batch, from the last checkpoints on."""
        recipe = trainees[0].recipe
        strong = any("strong" in trainee.method.needs for trainee in trainees)
        rows = parallel.local_rows(recipe.batch_size, recipe.augment.mixes)

        def say(text: str) -> None:
            for trainee in trainees:
                trainee.folder.say(text)
            self.emit({"event": "warning", "reason": text})

        pipeline = make_pipeline(
            self.data, self.spec, recipe, self.task.num_classes, data_seed, self.device, strong, rows=rows, say=say
        )
        task = Task(
            self.task.num_classes, self.task.num_train, self.task.train_labels, self.task.dataset, recipe.epochs
        )
        saved = {trainee.key: load_checkpoints(trainee.folder) for trainee in trainees}
        groups = common_start({key: set(states) for key, states in saved.items()})
        by_key = {trainee.key: trainee for trainee in trainees}
        for start, keys in groups.items():
            states = {key: saved[key].get(start) for key in keys}
            members = [by_key[key] for key in keys]
            try:
                with contextlib.closing(pipeline):  # ends loader processes; they start again where batches are made
                    self._train_group(
                        members, start, states, teacher, teacher_info, task, pipeline, keep, micro_batches, data_seed
                    )
                continue
            except TooLargeError as error:
                what, details = str(error), "".join(traceback.format_exception(error))
                release(error)
            states.clear()
            free_memory(self.device)
            for smaller, parts in self._smaller(members, micro_batches, recipe.batch_size, what, details):
                self.train(smaller, teacher, teacher_info, data_seed, keep, parts)

    def _smaller(
        self, trainees: Sequence[Trainee], micro_batches: int, batch_size: int, what: str, details: str
    ) -> list[tuple[Sequence[Trainee], int]]:
        """What to try instead of what did not fit: half of the cells, or one cell in twice as many parts of a batch."""
        if len(trainees) > 1:
            half = len(trainees) // 2
            for trainee in trainees:
                trainee.folder.say(f"too little memory for {what}: {len(trainees)} cells go on in two groups")
            return [(trainees[:half], micro_batches), (trainees[half:], micro_batches)]
        (trainee,) = trainees
        if 2 * micro_batches > batch_size:
            reason = f"out of memory in {what}, even with one image at a time"
            self._record(trainee, "out of memory", reason, 0, details)
            return []
        trainee.folder.say(f"too little memory for {what}: it goes on with each batch in {2 * micro_batches} parts")
        return [(trainees, 2 * micro_batches)]

    def _train_group(
        self,
        trainees: Sequence[Trainee],
        start: Position,
        states: dict[str, dict[str, Any] | None],
        teacher: TappedNet | None,
        teacher_info: NetInfo | None,
        task: Task,
        pipeline: Pipeline,
        keep: Callable[[CellTrainer], None],
        micro_batches: int,
        data_seed: int,
    ) -> None:
        cells = []
        for trainee in trainees:
            try:
                cell = CellTrainer(trainee, task, teacher_info, len(pipeline), self.device, self.tuning)
                cell.micro_batches = micro_batches
                state = states[trainee.key]
                if state is not None:
                    cell.restore(state)
                    if parallel.is_first():
                        trainee.folder.say(
                            f"resumed after epoch {start[0]}" + (f", step {start[1]}" if start[1] else "")
                        )
                    self.emit({"event": "resumed", "cell": trainee.key, "epoch": start[0], "step": start[1]})
                cells.append(cell)
            except Exception as error:
                self._refuse(trainee, error)
        if not cells:
            return
        forward = None if teacher is None else Forward(teacher, self.tuning, cells[0].trainee.folder.say)
        cache = self._cache(cells, pipeline, data_seed) if teacher is not None else None
        graphs = graphs_of(cells, self.device, self._warn)
        model = CohortModel(cells, teacher, pipeline, self.device, self._on_failure, forward, cache, graphs)
        with tempfile.TemporaryDirectory(prefix="kdbench-") as work_dir:
            runner = CohortRunner(model, self.split, task.epochs, Path(work_dir), self.emit)
            runner.resume_at(start)
            runner.train()
        for cell in model.alive:
            if not parallel.is_first():
                continue
            try:
                keep(cell)
            except OSError:
                raise
            except ClaimLostError as error:
                self.emit({"event": "lost", "cell": cell.trainee.key, "reason": str(error)})
            except Exception as error:
                model.fail(cell, error)

    def _cache(self, cells: Sequence[CellTrainer], pipeline: Pipeline, data_seed: int) -> TeacherCache | None:
        """What the teacher computed for these batches before, where that was asked for and can be told for sure."""
        if not self.tuning.cache_teacher or parallel.world_size() > 1:
            return None
        recipe = cells[0].trainee.recipe
        key = {
            **{name: value for name, value in self.describes.items() if name != "root"},
            "data": [self.data_checksum, len(self.data), self.spec.identity()],
            "batches": [data_seed, len(pipeline), recipe.identity()],
            "tuning": [self.tuning.compile, self.tuning.channels_last],
            "where": {
                name: value for name, value in provenance(self.device).items()
                if name in ("kdbench", "versions", "device", "device_type", "threads")
            },
        }  # fmt: skip
        limit = 1e9 * self.tuning.cache_teacher
        return TeacherCache(Path(self.describes["root"]), key, len(pipeline), limit, cells[0].trainee.folder.say)

    def _refuse(self, trainee: Trainee, error: Exception) -> None:
        sentence = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
        self._record(trainee, "exception", sentence, 0, "".join(traceback.format_exception(error)))

    def _warn(self, cell: CellTrainer, text: str) -> None:
        if parallel.is_first():
            cell.trainee.folder.say(text)
        self.emit({"event": "warning", "reason": text})

    def _on_failure(self, cell: CellTrainer, kind: str, sentence: str, details: str) -> None:
        self._record(cell.trainee, kind, sentence, cell.epoch, details)

    def _record(self, trainee: Trainee, kind: str, sentence: str, epoch: int, details: str) -> None:
        if not parallel.is_first():
            return
        try:
            trainee.folder.confirm()
        except ClaimLostError as error:
            self.emit({"event": "lost", "cell": trainee.key, "reason": str(error)})
            return
        trainee.folder.say(f"failed ({kind}): {sentence}\n{details}")
        write_json(trainee.folder.failed, {"kind": kind, "reason": sentence, "epoch": epoch})
        self.emit({"event": "failed", "cell": trainee.key, "kind": kind, "reason": sentence})
