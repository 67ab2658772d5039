"""Seconds per step and per evaluation, from a few timed steps of untrained nets."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

import kdbench.engine.process  # noqa: F401 - its message comes before a traceback
from kdbench.data.batches import Pipeline
from kdbench.data.images import Images
from kdbench.data.pipeline import make_pipeline
from kdbench.engine.cell import CellTrainer
from kdbench.engine.cohort import CohortModel
from kdbench.engine.compiled import Forward
from kdbench.engine.evaluation import predict_all
from kdbench.engine.teacher import freeze
from kdbench.engine.train import spec_of, teacher_spec
from kdbench.matrix.cells import Cohort, Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet
from kdbench.store.folders import Store

#: After one step to warm up, at least and at most so many steps are timed, for about so many seconds.
LEAST_STEPS, MOST_STEPS, TIMED_SECONDS = 3, 20, 2.0
#: One step is enough where it takes so many seconds: disturbances average out over its many cells.
LONG_STEP = 4.0
#: Images of the timed evaluation, which follows one to warm up.
TIMED_IMAGES = 250


@dataclass(frozen=True)
class Probe:
    """Measured times.

    Attributes:
        step: seconds per step of the whole cohort.
        evaluation: seconds per evaluation of all its cells.
        cells: seconds per step of each cell, in the cohort's order.
    """

    step: float
    evaluation: float
    cells: tuple[float, ...]


def probe_cohort(plan: Plan, cohort: Cohort, device: torch.device) -> Probe:
    """Time a cohort with nets that are not trained. Writes nothing."""
    split = cohort.cells[0].split
    dataset = plan.dataset(split)
    train = dataset.training(plan.under.images_per_class)
    teacher = freeze(TappedNet(cohort.teacher.net, dataset.num_classes, cohort.teacher.name).to(device))
    recipe = cohort.cells[0].recipe
    strong = any("strong" in plan.catalog[cell.method].needs for cell in cohort.cells)
    pipeline = make_pipeline(train, plan.suite.dataset, recipe, dataset.num_classes, 0, device, strong)
    task = Task(dataset.num_classes, len(train), train.labels, dataset.name, recipe.epochs)
    store = Store("unused")
    cells = [
        CellTrainer(spec_of(plan, cell, store), task, teacher.describe(), len(pipeline), device)
        for cell in cohort.cells
    ]
    model = CohortModel(cells, Forward(teacher), pipeline, device, lambda *failure: None)
    return _time(model, pipeline, dataset.measured(split, plan.under.measured_images_per_class), device)


def probe_teacher(plan: Plan, teacher: TeacherPlan, device: torch.device) -> Probe:
    """The same for the training of a teacher."""
    dataset = plan.dataset(teacher.split)
    train = dataset.training(plan.under.teacher_images_per_class)
    pipeline = make_pipeline(train, plan.suite.dataset, teacher.recipe, dataset.num_classes, 0, device)
    task = Task(dataset.num_classes, len(train), train.labels, dataset.name, teacher.recipe.epochs)
    taught = [freeze(TappedNet(each.net, dataset.num_classes, each.name).to(device)) for each in teacher.teachers]
    info, forward = (taught[0].describe(), Forward(taught[0])) if taught else (None, None)
    cell = CellTrainer(teacher_spec(plan, teacher, Store("unused")), task, info, len(pipeline), device)
    model = CohortModel([cell], forward, pipeline, device, lambda *failure: None)
    return _time(model, pipeline, dataset.measured(teacher.split, plan.under.measured_images_per_class), device)


def _time(model: CohortModel, pipeline: Pipeline, split: Images, device: torch.device) -> Probe:
    model.train()
    seconds = []
    for step in range(MOST_STEPS + 1):
        begun = _now(device)
        model.train_step(pipeline.make(0, step % len(pipeline)))
        seconds.append(_now(device) - begun)
        if step == 0:
            for cell in model.alive:
                cell.watch.read()
        elif step >= (1 if seconds[-1] > LONG_STEP else LEAST_STEPS) and sum(seconds[1:]) > TIMED_SECONDS:
            break
    own = [total / max(1, count) for total, count in (cell.watch.read() for cell in model.cells)]
    model.eval()
    count = min(len(split), TIMED_IMAGES)
    part = split.take(torch.arange(count))
    of_student: dict[str, float] = {}  # nearly all methods evaluate their student alone
    for cell in model.alive:
        if cell.spec.name in of_student:
            continue
        for _ in range(2):
            begun = _now(device)
            predict_all(cell.predict, part, cell.spec.view, device)
            of_student[cell.spec.name] = (_now(device) - begun) * len(split) / count
    evaluation = sum(of_student[cell.spec.name] for cell in model.alive)
    return Probe(sum(seconds[1:]) / len(seconds[1:]), evaluation, tuple(own))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
