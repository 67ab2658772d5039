"""What a worker does: train one teacher, or one cohort, from the plan to files in the store."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kdbench.engine.backend  # isort: skip  # noqa: F401 - first, so that its message comes before a traceback

import numpy as np
import torch
from torch import Tensor

from kdbench.claims import ClaimLostError
from kdbench.classes import write_classes
from kdbench.data.images import Dataset, Images
from kdbench.data.pipeline import Pipeline, make_pipeline
from kdbench.data.spec import DatasetSpec
from kdbench.data.views import EvaluationView
from kdbench.engine import parallel
from kdbench.engine.allocator import keep_freed_memory
from kdbench.engine.cell import CellTrainer, Trainee
from kdbench.engine.checkpoint import Position, common_start, load_checkpoints
from kdbench.engine.cohort import CohortModel, TooLargeError
from kdbench.engine.runner import CohortRunner, Emit, Evaluated, predict_all
from kdbench.engine.teacher import load_teacher, save_weights
from kdbench.engine.teachercache import TeacherCache
from kdbench.engine.tuned import Forward
from kdbench.errors import KdbenchError
from kdbench.measure import measure
from kdbench.method import NetInfo, Task
from kdbench.nets.cost import inference_cost
from kdbench.nets.spec import NetSpec
from kdbench.nets.tapped import TappedNet, preprocessing_of, state_hash
from kdbench.plan import Cell, Cohort, Plan, TeacherPlan, open_dataset
from kdbench.provenance import provenance
from kdbench.recipe import Recipe
from kdbench.seeding import seed_for
from kdbench.store import FORMAT, CellFolder, Store, write_bytes, write_json
from kdbench.tuning import PLAIN, Tuning


def setup(threads: int, device: str | None = None) -> torch.device:
    """Fix the number of CPU threads (results depend on it in the last bits), keep freed memory, and choose the device."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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


def now() -> float:
    """Seconds on a clock that never goes back."""
    return time.monotonic()


def train_teacher(
    plan: Plan,
    teacher: TeacherPlan,
    store: Store,
    device: torch.device,
    data: Path | None,
    emit: Emit,
    start: Path | None = None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Train a teacher on the whole training split and keep its weights.

    Args:
        start: weights from which it is fine-tuned; from scratch where there are none.
        origin: what its result says about them.

    Raises:
        KdbenchError: if its training failed.
    """
    dataset = open_dataset(plan, data, teacher.split)
    folder = store.teacher_folder(teacher)
    if parallel.is_first():
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.config, {"format": FORMAT, "hash": teacher.hash, "config": teacher.config, "facts": {}})
    trainee = teacher_trainee(plan, teacher, store, start)
    split = dataset.measured(teacher.split, plan.measured_images_per_class)
    train = dataset.training(plan.teacher_images_per_class)
    session = _Session(plan, dataset, train, Evaluated(split, None, device), device, emit)

    def keep(cell: CellTrainer) -> None:
        folder.confirm()
        _write_history(cell)
        checksum = save_weights(cell.measured.student, folder.path / "weights.safetensors")
        write_json(
            folder.result,
            {
                "format": FORMAT,
                "kind": "teacher",
                "name": teacher.name,
                "hash": teacher.hash,
                "checksum": checksum,
                "metrics": {"last": cell.history[-1]},
                **({"weights": dict(origin)} if origin else {}),
                "cost": _cost(cell, device),
                "dataset_checksum": session.data_checksum,
                "provenance": provenance(device),
            },
        )
        _finish(cell)
        emit({"event": "done", "cell": trainee.key, "top1": cell.history[-1]["top1"], "seconds": cell.train_seconds})

    session.train([trainee], None, None, seed_for("teacher", teacher.hash, "data"), keep)
    parallel.barrier()
    if store.result_of_teacher(teacher) is None and folder.failed.exists():  # else another process has taken it over
        raise KdbenchError(f"training of teacher {teacher.name} failed: {folder.failure()['reason']}; see {folder.log}")


def train_cohort(
    plan: Plan,
    cohort: Cohort,
    store: Store,
    device: torch.device,
    data: Path | None,
    emit: Emit,
    tuning: Tuning = PLAIN,
) -> None:
    """Train the cells of a cohort that are not done; each ends as ``result.json`` or ``failed.json``.

    Raises:
        KdbenchError: if the teacher or the data cannot be loaded.
    """
    first = cohort.cells[0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    dataset = open_dataset(plan, data, first.split)
    if parallel.is_first():
        write_classes(store.root, dataset.name, dataset.class_names, dataset.coarse, dataset.coarse_names)
    teacher, teacher_result = load_teacher(cohort.teacher, store, dataset.num_classes, device)
    split = dataset.measured(first.split, plan.measured_images_per_class)
    teacher_logits = predict_all(
        lambda images: teacher(images).logits, split, view_of(plan, cohort.teacher.net, first.recipe), device
    )
    teacher_metrics = measure(teacher_logits, split.labels.to(device))
    checksum_before = teacher_result["checksum"]
    train = dataset.training(plan.images_per_class)
    evaluated = Evaluated(split, teacher_logits, device)
    session = _Session(plan, dataset, train, evaluated, device, emit, tuning)
    session.describes = {"teacher": checksum_before, "split": first.split, "root": str(store.root)}
    cells = {cell.key: cell for cell in cohort.cells}

    def keep(trained: CellTrainer) -> None:
        if state_hash(teacher.net) != checksum_before:
            raise KdbenchError("the teacher's parameters or buffers changed during training")
        cell = cells[trained.trainee.key]
        trained.trainee.folder.confirm()
        assert trained.last_logits is not None
        _write_history(trained)
        _write_predictions(trained.trainee.folder, trained.last_logits, evaluated.labels)
        save_weights(trained.measured.student, trained.trainee.folder.path / "student.safetensors")
        best = max(trained.history, key=lambda row: row["top1"])
        trained.trainee.folder.finish(
            {
                "format": FORMAT,
                "kind": "cell",
                "hash": cell.hash,
                "metrics": {"last": _scores(trained.history[-1]), "best": _scores(best)},
                "losses": {name: value for name, value in trained.history[-1].items() if name.startswith("loss")},
                "teacher": {
                    "name": cell.teacher.name,
                    "hash": cell.teacher.hash,
                    "checksum": checksum_before,
                    **teacher_metrics,
                },
                "cost": {
                    **_cost(trained, device),
                    **({"estimated_memory_bytes": cohort.memory} if cohort.memory else {}),
                },
                "dataset_checksum": session.data_checksum,
                "train_images": len(train),
                "provenance": provenance(device),
            },
        )
        _finish(trained)
        row = trained.history[-1]
        emit({"event": "done", "cell": cell.key, "top1": row["top1"], "seconds": trained.train_seconds})

    trainees = [trainee_of(plan, cell, store) for cell in cohort.cells]
    data_seed = seed_for("data", first.suite, first.protocol, first.recipe_name, first.seed)
    session.train(trainees, teacher, teacher.describe(), data_seed, keep)


def teacher_trainee(plan: Plan, teacher: TeacherPlan, store: Store, start: Path | None = None) -> Trainee:
    """What is trained for a teacher: its net, from scratch or from the weights in ``start`` with a new classifier."""
    scratch: Any = plan.catalog.find("scratch").load()
    return Trainee(
        key=teacher.name,
        name=teacher.name,
        net=teacher.net,
        recipe=teacher.recipe,
        method=scratch,
        hyperparameters={},
        net_seed=seed_for("teacher", teacher.hash, "init"),
        method_seed=seed_for("teacher", teacher.hash, "method"),
        folder=store.teacher_folder(teacher),
        start=start,
        view=view_of(plan, teacher.net, teacher.recipe),
    )


def trainee_of(plan: Plan, cell: Cell, store: Store) -> Trainee:
    """What is trained for a cell."""
    method: Any = plan.catalog[cell.method].load()
    return Trainee(
        key=cell.key,
        name=cell.student,
        net=cell.student_net,
        recipe=cell.recipe,
        method=method,
        hyperparameters=cell.hyperparameters,
        net_seed=seed_for("student", cell.suite, cell.protocol, cell.student, cell.seed),
        method_seed=seed_for("method", cell.suite, cell.protocol, cell.pair, cell.method, cell.seed),
        folder=store.cell(cell),
        view=view_of(plan, cell.student_net, cell.recipe),
    )


def view_of(plan: Plan, net: NetSpec, recipe: Recipe) -> EvaluationView:
    """What a net sees in evaluation: its own size and crop, where the suite's images have no size of their own."""
    if plan.suite.dataset.image_size is None:
        return EvaluationView()
    own = preprocessing_of(net)
    return EvaluationView(
        size=own["input_size"][0],
        crop=recipe.eval_crop or own["crop_pct"],
        interpolation=own["interpolation"],
        exact=recipe.pipeline == "exact",
    )


class _Session:
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
        model = CohortModel(cells, teacher, pipeline, self.device, self._on_failure, forward, cache)
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


def _scores(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "lr" and not name.startswith("loss")}


def _write_predictions(folder: CellFolder, logits: Tensor, labels: Tensor) -> None:
    probability, predicted = logits.double().softmax(dim=1).max(dim=1)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        predicted=predicted.cpu().numpy().astype(np.int32),
        probability=probability.cpu().numpy().astype(np.float32),
        correct=(predicted == labels).cpu().numpy(),
        label=labels.cpu().numpy().astype(np.int32),
    )
    write_bytes(folder.predictions, buffer.getvalue())


def _cost(cell: CellTrainer, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    inference = inference_cost(cell.eval().predict, cell.student.input_size, device, cell.method)
    return {
        "student_parameters": sum(parameter.numel() for parameter in cell.student.parameters()),
        "extra_parameters": cell.extra_parameters(),
        "student_gmacs": inference.gmacs,
        "inference_images_per_second": inference.images_per_second,
        "inference_batch": inference.batch,
        "inference_extra_parameters": inference.extra_parameters,
        "step_seconds": cell.step_seconds / max(1, cell.steps_timed),
        "train_seconds": cell.train_seconds,
        "steps": cell.epoch * cell.steps_per_epoch,
        **_tuning_facts(cell),
        **({"micro_batches": cell.micro_batches} if cell.micro_batches > 1 else {}),
        **({"processes": parallel.world_size()} if parallel.world_size() > 1 else {}),
        # of the whole cohort's process
        "peak_memory_bytes": int(peak),
    }


def _tuning_facts(cell: CellTrainer) -> dict[str, Any]:
    """How the run used its machine, where that was not the default."""
    facts = cell.tuning.facts()
    if cell.forward_pass.fell_back:
        facts["compile"] = f"fell back: {cell.forward_pass.fell_back}"
    return {"tuning": facts} if facts else {}


def _write_history(cell: CellTrainer) -> None:
    columns = list(dict.fromkeys(name for row in cell.history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(cell.history)
    write_bytes(cell.trainee.folder.history, text.getvalue().encode())


def _finish(cell: CellTrainer) -> None:
    """Remove what only an unfinished cell needs."""
    for path in cell.trainee.folder.checkpoints():
        path.unlink(missing_ok=True)
    cell.trainee.folder.failed.unlink(missing_ok=True)
    cell.trainee.folder.say(f"done in {cell.train_seconds:.1f} s")
