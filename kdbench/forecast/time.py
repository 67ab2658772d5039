"""How long a run will take: from steps of cells that are done, else from a few timed steps, else from parameter counts."""

from __future__ import annotations

import heapq
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.errors import counted
from kdbench.forecast.fit import training_images
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.folders import CellState, Store
from kdbench.suite.net import NetSpec

#: Seconds that a worker needs before its first step (imports, data, nets), 4 to 9 on two cores, and those that the end of a cell
#: takes (timing its inference, writing its files).
STARTUP_SECONDS, FINISH_SECONDS = 7.0, 0.25
#: Probing stops after so many seconds; the rest is extrapolated.
PROBE_BUDGET = 90.0
#: Images of a test split whose size is not known before it is loaded: CIFAR's 10,000, ImageNet's 50,000 lie on both sides.
TEST_IMAGES = 20_000
#: Seconds of a step and of an evaluation per parameter and image, where nothing was timed: an order of magnitude.
STEP_GUESS, EVALUATION_GUESS = 3e-9, 1e-9
#: Bytes of a finished cell beside its weights.
FILES_OF_A_CELL = 40_000


@dataclass(frozen=True)
class JobEstimate:
    """Cost of one job. ``source`` is ``measured``, ``probed``, ``extrapolated`` or ``guessed``."""

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
    #: See ``busy``; empty too where nothing was timed.
    busy: str = ""


def estimate(
    plan: Plan,
    cohorts: Sequence[Cohort],
    store: Store,
    states: Mapping[str, CellState],
    workers: int,
    probe: bool,
    progress: Callable[[str], None],
) -> Estimate:
    """Estimate what is left of a plan.

    Args:
        cohorts: what is left to train.
        store: tells which teachers are ready.
        states: of the plan's cells; those that are done tell what similar ones take.
        workers: number of jobs at a time.
        probe: time a few steps of what is not known.
        progress: called with a line before each probe.
    """
    from kdbench.engine import train

    request = plan.request  # a run that follows must find no context on its GPUs
    device = train.setup(plan.suite.cpu_threads, request.device) if probe else train.device_of(request.device)
    timing = _Timing(plan, states, device, probe, progress)
    teachers = list({each.hash: each for cohort in cohorts for each in cohort.teacher.chain}.values())
    jobs = []
    for teacher in teachers:
        if store.result_of_teacher(teacher) is None:
            seconds, source = timing.of_teacher(teacher)
            jobs.append(JobEstimate(f"teacher {teacher.name}", seconds + STARTUP_SECONDS, source))
    pending = {job.name for job in jobs}
    for cohort in cohorts:
        seconds, source = timing.of_cohort(cohort)
        needs = f"teacher {cohort.teacher.name}"
        seconds += STARTUP_SECONDS + FINISH_SECONDS * len(cohort.cells)
        jobs.append(JobEstimate(cohort.name, seconds, source, needs if needs in pending else None))
    return Estimate(
        jobs=tuple(jobs),
        workers=workers,
        compute_seconds=sum(job.seconds for job in jobs),
        wall_seconds=wall_time(jobs, workers),
        disk_bytes=disk_bytes(plan, cohorts),
        memory_bytes=max((cohort.memory for cohort in cohorts), default=0),
        busy=busy() if probe else "",
    )


def disk_bytes(plan: Plan, cohorts: Sequence[Cohort]) -> int:
    """What finished cells and their teachers take."""
    teachers = {each.hash: each for cohort in cohorts for each in cohort.teacher.chain}.values()
    cells = [cell for cohort in cohorts for cell in cohort.cells]
    nets = [(each.net, each.name) for each in teachers] + [(cell.student_net, cell.student) for cell in cells]
    return sum(4 * _parameters(plan, *net) for net in nets) + FILES_OF_A_CELL * len(cells)


def measured_images(plan: Plan) -> int:
    """Images of an evaluation, as far as they are known before the data is loaded."""
    per_class = plan.under.measured_images_per_class
    return plan.request.limit or (per_class * plan.num_classes if per_class else TEST_IMAGES)


def busy() -> str:
    """That this machine does other work, as a phrase; empty where it does not."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    return f"this machine is busy (load average {load:.1f} on {counted(cores, 'core')})" if load > cores else ""


def wall_time(jobs: Sequence[JobEstimate], workers: int) -> float:
    """Seconds until the last job ends when ``workers`` take them in order, each as soon as what it needs is done."""
    free = [0.0] * max(1, workers)
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


def _parameters(plan: Plan, net: NetSpec, name: str) -> int:
    from kdbench.nets.tapped import count_parameters

    return count_parameters(net, plan.num_classes, name)


@dataclass
class Speeds:
    """Ratios of timed seconds to seconds guessed from parameter counts, and what they say of what was not timed.

    Attributes:
        cells: (student, method, ratio) of a step of a cell on its own.
        wholes: of all that a cohort takes (its batches, its teacher and its evaluations too) to its cells' steps.
        teachers: of the training of a teacher.
    """

    cells: list[tuple[str, str, float]] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    teachers: list[float] = field(default_factory=list)

    def learn(
        self, names: Sequence[tuple[str, str]], timed: Sequence[float], guessed: Sequence[float], whole: float
    ) -> None:
        """Add a timed cohort.

        Args:
            names: student and method of each cell.
            timed: seconds per step of each cell.
            guessed: the same from parameter counts.
            whole: seconds of the cohort, divided by its number of steps.
        """
        for (student, method), seconds, guess in zip(names, timed, guessed, strict=True):
            if seconds > 0 and guess > 0:
                self.cells.append((student, method, seconds / guess))
        if sum(timed) > 0:
            self.wholes.append(whole / sum(timed))

    def of_cohort(self, names: Sequence[tuple[str, str]], guessed: Sequence[float]) -> float | None:
        """Seconds of a cohort that was not timed, divided by its steps; None where nothing was timed."""
        if not self.cells:
            return None
        steps = sum(guess * self._ratio(*name) for name, guess in zip(names, guessed, strict=True))
        return statistics.median(self.wholes) * steps

    def of_teacher(self, guessed: float) -> float | None:
        """Seconds of a teacher's training that was not timed; None where none was."""
        return statistics.median(self.teachers) * guessed if self.teachers else None

    def _ratio(self, student: str, method: str) -> float:
        """Of the same student and method behind another teacher, else of the student times that of the method."""
        both = [ratio for s, m, ratio in self.cells if (s, m) == (student, method)]
        if both:
            return statistics.median(both)
        middle = statistics.median(ratio for _, _, ratio in self.cells)
        of_student = statistics.median([ratio for s, _, ratio in self.cells if s == student] or [middle])
        of_method = statistics.median([ratio for _, m, ratio in self.cells if m == method] or [middle])
        return of_student * of_method / middle


class _Timing:
    """Seconds of teachers and cohorts, and how they are known."""

    def __init__(
        self,
        plan: Plan,
        states: Mapping[str, CellState],
        device: Any,
        probe: bool,
        progress: Callable[[str], None],
    ) -> None:
        import torch

        from kdbench.store.provenance import device_name

        self.plan, self.device, self.progress = plan, device, progress
        # jobs may run elsewhere, on a GPU that this machine has not
        here = device_name(device) if device.type == "cpu" or torch.cuda.is_available() else None
        self.until = time.monotonic() + PROBE_BUDGET if probe else 0.0
        self.probed: dict[Any, float] = {}
        self.speeds = Speeds()
        #: Seconds per step, everything included, of cells that were trained on this device.
        self.measured: dict[Any, list[float]] = defaultdict(list)
        for cell in plan.cells:
            result = states[cell.folder].result
            if result is not None and result.provenance.device == here:
                self.measured[_kind(cell)].append(result.cost.train_seconds / max(1, result.cost.steps))

    def of_teacher(self, teacher: TeacherPlan) -> tuple[float, str]:
        """Until it can teach."""
        plan, parameters = self.plan, _parameters(self.plan, teacher.net, teacher.name)
        if not teacher.trained_here or teacher.net.ensemble:
            return EVALUATION_GUESS * parameters * measured_images(plan), "guessed"
        images = training_images(plan, teacher.split, plan.under.teacher_images_per_class)
        steps = teacher.recipe.epochs * (images // teacher.recipe.batch_size)
        guessed = steps * STEP_GUESS * parameters * teacher.recipe.batch_size
        if time.monotonic() < self.until:
            from kdbench.forecast.probe import probe_teacher

            self.progress(f"timing a few steps of teacher {teacher.name}")
            probe = probe_teacher(plan, teacher, self.device)
            seconds = steps * probe.step + teacher.recipe.evaluations * probe.evaluation
            if guessed:
                self.speeds.teachers.append(seconds / guessed)
            return seconds, "probed"
        extrapolated = self.speeds.of_teacher(guessed)
        return (guessed, "guessed") if extrapolated is None else (extrapolated, "extrapolated")

    def of_cohort(self, cohort: Cohort) -> tuple[float, str]:
        """Of its training."""
        plan, recipe = self.plan, cohort.cells[0].recipe
        images = training_images(plan, cohort.cells[0].split, plan.under.images_per_class)
        steps = recipe.epochs * (images // recipe.batch_size)
        kinds = tuple(_kind(cell) for cell in cohort.cells)
        if all(kind in self.measured for kind in kinds):
            return steps * sum(statistics.median(self.measured[kind]) for kind in kinds), "measured"
        if kinds in self.probed:  # another seed of the same cells
            return self.probed[kinds], "probed"
        names = [(cell.student, cell.method) for cell in cohort.cells]
        guessed = [
            STEP_GUESS * _parameters(plan, cell.student_net, cell.student) * recipe.batch_size for cell in cohort.cells
        ]
        if time.monotonic() < self.until:
            from kdbench.forecast.probe import probe_cohort

            self.progress(f"timing a few steps of {cohort.name}")
            probe = probe_cohort(plan, cohort, self.device)
            self.probed[kinds] = seconds = steps * probe.step + recipe.evaluations * probe.evaluation
            self.speeds.learn(names, probe.cells, guessed, seconds / max(1, steps))
            return seconds, "probed"
        extrapolated = self.speeds.of_cohort(names, guessed)
        return (steps * sum(guessed), "guessed") if extrapolated is None else (steps * extrapolated, "extrapolated")


def _kind(cell: Cell) -> tuple[str, str, str, int]:
    """Cells that differ in less take the same time for a step."""
    return cell.teacher.name, cell.student, cell.method, cell.recipe.batch_size
