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

from kdbench.forecast.fit import training_images
from kdbench.forecast.speeds import Speeds
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import cell_paths
from kdbench.store.result import CellResult, read_record

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
    """Cost of one job. ``source`` is ``measured``, ``probed``, ``from its likes`` or ``guessed``."""

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
    from kdbench.engine import train

    timing = _Timing(plan, store, train.setup(plan.suite.cpu_threads, device), data, probe, progress, train.now())
    jobs = []
    teachers = {cohort.teacher.hash: cohort.teacher for cohort in cohorts}
    for teacher in teachers.values():
        if store.result_of_teacher(teacher) is None:
            jobs.append(JobEstimate(f"teacher {teacher.name}", *timing.of_teacher(teacher)))
    startup = _startup_seconds() if probe and cohorts else STARTUP_SECONDS
    jobs = [replace(job, seconds=job.seconds + startup) for job in jobs]
    pending = {job.name for job in jobs}
    for cohort in cohorts:
        seconds, source = timing.of_cohort(cohort)
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
        done = subprocess.run(
            [sys.executable, "-c", "import kdbench.engine.prepare_teacher"], capture_output=True, check=False
        )
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
    for path in cell_paths(store.root):
        folder = CellFolder(store.root / path)
        try:
            result, config = read_record(folder.result, CellResult), read_json(folder.config)["config"]
            key = (
                config["teacher"]["name"],
                config["student"]["name"],
                config["method"]["name"],
                config["recipe"]["batch_size"],
                result.provenance.device,
            )
            collected.setdefault(key, []).append(result.cost.train_seconds / max(1, result.cost.steps))
        except (OSError, DamagedFileError, KeyError, TypeError):
            continue
    return {key: statistics.median(values) for key, values in collected.items()}


def _loading_seconds(plan: Plan, teacher: TeacherPlan) -> float:
    """Seconds to load a teacher and to measure it on the test split: 1 ns per parameter and image, a third of a step's."""
    from kdbench.nets.tapped import count_parameters

    per_class = plan.measured_images_per_class
    images = plan.request.limit or (per_class * plan.num_classes if per_class else TEST_IMAGES)
    return 1e-9 * count_parameters(teacher.net, plan.num_classes, teacher.name) * images


class _Timing:
    """Seconds of teachers and cohorts: as measured in the run directory, else probed, else reckoned from their likes."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        device: Any,
        data: Path | None,
        probe: bool,
        progress: Callable[[str], None],
        begun: float,
    ) -> None:
        self.plan, self.device, self.data, self.progress = plan, device, data, progress
        self.until = begun + PROBE_BUDGET if probe else 0.0
        self.measured = _measured_steps(store)
        self.probed: dict[Any, float] = {}
        self.speeds = Speeds()

    def of_teacher(self, teacher: TeacherPlan) -> tuple[float, str]:
        """Seconds that a teacher takes until it can teach, and how they are known."""
        if not teacher.trained_here:
            return _loading_seconds(self.plan, teacher), "guessed"
        steps = _steps(self.plan, teacher, self.data)
        raw = steps * _guess(self.plan, teacher, None)
        if self._may_probe():
            from kdbench.forecast.probe import probe_teacher

            self.progress(f"timing a few steps of teacher {teacher.name}")
            probe = probe_teacher(self.plan, teacher, self.device, self.data)
            seconds = steps * probe.step + teacher.recipe.evaluations * probe.evaluation
            if raw:
                self.speeds.teachers.append(seconds / raw)
            return seconds, "probed"
        like = self.speeds.of_teacher(raw)
        return (raw, "guessed") if like is None else (like, "from its likes")

    def of_cohort(self, cohort: Cohort) -> tuple[float, str]:
        """Seconds that a cohort trains, and how they are known."""
        from kdbench.store.provenance import device_name

        first = cohort.cells[0]
        steps = steps_of(
            self.plan, first, training_images(self.plan, first.split, self.plan.images_per_class, self.data)
        )
        device = device_name(self.device)
        keys = tuple(
            (cell.teacher.name, cell.student, cell.method, cell.recipe.batch_size, device) for cell in cohort.cells
        )
        if all(key in self.measured for key in keys):
            return steps * sum(self.measured[key] for key in keys), "measured"
        if keys in self.probed:  # another seed of the same cells
            return self.probed[keys], "probed"
        names = [(cell.student, cell.method) for cell in cohort.cells]
        raws = [_guess(self.plan, cohort.teacher, cell) for cell in cohort.cells]
        if self._may_probe():
            from kdbench.forecast.probe import probe_cohort

            self.progress(f"timing a few steps of {cohort.name}")
            probe = probe_cohort(self.plan, cohort, self.device, self.data)
            self.probed[keys] = seconds = steps * probe.step + first.recipe.evaluations * probe.evaluation
            self.speeds.learn(names, probe.cells, raws, seconds / max(1, steps))
            return seconds, "probed"
        like = self.speeds.of_cohort(names, raws)
        return (steps * sum(raws), "guessed") if like is None else (steps * like, "from its likes")

    def _may_probe(self) -> bool:
        from kdbench.engine import train

        return train.now() < self.until


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
