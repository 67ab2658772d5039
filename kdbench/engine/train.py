"""What a worker does: train one teacher, or one cohort, from the plan to files in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kdbench.engine.process  # isort: skip  # noqa: F401 - first, so that its message comes before a traceback

import torch

from kdbench.data.images import Dataset
from kdbench.data.views import view_of
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer, TrainingSpec
from kdbench.engine.evaluation import Evaluated, predict_all
from kdbench.engine.groups import Session
from kdbench.engine.numerics import set_numerics
from kdbench.engine.process import keep_freed_memory
from kdbench.engine.record import (
    cost_of,
    finish,
    metrics_of,
    plugin_metrics,
    scores_of,
    write_history,
    write_inference,
    write_predictions,
)
from kdbench.engine.saver import Emit
from kdbench.engine.teacher import check_finite, load_teacher, save_weights
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.matrix.devices import check_device
from kdbench.matrix.settings import found_of
from kdbench.matrix.teachers import TeacherPlan
from kdbench.nets.tapped import TappedNet, state_hash
from kdbench.plugins.metrics import measure
from kdbench.seeding import seed_for
from kdbench.store.classnames import write_classes
from kdbench.store.folders import Store
from kdbench.store.provenance import provenance
from kdbench.store.result import (
    CellResult,
    Cost,
    Scores,
    TeacherMetrics,
    TeacherResult,
    TeacherUsed,
    Weights,
    scores,
    write_record,
)


def setup(threads: int, device: str | None = None) -> torch.device:
    """Fix the number of CPU threads (results depend on it in the last bits), keep freed memory, and choose the device.

    Raises:
        KdbenchError: if the device is not there, or there are GPUs that cannot be used and none was named.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    check_device(device)
    chosen = device_of(device)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)
    return chosen


def device_of(name: str | None) -> torch.device:
    """The device of ``--device``, by default a GPU where there is one. No CUDA context is made, and nothing is checked."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train_teacher(
    plan: Plan,
    teacher: TeacherPlan,
    store: Store,
    device: torch.device,
    emit: Emit,
    start: Path | None = None,
    origin: Weights | None = None,
) -> None:
    """Train a teacher on the whole training split and keep its weights.

    Args:
        start: weights from which it is fine-tuned; from scratch where there are none.
        origin: where they come from.

    Raises:
        KdbenchError: if its training failed.
    """
    plan.catalog.load_metrics()
    set_numerics(teacher.recipe, plan.request)
    dataset = plan.dataset(teacher.split)
    folder = store.teacher_folder(teacher)
    if parallel.is_first():
        folder.configure(teacher.hash, teacher.config, {})
    split = dataset.measured(teacher.split, plan.under.measured_images_per_class)
    train = dataset.training(plan.under.teacher_images_per_class)

    def keep(cell: CellTrainer) -> None:
        folder.confirm()
        write_history(cell)
        write_teacher(
            plan, teacher, store, dataset, cell.measured.student, scores_of(cell.history[-1]), device, origin,
            cost_of(cell, device),
        )  # fmt: skip
        finish(cell)
        emit({"event": "done", "cell": cell.key, "top1": cell.history[-1]["top1"], "seconds": cell.train_seconds})

    seed = seed_for("teacher", teacher.name, teacher.seed, "data")
    taught = load_teacher(teacher.teachers[0], store, dataset.num_classes, device)[0] if teacher.net.taught_by else None
    evaluated = Evaluated(split, None, device, plan.request.loaders)
    session = Session(plan, store.root, dataset, train, evaluated, device, emit, seed, keep, taught)
    session.train([teacher_spec(plan, teacher, store, start)])
    parallel.barrier()
    if store.result_of_teacher(teacher) is None and folder.failed.exists():  # else another process has taken it over
        raise KdbenchError(f"training of teacher {teacher.name} failed: {folder.failure().reason}; see {folder.log}")


def train_cohort(
    plan: Plan,
    cohort: Cohort,
    store: Store,
    device: torch.device,
    emit: Emit,
) -> None:
    """Train the cells of a cohort that are not done; each ends as ``result.json`` or ``failed.json``.

    Raises:
        KdbenchError: if the teacher or the data cannot be loaded.
    """
    plan.catalog.load_metrics()
    first = cohort.cells[0]
    set_numerics(first.recipe, plan.request)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    dataset = plan.dataset(first.split)
    if parallel.is_first():
        write_classes(store.root, dataset.name, dataset.class_names, dataset.coarse, dataset.coarse_names)
    teacher, teacher_result = load_teacher(cohort.teacher, store, dataset.num_classes, device)
    split = dataset.measured(first.split, plan.under.measured_images_per_class)
    teacher_logits = predict_all(
        lambda images: teacher(images).logits,
        split,
        view_of(plan.suite.dataset.image_size, cohort.teacher.net, first.recipe),
        device,
        plan.request.loaders,
    )
    check_finite(cohort.teacher.name, teacher_logits)
    taught = TeacherUsed(
        name=teacher_result.name,
        hash=teacher_result.hash,
        checksum=teacher_result.checksum,
        metrics=scores(measure(teacher_logits, split.labels.to(device))),
    )
    train = dataset.training(plan.under.images_per_class)
    evaluated, checksum = Evaluated(split, teacher_logits, device, plan.request.loaders), dataset.checksum()
    cells = {cell.key: cell for cell in cohort.cells}
    observers = {hook.name: hook.source for hook in plan.hooks if hook.observes}
    found = found_of(plan.suite, plan.request)

    def keep(trained: CellTrainer) -> None:
        if state_hash(teacher.net) != taught.checksum:
            raise KdbenchError("the teacher's parameters or buffers changed during training")
        cell = cells[trained.key]
        trained.spec.folder.confirm()
        assert trained.last_logits is not None
        write_history(trained)
        write_predictions(trained.spec.folder, trained.last_logits, evaluated.labels)
        save_weights(trained.measured.student.net, trained.spec.folder.student)
        write_inference(trained.spec.folder, trained.measured.method)
        last = trained.history[-1]
        trained.spec.folder.finish(
            CellResult(
                hash=cell.hash,
                metrics=metrics_of(trained.history),
                plugin_metrics=plugin_metrics(last),
                losses={name: value for name, value in last.items() if name.startswith("loss")},
                teacher=taught,
                cost=cost_of(trained, device, cohort.memory),
                dataset_checksum=checksum,
                train_images=len(train),
                provenance={
                    **provenance(device),
                    "observers": observers,
                    "search": found.record(cell.config["method"]["name"]) if found else {},
                },
            )
        )
        finish(trained)
        emit({"event": "done", "cell": cell.key, "top1": last["top1"], "seconds": trained.train_seconds})

    seed = seed_for("data", first.suite, first.protocol, first.recipe_name, first.seed)
    session = Session(
        plan, store.root, dataset, train, evaluated, device, emit, seed, keep, teacher,
        hooks=plan.hooks,
    )  # fmt: skip
    session.train([spec_of(plan, cell, store) for cell in cohort.cells])


def write_teacher(
    plan: Plan,
    teacher: TeacherPlan,
    store: Store,
    dataset: Dataset,
    net: TappedNet,
    measured: Scores,
    device: torch.device,
    weights: Weights | None,
    cost: Cost | None = None,
) -> None:
    """Keep a teacher's weights and its result: what it reaches, on which of how many images, and among which classes."""
    folder, chosen = store.teacher_folder(teacher), plan.suite.dataset.class_list
    result = TeacherResult(
        name=teacher.name,
        hash=teacher.hash,
        checksum=save_weights(net.net, folder.weights),
        metrics=TeacherMetrics(last=measured),
        weights=weights,
        cost=cost,
        dataset_checksum=dataset.checksum(),
        provenance=provenance(device),
        images=len(dataset.measured(teacher.split, plan.under.measured_images_per_class)),
        split_images=len(dataset.split(teacher.split)),
        classes=plan.num_classes,
        chosen_classes=None if chosen is None else len(chosen),
    )
    write_record(folder.result, result)


def teacher_spec(plan: Plan, teacher: TeacherPlan, store: Store, start: Path | None = None) -> TrainingSpec:
    """What is trained for a teacher: its net, from scratch or from the weights in ``start`` with a new classifier.

    An assistant learns by the method of its configuration, any other from the labels alone.
    """
    learns = teacher.config.get("method", {"name": "scratch", "hyperparameters": {}})
    method: Any = plan.catalog.find(learns["name"]).load()
    return TrainingSpec(
        key=teacher.name,
        name=teacher.name,
        net=teacher.net,
        recipe=teacher.recipe,
        method=method,
        hyperparameters=learns["hyperparameters"],
        net_seed=seed_for("teacher", teacher.name, teacher.seed, "init"),
        method_seed=seed_for("teacher", teacher.name, teacher.seed, "method"),
        folder=store.teacher_folder(teacher),
        start=start,
        config=teacher.config,
        view=view_of(plan.suite.dataset.image_size, teacher.net, teacher.recipe),
    )


def spec_of(plan: Plan, cell: Cell, store: Store) -> TrainingSpec:
    """What is trained for a cell."""
    method: Any = plan.catalog[cell.method].load()
    return TrainingSpec(
        key=cell.key,
        name=cell.student,
        net=cell.student_net,
        recipe=cell.recipe,
        method=method,
        hyperparameters=cell.hyperparameters,
        net_seed=seed_for("student", cell.suite, cell.protocol, cell.student, cell.seed),
        method_seed=seed_for("method", cell.suite, cell.protocol, cell.pair, cell.config["method"]["name"], cell.seed),
        folder=store.cell(cell),
        config=cell.config,
        view=view_of(plan.suite.dataset.image_size, cell.student_net, cell.recipe),
    )
