"""Seconds per step, measured with a few steps of untrained nets: the base of an estimate where nothing was measured yet."""

from __future__ import annotations

import time
from pathlib import Path

import torch

import kdbench.engine.backend  # noqa: F401 - its message comes before a traceback
from kdbench.data.images import Images
from kdbench.data.pipeline import Pipeline, make_pipeline
from kdbench.engine.cell import CellTrainer
from kdbench.engine.cohort import CohortModel
from kdbench.engine.runner import predict_all
from kdbench.engine.teacher import freeze
from kdbench.engine.work import trainee_of
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet
from kdbench.plan import Cohort, Plan, TeacherPlan, open_dataset
from kdbench.store import Store

#: Steps are timed, after one that is not, until there are so many, or so many seconds are used.
LEAST_STEPS, MOST_STEPS, TIMED_SECONDS = 3, 20, 2.0
#: Images of an evaluation that is timed, after one that is not.
TIMED_IMAGES = 250


def probe_cohort(plan: Plan, cohort: Cohort, device: torch.device, data: Path | None) -> tuple[float, float]:
    """Time a cohort with nets that are not trained. Writes nothing.

    Returns:
        seconds per step of the whole cohort, seconds per evaluation of all its cells.
    """
    split = cohort.cells[0].split
    dataset = open_dataset(plan, data, split)
    train = dataset.training(plan.images_per_class)
    teacher = freeze(TappedNet(cohort.teacher.net, dataset.num_classes, cohort.teacher.name).to(device))
    recipe = cohort.cells[0].recipe
    strong = any("strong" in plan.catalog[cell.method].needs for cell in cohort.cells)
    pipeline = make_pipeline(train, plan.suite.dataset, recipe, dataset.num_classes, 0, device, strong)
    task = Task(dataset.num_classes, len(train), train.labels, dataset.name, recipe.epochs)
    store = Store("unused")
    cells = [
        CellTrainer(trainee_of(plan, cell, store), task, teacher.describe(), len(pipeline), device)
        for cell in cohort.cells
    ]
    model = CohortModel(cells, teacher, pipeline, device, lambda *failure: None)
    return _time(model, pipeline, dataset.measured(split, plan.measured_images_per_class), device)


def probe_teacher(plan: Plan, teacher: TeacherPlan, device: torch.device, data: Path | None) -> tuple[float, float]:
    """The same for the training of a teacher."""
    from kdbench.engine.work import teacher_trainee

    dataset = open_dataset(plan, data, teacher.split)
    train = dataset.training(plan.teacher_images_per_class)
    pipeline = make_pipeline(train, plan.suite.dataset, teacher.recipe, dataset.num_classes, 0, device)
    task = Task(dataset.num_classes, len(train), train.labels, dataset.name, teacher.recipe.epochs)
    cell = CellTrainer(teacher_trainee(plan, teacher, Store("unused")), task, None, len(pipeline), device)
    model = CohortModel([cell], None, pipeline, device, lambda *failure: None)
    return _time(model, pipeline, dataset.measured(teacher.split, plan.measured_images_per_class), device)


def _time(model: CohortModel, pipeline: Pipeline, split: Images, device: torch.device) -> tuple[float, float]:
    wrappers = {cell.trainee.key: cell.optim_wrapper for cell in model.alive}
    model.train()
    seconds = []
    for step in range(MOST_STEPS + 1):
        begun = _now(device)
        model.train_step(pipeline.make(0, step % len(pipeline)), wrappers)
        seconds.append(_now(device) - begun)
        if step >= LEAST_STEPS and sum(seconds[1:]) > TIMED_SECONDS:
            break
    model.eval()
    count = min(len(split), TIMED_IMAGES)
    part = split.take(torch.arange(count))
    for _ in range(2):
        begun = _now(device)
        for cell in model.alive:
            predict_all(cell.predict, part, cell.trainee.view, device)
        evaluation = (_now(device) - begun) * len(split) / count
    return sum(seconds[1:]) / len(seconds[1:]), evaluation


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
