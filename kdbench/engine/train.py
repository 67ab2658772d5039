"""What a worker does: train one teacher, or one cohort, from the plan to files in the store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kdbench.engine.process  # isort: skip  # noqa: F401 - first, so that its message comes before a traceback

import torch

from kdbench.data.transforms import EvaluationView
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer, Trainee
from kdbench.engine.groups import Session
from kdbench.engine.process import keep_freed_memory
from kdbench.engine.record import cost_of, finish, scores, write_history, write_predictions
from kdbench.engine.runner import Emit, Evaluated, predict_all
from kdbench.engine.teacher import load_teacher, save_weights
from kdbench.engine.tuning import PLAIN, Tuning
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, Cohort, Plan, open_dataset
from kdbench.matrix.teachers import TeacherPlan
from kdbench.nets.tapped import preprocessing_of, state_hash
from kdbench.plugins.metrics import measure
from kdbench.seeding import seed_for
from kdbench.store.classnames import write_classes
from kdbench.store.folders import FORMAT, Store, write_json
from kdbench.store.provenance import provenance
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe


def setup(threads: int, device: str | None = None) -> torch.device:
    """Fix the number of CPU threads (results depend on it in the last bits), keep freed memory, and choose the device."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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
    session = Session(plan, dataset, train, Evaluated(split, None, device), device, emit)

    def keep(cell: CellTrainer) -> None:
        folder.confirm()
        write_history(cell)
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
                "cost": cost_of(cell, device),
                "dataset_checksum": session.data_checksum,
                "provenance": provenance(device),
            },
        )
        finish(cell)
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
    session = Session(plan, dataset, train, evaluated, device, emit, tuning)
    session.describes = {"teacher": checksum_before, "split": first.split, "root": str(store.root)}
    cells = {cell.key: cell for cell in cohort.cells}

    def keep(trained: CellTrainer) -> None:
        if state_hash(teacher.net) != checksum_before:
            raise KdbenchError("the teacher's parameters or buffers changed during training")
        cell = cells[trained.trainee.key]
        trained.trainee.folder.confirm()
        assert trained.last_logits is not None
        write_history(trained)
        write_predictions(trained.trainee.folder, trained.last_logits, evaluated.labels)
        save_weights(trained.measured.student, trained.trainee.folder.path / "student.safetensors")
        best = max(trained.history, key=lambda row: row["top1"])
        trained.trainee.folder.finish(
            {
                "format": FORMAT,
                "kind": "cell",
                "hash": cell.hash,
                "metrics": {"last": scores(trained.history[-1]), "best": scores(best)},
                "losses": {name: value for name, value in trained.history[-1].items() if name.startswith("loss")},
                "teacher": {
                    "name": cell.teacher.name,
                    "hash": cell.teacher.hash,
                    "checksum": checksum_before,
                    **teacher_metrics,
                },
                "cost": {
                    **cost_of(trained, device),
                    **({"estimated_memory_bytes": cohort.memory} if cohort.memory else {}),
                },
                "dataset_checksum": session.data_checksum,
                "train_images": len(train),
                "provenance": provenance(device),
            },
        )
        finish(trained)
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
