"""What a run will cost before it starts: from steps that were measured in this run directory, else from a probe of a few steps."""

from __future__ import annotations

import heapq
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.plan import Cell, Cohort, Plan, TeacherPlan
from kdbench.room import training_images
from kdbench.store import DamagedFileError, Store, read_json

#: Seconds that a worker needs before its first step (imports, data, nets) where that was not timed: 4 to 9 were seen on two
#: cores.
STARTUP_SECONDS = 7.0
#: Of it, what is not import (opening the data, building nets, measuring the teacher), and what the end of a cell takes
#: (timing its inference, writing its files), as seen on two cores.
SETUP_SECONDS, FINISH_SECONDS = 2.5, 0.25
#: A probe stops after so many seconds; what was not reached is taken from its likes.
PROBE_BUDGET = 90.0
#: Images of a test split whose size is not known before it is loaded: CIFAR's 10,000, ImageNet's 50,000 lie on both sides.
TEST_IMAGES = 20_000


@dataclass(frozen=True)
class JobEstimate:
    """Cost of one job. ``source`` is ``measured``, ``probed`` or ``guessed``."""

    name: str
    seconds: float
    source: str
    needs: str | None = None


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan with a number of workers. ``compute_seconds`` adds up all jobs; ``wall_seconds`` runs them side by side."""

    jobs: tuple[JobEstimate, ...]
    workers: int
    compute_seconds: float
    wall_seconds: float
    disk_bytes: int
    memory_bytes: int


def estimate(
    plan: Plan,
    cohorts: Sequence[Cohort],
    store: Store,
    workers: int,
    *,
    device: str | None = None,
    data: Path | None = None,
    probe: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Estimate what is left of a plan.

    Args:
        plan: the plan.
        cohorts: what is left to train.
        store: the run directory; cells of the same pair and method that were measured there come first.
        workers: number of jobs at a time.
        probe: take a few steps of what was never measured (else guess from parameter counts).
        progress: called with a line before each probe.
    """
    from kdbench.engine import work

    begun = work.now()
    torch_device = work.setup(plan.suite.cpu_threads, device)
    measured = _measured_steps(store)
    probed: dict[Any, float] = {}
    jobs = []
    teachers = {cohort.teacher.hash: cohort.teacher for cohort in cohorts}
    for teacher in teachers.values():
        if store.result_of_teacher(teacher) is not None:
            continue
        if not teacher.trained_here:
            jobs.append(JobEstimate(f"teacher {teacher.name}", _loading_seconds(plan, teacher), "guessed"))
            continue
        steps = _steps(plan, teacher, data)
        seconds, source = _teacher_seconds(plan, teacher, steps, probe, torch_device, data, progress, begun)
        jobs.append(JobEstimate(f"teacher {teacher.name}", seconds, source))
    startup = _startup_seconds() if probe and cohorts else STARTUP_SECONDS
    jobs = [replace(job, seconds=job.seconds + startup) for job in jobs]
    pending = {job.name for job in jobs}
    for cohort in cohorts:
        seconds, source = _cohort_seconds(plan, cohort, measured, probed, probe, torch_device, data, progress, begun)
        needs = f"teacher {cohort.teacher.name}"
        seconds += startup + FINISH_SECONDS * len(cohort.cells)
        jobs.append(JobEstimate(cohort.name, seconds, source, needs if needs in pending else None))
    disk, memory = _space(plan, cohorts)
    return Estimate(tuple(jobs), workers, sum(job.seconds for job in jobs), wall_time(jobs, workers), disk, memory)


def _startup_seconds() -> float:
    """What a worker takes to import what it needs, and to set up its work: the better of two tries, as one may be disturbed."""
    found = []
    for _ in range(2):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", "import kdbench.engine.prepare"], capture_output=True, check=False)
        found.append(STARTUP_SECONDS if done.returncode else time.monotonic() - begun)
    return SETUP_SECONDS + min(found)


def wall_time(jobs: Sequence[JobEstimate], workers: int) -> float:
    """Seconds until the last job ends when ``workers`` take them in order, each as soon as what it needs is done."""
    free = [0.0] * max(1, workers)
    heapq.heapify(free)
    ended: dict[str, float] = {}
    waiting = list(jobs)
    now = 0.0
    while waiting:
        now = max(now, heapq.heappop(free))
        ready = next((job for job in waiting if job.needs is None or ended.get(job.needs, float("inf")) <= now), None)
        if ready is None:
            now = min(ended[job.needs] for job in waiting if job.needs in ended)
            heapq.heappush(free, now)
            continue
        waiting.remove(ready)
        ended[ready.name] = now + ready.seconds
        heapq.heappush(free, now + ready.seconds)
    return max(ended.values(), default=0.0)


def steps_of(plan: Plan, cell: Cell, train_images: int) -> int:
    """Number of steps of a cell."""
    return cell.recipe.epochs * (train_images // cell.recipe.batch_size)


def _steps(plan: Plan, teacher: TeacherPlan, data: Path | None) -> int:
    return teacher.recipe.epochs * (
        training_images(plan, teacher.split, plan.teacher_images_per_class, data) // teacher.recipe.batch_size
    )


def _measured_steps(store: Store) -> dict[Any, float]:
    """Seconds per step, everything included, of what was trained in this run directory."""
    collected: dict[Any, list[float]] = {}
    for path in store.root.glob("*/*/*--*/*/seed*-*/result.json"):
        try:
            result, stored = read_json(path), read_json(path.parent / "config.json")
            config = stored["config"]
            key = (
                config["teacher"]["name"],
                config["student"]["name"],
                config["method"]["name"],
                config["recipe"]["batch_size"],
                result["provenance"]["device"],
            )
            collected.setdefault(key, []).append(result["cost"]["train_seconds"] / max(1, result["cost"]["steps"]))
        except (OSError, DamagedFileError, KeyError, TypeError):
            continue
    return {key: statistics.median(values) for key, values in collected.items()}


def _teacher_seconds(
    plan: Plan,
    teacher: TeacherPlan,
    steps: int,
    probe: bool,
    device: Any,
    data: Path | None,
    progress: Callable[[str], None],
    begun: float,
) -> tuple[float, str]:
    from kdbench.engine import work
    from kdbench.engine.probe import probe_teacher

    if probe and work.now() - begun < PROBE_BUDGET:
        progress(f"timing a few steps of teacher {teacher.name}")
        step, evaluation = probe_teacher(plan, teacher, device, data)
        return steps * step + teacher.recipe.epochs * evaluation, "probed"
    return steps * _guess(plan, teacher, None), "guessed"


def _loading_seconds(plan: Plan, teacher: TeacherPlan) -> float:
    """Seconds to load a teacher and to measure it on the test split: 1 ns per parameter and image, a third of a step's."""
    from kdbench.nets.tapped import count_parameters

    per_class = plan.measured_images_per_class
    images = plan.choice.limit or (per_class * plan.num_classes if per_class else TEST_IMAGES)
    return 1e-9 * count_parameters(teacher.net, plan.num_classes, teacher.name) * images


def _cohort_seconds(
    plan: Plan,
    cohort: Cohort,
    measured: dict[Any, float],
    probed: dict[Any, float],
    probe: bool,
    device: Any,
    data: Path | None,
    progress: Callable[[str], None],
    begun: float,
) -> tuple[float, str]:
    from kdbench.engine import work
    from kdbench.engine.probe import probe_cohort
    from kdbench.provenance import device_name

    first = cohort.cells[0]
    steps = steps_of(plan, first, training_images(plan, first.split, plan.images_per_class, data))
    keys = [
        (cell.teacher.name, cell.student, cell.method, cell.recipe.batch_size, device_name(device))
        for cell in cohort.cells
    ]
    if all(key in measured for key in keys):
        return steps * sum(measured[key] for key in keys), "measured"
    signature = tuple(keys)
    if signature in probed:  # another seed of the same cells
        return probed[signature], "probed"
    if probe and work.now() - begun < PROBE_BUDGET:
        progress(f"timing a few steps of {cohort.name}")
        step, evaluation = probe_cohort(plan, cohort, device, data)
        probed[signature] = steps * step + cohort.cells[0].recipe.epochs * evaluation
        return probed[signature], "probed"
    return steps * sum(_guess(plan, cohort.teacher, cell) for cell in cohort.cells), "guessed"


def _guess(plan: Plan, teacher: TeacherPlan, cell: Cell | None) -> float:
    """Seconds per step from parameter counts, where nothing was timed: 3 ns per parameter and image, an order of magnitude."""
    from kdbench.nets.tapped import count_parameters

    classes = plan.num_classes
    if cell is None:
        return 3e-9 * count_parameters(teacher.net, classes, teacher.name) * teacher.recipe.batch_size
    return 3e-9 * count_parameters(cell.student_net, classes, cell.student) * cell.recipe.batch_size


def _space(plan: Plan, cohorts: Sequence[Cohort]) -> tuple[int, int]:
    """Disk that the results will take, and memory of the largest cohort."""
    from kdbench.nets.tapped import count_parameters

    classes = plan.num_classes
    disk = 0
    for cohort in cohorts:
        sizes = [4 * count_parameters(cell.student_net, classes, cell.student) for cell in cohort.cells]
        disk += sum(sizes) + 40_000 * len(sizes)
    teachers = {cohort.teacher.hash: cohort.teacher for cohort in cohorts}
    disk += sum(4 * count_parameters(teacher.net, classes, teacher.name) for teacher in teachers.values())
    return disk, max((cohort.memory for cohort in cohorts), default=0)
