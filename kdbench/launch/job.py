"""A job: one teacher to train, or one cohort. It is plain data, so that any engine can carry it to another process."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cohort, Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.matrix.teachers import TeacherPlan
from kdbench.plugins.registry import catalog
from kdbench.store.claims import Claims
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import JOBS_FOLDER, worker_folder
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import load_suite

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to make the same plan again and to find its share in it.

    Attributes:
        name: unique within a run; what progress shows.
        kind: ``"teacher"`` or ``"cohort"``.
        members: folders of the cells, or the folder of the teacher, below the run directory.
        request: of the user, with absolute paths.
        threads: CPU threads of the worker.
        log: file for what the worker prints.
        ticket: names the job among all jobs of all runs; a later attempt of it takes over what an earlier one held.
        memory: bytes that the cohort of ``cells`` cells is likely to take, to be compared with what it took.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    request: Request
    threads: int
    log: str
    ticket: str = ""
    memory: int = 0
    cells: int = 0

    @property
    def events(self) -> Path:
        """Folder of its files of events, one for each attempt."""
        return Path(self.request.out) / JOBS_FOLDER / self.ticket

    @property
    def stall(self) -> float:
        """Seconds without a step after which its process is ended; 0 for never."""
        return 60 * self.request.stall

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        content = json.loads(text)
        request, members = Request.from_plain(content.pop("request")), tuple(content.pop("members"))
        return cls(request=request, members=members, **content)


class Launcher(Protocol):
    """Submit jobs, watch them, cancel them."""

    capacity: int

    def submit(self, job: Job) -> None:
        """Start a job. At most ``capacity`` jobs are given at a time."""

    def poll(self, seconds: float) -> list[Event]:
        """Wait up to ``seconds`` for events. The last event of a job is ``finished``, with ``error`` None or a sentence, and
        with ``crashed`` (its process died), ``stopped`` (it was asked to end, and saved its work) or ``full`` (no space)."""

    def cancel(self) -> None:
        """Stop everything that runs; what is saved stays."""


class Follower:
    """Receives what happens to the jobs of a run. This one ignores it."""

    def start(self, jobs: Sequence[Job]) -> None:
        """The jobs, before the first one is submitted."""

    def event(self, event: Event) -> None:
        """An event of a job."""

    def tick(self) -> None:
        """Called a few times per second."""


def perform(
    job: Job,
    emit: Callable[[Event], bool | None],
    events: str = "",
    before_work: Callable[[Job], None] = lambda job: None,
) -> None:
    """Do a job in this process: claim its folders, train what others have not done or claimed.

    Args:
        job: what to do.
        emit: receives events; True asks to save and stop.
        events: file below the run directory in which others can read the events.
        before_work: called with the job, reduced to what is left of it, before it is trained.

    Raises:
        KdbenchError: if the job as a whole cannot be done. A cell that fails is recorded in its folder instead.
        StopRequested: after ``emit`` asked for it.
    """
    plan, device = _prepare(job)
    with Claims(job.ticket, events) as claims:
        store = Store(job.request.out, claims)
        if job.kind == "teacher":
            (teacher,) = _find({teacher.folder: teacher for teacher in plan.teachers}, job)
            if _claimed(store.teacher_folder(teacher), claims, teacher.name, emit) and (
                store.result_of_teacher(teacher) is None
            ):
                before_work(job)
                _work(job, plan, store, device, emit)
            return
        found = _find({cell.folder: cell for cell in plan.cells}, job)
        mine = [cell for cell in found if _claimed(store.cell(cell), claims, cell.key, emit)]
        # An earlier attempt, or another run, may have ended some of them before they were claimed.
        cells = [cell for cell in mine if store.cell(cell).state() not in ("done", "failed")]
        if cells:
            left = dataclasses.replace(job, members=tuple(cell.folder for cell in cells))
            before_work(left)
            _work(left, plan, store, device, emit)


def perform_together(job: Job) -> None:
    """Do a job that another process has claimed, together with it."""
    plan, device = _prepare(job)
    _work(job, plan, Store(job.request.out), device, lambda event: None)


def recipe_of(job: Job) -> Recipe:
    """The recipe by which a job trains."""
    plan = _plan_of(job)
    if job.kind == "teacher":
        teachers = _find({teacher.folder: teacher for teacher in plan.teachers}, job)
        return teachers[0].recipe
    return _find({cell.folder: cell for cell in plan.cells}, job)[0].recipe


def _plan_of(job: Job) -> Plan:
    return make_plan(load_suite(job.request.suite), job.request, catalog(job.request.plugins))


def _prepare(job: Job) -> tuple[Plan, Any]:
    plan = _plan_of(job)
    from kdbench.engine import train  # seconds of imports, which a job that is wrong need not wait for

    return plan, train.setup(job.threads, job.request.device)


def _work(job: Job, plan: Plan, store: Store, device: Any, emit: Callable[[Event], bool | None]) -> None:
    from kdbench.engine import prepare_teacher, train

    if job.kind == "teacher":
        (teacher,) = _find({teacher.folder: teacher for teacher in plan.teachers}, job)
        prepare_teacher.prepare_teacher(plan, teacher, store, device, emit)
        return
    cells = _find({cell.folder: cell for cell in plan.cells}, job)
    # Of the whole cohort only: an estimate says nothing about a part of it that others left over.
    memory = job.memory if len(cells) == job.cells else 0
    cohort = Cohort(cells[0].teacher, cells[0].recipe_name, cells[0].seed, tuple(cells), memory=memory)
    train.train_cohort(plan, cohort, store, device, emit)


def _claimed(folder: CellFolder, claims: Claims, name: str, emit: Callable[[Event], bool | None]) -> bool:
    if claims.take(folder.path):
        folder.sweep()
        return True
    emit({"event": "busy", "cell": name})
    return False


def _find(known: Mapping[str, Any], job: Job) -> list[Any]:
    missing = [member for member in job.members if member not in known]
    if missing:
        raise KdbenchError(
            f"{missing[0]} is not in the plan any more: the suite or a plugin changed while the run was going on"
        )
    return [known[member] for member in job.members]


def job_for_teacher(plan: Plan, teacher: TeacherPlan) -> Job:
    """The job that trains a teacher, or loads it. Its name tells teachers apart that see the preprocessing of different students."""
    alike = sum(other.name == teacher.name for other in plan.teachers)
    name = f"teacher {teacher.name}{f' ({teacher.hash})' if alike > 1 else ''}"
    return _job(plan, name, "teacher", [teacher.folder], teacher.folder)


def job_for_cohort(plan: Plan, cohort: Cohort) -> Job:
    """The job that trains a cohort."""
    first = cohort.cells[0]
    name = cohort.name if len(cohort.cells) > 1 else f"{cohort.name} ({first.method})"
    members = [cell.folder for cell in cohort.cells]
    job = _job(plan, name, "cohort", members, worker_folder(first.suite, first.protocol, first.hash))
    return dataclasses.replace(job, memory=cohort.memory, cells=len(cohort.cells))


def _job(plan: Plan, name: str, kind: str, members: Sequence[str], log_folder: str) -> Job:
    request = plan.request.absolute()
    return Job(
        name=name,
        kind=kind,
        members=tuple(members),
        request=request,
        threads=min(plan.suite.cpu_threads, os.cpu_count() or 1),
        log=str(Path(request.out, log_folder, "worker.log")),
        ticket=secrets.token_hex(8),
    )
