"""A job: one teacher to train, or one cohort. It is plain data, so that any engine can carry it to another process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kdbench.choice import Choice
from kdbench.errors import KdbenchError
from kdbench.nets.weights import weights_folder
from kdbench.plan import Cohort, Plan, TeacherPlan, make_plan
from kdbench.registry import catalog
from kdbench.store import Store
from kdbench.suite import load_suite

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to make the same plan again and to find its share in it.

    Attributes:
        name: unique within a run; what progress shows.
        kind: ``"teacher"`` or ``"cohort"``.
        members: folders of the cells, or the folder of the teacher, below the run directory.
        suite: name or file of the suite.
        choice: of the user.
        out, data, device: as on the command line.
        threads: CPU threads of the worker.
        log: file for what the worker prints.
        weights: folder of the weights that teachers come with.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    suite: str
    choice: Choice
    out: str
    data: str | None
    device: str | None
    threads: int
    log: str
    weights: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        content = json.loads(text)
        choice = content.pop("choice")
        members = tuple(content.pop("members"))
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in choice.items()
        }
        return cls(choice=Choice(**lists), members=members, **content)


class Launcher(Protocol):
    """Submit jobs, watch them, cancel them."""

    capacity: int

    def submit(self, job: Job) -> None:
        """Start a job. At most ``capacity`` jobs are given at a time."""

    def poll(self, seconds: float) -> list[Event]:
        """Wait up to ``seconds`` for events. The last event of a job is ``finished``, with ``error`` None or a sentence,
        and ``crashed`` True if its process died without a word."""

    def cancel(self) -> None:
        """Stop everything that runs; what is saved stays."""


def perform(job: Job, emit: Callable[[Event], None]) -> None:
    """Do a job in this process.

    Raises:
        KdbenchError: if the job as a whole cannot be done. A cell that fails is recorded in its folder instead.
    """
    plan = make_plan(load_suite(job.suite), job.choice, catalog(job.choice.plugins))
    from kdbench.engine import prepare, work  # seconds of imports, which a job that is wrong need not wait for

    device = work.setup(job.threads, job.device)
    store = Store(job.out)
    data = Path(job.data) if job.data else None
    if job.kind == "teacher":
        teacher = _find({teacher.folder: teacher for teacher in plan.teachers}, job)
        weights = weights_folder(job.weights, job.data)
        prepare.prepare_teacher(plan, teacher[0], store, device, data, weights, emit)
    else:
        found = _find({cell.folder: cell for cell in plan.cells}, job)
        # A job that is started again after its process died may have ended some of its cells before.
        cells = [cell for cell in found if store.cell(cell).state() not in ("done", "failed")]
        if not cells:
            return
        cohort = Cohort(cells[0].teacher, cells[0].recipe_name, cells[0].seed, tuple(cells))
        work.train_cohort(plan, cohort, store, device, data, emit)


def _find(known: Mapping[str, Any], job: Job) -> list[Any]:
    missing = [member for member in job.members if member not in known]
    if missing:
        raise KdbenchError(
            f"{missing[0]} is not in the plan any more: the suite or a plugin changed while the run was going on"
        )
    return [known[member] for member in job.members]


def job_for_teacher(plan: Plan, teacher: TeacherPlan, **common: Any) -> Job:
    """The job that trains a teacher, or loads it. Its name tells teachers apart that see the preprocessing of different students."""
    alike = sum(other.name == teacher.name for other in plan.teachers)
    return Job(
        name=f"teacher {teacher.name}{f' ({teacher.hash})' if alike > 1 else ''}",
        kind="teacher",
        members=(teacher.folder,),
        **_log(common, teacher.folder),
    )


def job_for_cohort(plan: Plan, cohort: Cohort, **common: Any) -> Job:
    """The job that trains a cohort."""
    members = tuple(cell.folder for cell in cohort.cells)
    first = cohort.cells[0]
    label = cohort.name if len(cohort.cells) > 1 else f"{cohort.name} ({first.method})"
    return Job(
        name=label,
        kind="cohort",
        members=members,
        **_log(common, f"{first.suite}/{first.protocol}/.workers/{first.hash}"),
    )


def _log(common: dict[str, Any], folder: str) -> dict[str, Any]:
    return {**common, "log": str(Path(common["out"]) / folder / "worker.log")}
