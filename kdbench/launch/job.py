"""A job: one teacher to train, or one cohort. It is plain data, so that any engine can carry it to another process."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, Cohort, Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.matrix.teachers import TeacherPlan
from kdbench.opening import inside
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
        log: file, below the run directory, for what the worker prints.
        ticket: names the job among all jobs of all runs; a later attempt of it takes over what an earlier one held.
        memory: bytes that the cohort of ``cells`` cells is likely to take, to be compared with what it took.
        careful: whether CUDA waits for each kernel, so that an error is raised where it happens.
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
    careful: bool = False

    @property
    def events(self) -> Path:
        """Folder of its files of events, one for each attempt."""
        return inside(Path(self.request.out), f"{JOBS_FOLDER}/{self.ticket}")

    @property
    def log_file(self) -> Path:
        """``log`` as a path."""
        return inside(Path(self.request.out), self.log)

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
        with ``crashed`` (its process died), ``stopped`` (it was asked to end, and saved its work), ``full`` (no space) or
        ``broken`` (its GPU was lost to it)."""

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
        mine = [each for each in _members(plan, job) if _claimed(store.folder(each.folder), claims, emit)]
        # An earlier attempt, or another run, may have ended some of them before they were claimed.
        left = tuple(each.folder for each in mine if not _is_over(each, store))
        if left:
            rest = dataclasses.replace(job, members=left)
            before_work(rest)
            from kdbench.engine import fate

            with fate.shared():
                _work(rest, plan, store, device, emit)


def perform_together(job: Job) -> None:
    """Do a job that another process has claimed, together with it."""
    from kdbench.engine import fate

    with fate.shared():
        plan, device = _prepare(job)
        _work(job, plan, Store(job.request.out), device, lambda event: None)


def recipe_of(job: Job) -> Recipe:
    """The recipe by which a job trains."""
    return _members(_plan_of(job), job)[0].recipe


def _plan_of(job: Job) -> Plan:
    suite = load_suite(job.request.suite)
    return make_plan(suite, job.request, catalog(job.request.plugins, suite.net_files))


def _prepare(job: Job) -> tuple[Plan, Any]:
    plan = _plan_of(job)
    from kdbench.engine import train  # seconds of imports, which a job that is wrong need not wait for

    return plan, train.setup(job.threads, job.request.device)


def _work(job: Job, plan: Plan, store: Store, device: Any, emit: Callable[[Event], bool | None]) -> None:
    from kdbench.engine import prepare_teacher, train

    members = _members(plan, job)
    if job.kind == "teacher":
        prepare_teacher.prepare_teacher(plan, members[0], store, device, emit)
        return
    # Of the whole cohort only: an estimate says nothing about a part of it that others left over.
    memory = job.memory if len(members) == job.cells else 0
    first = members[0]
    cohort = Cohort(first.teacher, first.recipe_name, first.seed, tuple(members), memory=memory)
    train.train_cohort(plan, cohort, store, device, emit)


def _claimed(folder: CellFolder, claims: Claims, emit: Callable[[Event], bool | None]) -> bool:
    if claims.take(folder.path):
        folder.sweep()
        return True
    emit({"event": "busy"})
    return False


def _members(plan: Plan, job: Job) -> list[Any]:
    """The teacher of a job, or its cells."""
    known = {each.folder: each for each in (plan.teachers if job.kind == "teacher" else plan.cells)}
    missing = [member for member in job.members if member not in known]
    if missing:
        raise KdbenchError(
            f"{missing[0]} is not in the plan any more: the suite or a plugin changed while the run was going on"
        )
    return [known[member] for member in job.members]


def _is_over(member: Cell | TeacherPlan, store: Store) -> bool:
    if isinstance(member, TeacherPlan):
        return store.result_of_teacher(member) is not None
    return store.cell(member).state() in ("done", "failed")


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
        log=f"{log_folder}/worker.log",
        ticket=secrets.token_hex(8),
    )
