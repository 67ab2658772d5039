"""Execute a plan: teachers, then cohorts, up to the launcher's capacity. Safe beside other runs of the same plan."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.launch.job import Event, Follower, Job, Launcher, job_for_cohort, job_for_teacher
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.claims import STALE_SECONDS, Watch
from kdbench.store.folders import Store
from kdbench.teachers.readiness import raise_all

#: Restarts of a job whose process keeps dying without progress, before its cells count as failed.
MAX_CRASHES = 2
#: The same for jobs that are pre-empted.
MAX_STOPS = 20
#: Jobs of a task that lost their GPU, before its cells are trained one at a time to find the one that does it.
MAX_LOSSES = 1
#: Seconds between two checks of what other runs have claimed.
RECHECK_SECONDS = 2.0


@dataclass
class Summary:
    """Cells of a plan that are done, and those that failed, with the reason."""

    done: list[Cell]
    failed: list[tuple[Cell, str]]


@dataclass(frozen=True)
class Todo:
    """Cells by their state before anything runs; failed ones that are not retried stay failed."""

    train: tuple[Cell, ...]
    done: tuple[Cell, ...]
    failed: tuple[Cell, ...]


def classify_cells(plan: Plan, store: Store, note: Callable[[str], None] = lambda text: None) -> Todo:
    """Prepare the folders of all cells and find which are left to train. A damaged result is trained again, with a note."""
    train: list[Cell] = []
    done: list[Cell] = []
    failed: list[Cell] = []
    for cell in (*plan.cells, *plan.skipped, *plan.broken):
        folder = store.cell(cell)
        folder.make_room()
        if folder.is_damaged():
            note(f"{folder.result} is damaged: the cell is trained again")
            folder.result.unlink()
        folder.prepare(cell)
    for teacher in plan.teachers:
        store.teacher_folder(teacher).make_room()
        if store.result_of_teacher(teacher) is None and store.teacher_folder(teacher).result.exists():
            note(
                f"{store.root / teacher.folder} is damaged: teacher {teacher.name} is trained again if a cell needs it"
            )
    for cell in plan.broken:
        folder = store.cell(cell)
        folder.fail("plugin", (cell.reason or "").splitlines()[0])
        folder.skipped.unlink(missing_ok=True)
        folder.say(cell.reason or "")
    for cell in plan.cells:
        folder = store.cell(cell)
        state = folder.state()
        if state == "failed" and plan.request.retry_failed:
            folder.forget_failure()
            state = "planned"
        {"done": done, "failed": failed}.get(state, train).append(cell)
    return Todo(tuple(train), tuple(done), tuple(failed))


def execute(
    plan: Plan,
    todo: Todo,
    store: Store,
    launcher: Launcher,
    cohorts: Sequence[Cohort] | None = None,
    follower: Follower | None = None,
    stale: float = STALE_SECONDS,
    recheck: float = RECHECK_SECONDS,
) -> Summary:
    """Train ``todo.train``, in the given cohorts (default: as the plan groups them).

    Cells that another run has claimed are waited for, and taken over when its claim is stale. On Ctrl-C and SIGTERM the workers
    are stopped and KeyboardInterrupt is raised; what is saved stays.

    Args:
        stale: seconds after which a claim without heartbeat is taken over.
        recheck: seconds between two checks of what other runs have claimed.
    """
    run = _Run(plan, store, launcher, follower or Follower(), Watch(stale), recheck)
    run.add(plan.cohorts(False, todo.train) if cohorts is None else cohorts)
    run.go()
    return summarize(plan, todo, store, run.lost)


def prepare(
    plan: Plan,
    teachers: Sequence[TeacherPlan],
    store: Store,
    launcher: Launcher,
    follower: Follower | None = None,
) -> None:
    """Train or load teachers alone, under the same rules as ``execute``.

    Raises:
        KdbenchError: naming each teacher that could not be made ready.
    """
    run = _Run(plan, store, launcher, follower or Follower(), Watch())
    run.add_teachers([teacher.hash for teacher in teachers])
    run.go()
    lost = [(teacher.name, run.lost_teachers.get(teacher.hash)) for teacher in teachers]
    raise_all([f"teacher {name}: {reason}" for name, reason in lost if reason], "{} teachers cannot be prepared")


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End in order on SIGTERM too: stop the workers, keep what is done."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Task:
    """A job and its state."""

    job: Job
    teacher: str
    cells: dict[str, Cell]  # by folder; empty for a teacher
    state: str = "waiting"
    checked: float = float("-inf")
    crashes: int = 0
    mark: Any = None
    losses: int = 0
    running: tuple[str, ...] = ()  # members of the job that runs
    shared: bool = False  # another run has, or had, some of its cells
    reported: set[str] = field(default_factory=set)  # cells whose end was reported

    @property
    def is_teacher(self) -> bool:
        return not self.cells

    @property
    def is_careful(self) -> bool:
        """Whether its cells are trained one at a time, to find the one that loses the GPU."""
        return self.losses > MAX_LOSSES


class _Run:
    """The tasks of one run, from waiting to ended."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        launcher: Launcher,
        follower: Follower,
        watch: Watch,
        recheck: float = RECHECK_SECONDS,
    ) -> None:
        self.plan, self.store, self.launcher = plan, store, launcher
        self.follower, self.watch, self.recheck = follower, watch, recheck
        self.tasks: list[_Task] = []
        self.lost: dict[str, str] = {}
        self._teachers = {teacher.hash: teacher for teacher in plan.teachers}
        self._ready = {key for key, teacher in self._teachers.items() if store.result_of_teacher(teacher) is not None}
        self.lost_teachers: dict[str, str] = {}

    def add(self, cohorts: Sequence[Cohort]) -> None:
        """Make the jobs of cohorts, and of the teachers that they lack."""
        self.add_teachers([cohort.teacher.hash for cohort in cohorts])
        for cohort in cohorts:
            cells = {cell.folder: cell for cell in cohort.cells}
            self.tasks.append(_Task(job_for_cohort(self.plan, cohort), cohort.teacher.hash, cells))

    def add_teachers(self, hashes: Sequence[str]) -> None:
        """Make the jobs of the teachers among these that are not ready."""
        for key in dict.fromkeys(hashes):
            if key not in self._ready and all(task.teacher != key or task.cells for task in self.tasks):
                self.add_teachers([teacher.hash for teacher in self._teachers[key].teachers])
                self.tasks.append(_Task(job_for_teacher(self.plan, self._teachers[key]), key, {}))

    def go(self) -> None:
        """Run all tasks to their end."""
        self.follower.start([task.job for task in self.tasks])
        with _sigterm_as_interrupt():
            try:
                while any(task.state != "ended" for task in self.tasks):
                    self.start()
                    for event in self.launcher.poll(0.25):
                        self.take_in(event)
                    self.follower.tick()
            except BaseException:
                self.launcher.cancel()
                raise

    def start(self) -> None:
        """Submit what is ready and unclaimed, up to the launcher's capacity."""
        running = sum(task.state == "running" for task in self.tasks)
        for task in self.tasks:
            if task.state not in ("waiting", "elsewhere"):
                continue
            needed = self._needed(task)
            if lost := next((key for key in needed if key in self.lost_teachers), None):
                reason = self.lost_teachers[lost]
                if task.is_teacher:
                    self.lost_teachers[task.teacher] = f"teacher {self._teachers[lost].name}: {reason}"
                self._fail(task, "teacher", reason)
                self._end(task, reason)
            elif running < self.launcher.capacity and self._ready.issuperset(needed):
                if time.monotonic() - task.checked < self.recheck:
                    continue
                free = self._free(task)
                if free:
                    job = dataclasses.replace(task.job, members=free)
                    if task.is_careful:
                        request = dataclasses.replace(job.request, graphs=False)
                        job = dataclasses.replace(job, members=free[:1], careful=True, request=request)
                    task.state, task.running = "running", job.members
                    running += 1
                    self.follower.event({"event": "started", "job": job.name})
                    self.launcher.submit(job)

    def _needed(self, task: _Task) -> list[str]:
        """The teachers that must be ready before a task."""
        return (
            [teacher.hash for teacher in self._teachers[task.teacher].teachers] if task.is_teacher else [task.teacher]
        )

    def take_in(self, event: Event) -> None:
        """Update a task from an event of its job."""
        task = next(task for task in self.tasks if task.job.name == event["job"])
        if event["event"] in ("busy", "lost"):
            task.shared = True
        elif event["event"] in ("done", "failed") and task.cells:
            task.reported.add(event["cell"])
        if event["event"] != "finished":
            self.follower.event(event)
            return
        error = event["error"]
        if (event.get("crashed") or event.get("stopped")) and self._may_go_on(task, bool(event.get("stopped"))):
            self._again(task, error)
            return
        if event.get("broken") and not task.is_careful:
            task.losses += 1
            self._again(task, error)
            return
        if task.is_careful and task.cells and not event.get("full"):
            if error is not None:
                kind = "device" if event.get("broken") else "crash"
                self._fail(task, kind, error, task.job.log, only=task.running)
            if not self._settled(task) and (task.shared or all(map(self._is_over, task.running))):
                task.state, task.checked = "waiting", float("-inf")
                return
        if error is None and task.shared and not self._settled(task):
            task.shared = False
            self._wait(task)
            return
        if task.is_teacher and error is None:
            self._ready.add(task.teacher)
        elif task.is_teacher:
            self.lost_teachers[task.teacher] = error
        elif event.get("full"):  # as if interrupted: the same command continues when there is space
            self.lost.update({cell.folder: error for cell in self._open(task)})
        elif error is not None:
            self._fail(task, "crash", error, task.job.log)
        self._end(task, error)

    def _free(self, task: _Task) -> tuple[str, ...]:
        """Members that can be trained now. A task whose members others have ended is ended."""
        task.checked = time.monotonic()
        if self._settled(task):
            self._ready |= {task.teacher} if task.is_teacher else set()
            self._end(task, None)
            return ()
        members = [folder for folder in task.job.members if not (task.cells and self._is_over(folder))]
        free = tuple(folder for folder in members if self.watch.free(self.store.folder(folder).path, task.job.ticket))
        task.shared = len(free) < len(members)
        if not free and task.state == "waiting":
            self._wait(task)
        return free

    def _wait(self, task: _Task) -> None:
        """Wait for another run that has claimed what is left of a task."""
        task.state = "elsewhere"
        holders = (self.store.folder(folder).holder() for folder in task.job.members)
        where = next((holder.where for holder in holders if holder is not None), "")
        self.follower.event({"event": "elsewhere", "job": task.job.name, "where": where})

    def _settled(self, task: _Task) -> bool:
        if task.is_teacher:
            return self.store.result_of_teacher(self._teachers[task.teacher]) is not None
        return all(self._is_over(folder) for folder in task.cells)

    def _is_over(self, folder: str) -> bool:
        return self.store.folder(folder).state() in ("done", "failed")

    def _may_go_on(self, task: _Task, stopped: bool) -> bool:
        """Whether a job that broke off is restarted: as long as it makes progress, and a few times if it does not."""
        mark = [
            (self._is_over(folder) if task.cells else False, self.store.folder(folder).positions())
            for folder in task.job.members
        ]
        task.crashes = task.crashes + 1 if mark == task.mark or task.mark is None else 1
        task.mark = mark
        return task.crashes <= (MAX_STOPS if stopped else MAX_CRASHES)

    def _end(self, task: _Task, error: str | None) -> None:
        task.state = "ended"
        for folder, cell in task.cells.items():
            state = self.store.folder(folder).state()
            if state in ("done", "failed") and cell.key not in task.reported:
                reason = self.store.cell(cell).failure().reason if state == "failed" else ""
                self.follower.event({"event": state, "job": task.job.name, "cell": cell.key, "reason": reason})
        self.follower.event({"event": "finished", "job": task.job.name, "error": error})
        if error is None:
            shutil.rmtree(task.job.events, ignore_errors=True)

    def _again(self, task: _Task, error: str) -> None:
        self.follower.event({"event": "restarted", "job": task.job.name, "error": error})
        task.state, task.checked = "waiting", float("-inf")

    def _fail(
        self, task: _Task, kind: str, reason: str, log: str | None = None, only: Collection[str] | None = None
    ) -> None:
        """Record why a whole cohort stopped, or some of its cells, for those that are unfinished."""
        for cell in self._open(task):
            if only is not None and cell.folder not in only:
                continue
            folder = self.store.cell(cell)
            folder.say(f"failed ({kind}): {reason}" + (f"; see {log}" if log else ""))
            try:
                folder.fail(kind, reason, log=log)
            except OSError as error:
                self.lost[cell.folder] = f"{reason} ({error.strerror})"

    def _open(self, task: _Task) -> Iterable[Cell]:
        """Cells of a task that are not over, and that no other process has."""
        for folder, cell in task.cells.items():
            if not self._is_over(folder):
                holder = self.store.folder(folder).holder()
                if holder is None or holder.ticket == task.job.ticket or not holder.seems_alive():
                    yield cell


def summarize(plan: Plan, todo: Todo, store: Store, lost: Mapping[str, str] | None = None) -> Summary:
    """The state of all cells of a plan after a run; ``lost`` has reasons that could not be written, by folder."""
    summary = Summary(list(todo.done), [])
    for cell in (*todo.train, *todo.failed, *plan.broken):
        folder = store.cell(cell)
        if folder.state() == "done":
            summary.done.append(cell)
        else:
            known = (lost or {}).get(cell.folder, "it was not finished")
            reason = folder.failure().reason if folder.failed.exists() else known
            summary.failed.append((cell, reason))
    return summary
