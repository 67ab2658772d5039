"""A plan, carried out: teachers first, then cohorts, as many at a time as the launcher takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.launch.job import Event, Job, Launcher, job_for_cohort, job_for_teacher
from kdbench.plan import Cell, Cohort, Plan
from kdbench.store import CellFolder, Store, write_json

#: How often a job whose process died is started again, from its last checkpoint, before its cells count as failed.
MAX_CRASHES = 2


@dataclass
class Summary:
    """What a run did. ``failed`` holds cells with their reason; ``done_before`` were there already."""

    done: list[Cell] = field(default_factory=list)
    done_before: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    skipped: list[Cell] = field(default_factory=list)


@dataclass(frozen=True)
class Todo:
    """Cells by what is to be done about them, found before anything runs."""

    train: tuple[Cell, ...]
    done: tuple[Cell, ...]
    failed: tuple[Cell, ...]


def sort_out(plan: Plan, store: Store, retry_failed: bool, note: Callable[[str], None]) -> Todo:
    """Prepare the folders of all cells and decide what is left to train. A damaged result is trained again, and that is said."""
    train: list[Cell] = []
    done: list[Cell] = []
    failed: list[Cell] = []
    for cell in (*plan.cells, *plan.skipped, *plan.broken):
        folder = store.cell(cell)
        if folder.is_damaged():
            note(f"{folder.result} is damaged: the cell is trained again")
            folder.result.unlink()
        folder.prepare(cell)
    for teacher in plan.teachers:
        if store.result_of_teacher(teacher) is None and CellFolder(store.teacher(teacher)).result.exists():
            note(f"{store.teacher(teacher)} is damaged: teacher {teacher.name} is trained again if a cell needs it")
    for cell in plan.broken:
        folder = store.cell(cell)
        write_json(folder.failed, {"kind": "plugin", "reason": (cell.reason or "").splitlines()[0], "epoch": 0})
        folder.skipped.unlink(missing_ok=True)
        folder.say(cell.reason or "")
    for cell in plan.cells:
        folder = store.cell(cell)
        state = folder.state()
        if state == "failed" and retry_failed:
            folder.forget_failure()
            state = "planned"
        {"done": done, "failed": failed}.get(state, train).append(cell)
    return Todo(tuple(train), tuple(done), tuple(failed))


def execute(
    plan: Plan,
    todo: Todo,
    store: Store,
    launcher: Launcher,
    suite_name: str,
    *,
    data: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    cohorts: Sequence[Cohort] | None = None,
    on_jobs: Callable[[Sequence[Job]], None] = lambda jobs: None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_tick: Callable[[], None] = lambda: None,
) -> Summary:
    """Train what ``todo`` says, in the given cohorts (default: as the plan groups them).

    On Ctrl-C the workers are stopped and the KeyboardInterrupt goes on to the caller; what is saved stays.
    """
    common: dict[str, Any] = {
        "suite": suite_name,
        "choice": plan.choice,
        "out": str(store.root),
        "data": data,
        "device": device,
        "weights": weights,
        "threads": min(plan.suite.cpu_threads, os.cpu_count() or 1),
    }
    cohorts = plan.cohorts(False, todo.train) if cohorts is None else cohorts
    teachers = {cohort.teacher.hash: cohort.teacher for cohort in cohorts}
    missing = {key: teacher for key, teacher in teachers.items() if store.result_of_teacher(teacher) is None}
    teacher_jobs = {key: job_for_teacher(plan, teacher, **common) for key, teacher in missing.items()}
    jobs_of = {job_for_cohort(plan, cohort, **common).name: cohort for cohort in cohorts}
    cohort_jobs = [job_for_cohort(plan, cohort, **common) for cohort in cohorts]
    key_of = {job.name: key for key, job in teacher_jobs.items()}
    key_of.update({job.name: jobs_of[job.name].teacher.hash for job in cohort_jobs})
    waiting: list[Job] = [*teacher_jobs.values(), *cohort_jobs]
    running: dict[str, Job] = {}
    crashes: Counter[str] = Counter()
    ready = set(teachers) - set(missing)
    lost: dict[str, str] = {}
    on_jobs(waiting)
    try:
        while waiting or running:
            for job in list(waiting):
                key = key_of[job.name]
                if job.kind == "cohort" and key in lost:
                    waiting.remove(job)
                    _fail(store, jobs_of[job.name].cells, "teacher", lost[key])
                    on_event({"event": "finished", "job": job.name, "error": lost[key]})
                elif len(running) < launcher.capacity and (job.kind == "teacher" or key in ready):
                    waiting.remove(job)
                    running[job.name] = job
                    on_event({"event": "started", "job": job.name})
                    launcher.submit(job)
            for event in launcher.poll(0.25):
                if event["event"] != "finished":
                    on_event(event)
                    continue
                job = running.pop(event["job"])
                key, error = key_of[job.name], event["error"]
                if event.get("crashed") and crashes[job.name] < MAX_CRASHES:
                    crashes[job.name] += 1
                    on_event({"event": "restarted", "job": job.name, "error": error})
                    waiting.insert(0, job)
                    continue
                on_event(event)
                if job.kind == "teacher" and error is None:
                    ready.add(key)
                elif job.kind == "teacher":
                    lost[key] = error
                elif error is not None:
                    _fail(store, jobs_of[job.name].cells, "crash", error, job.log)
            on_tick()
    except BaseException:
        launcher.cancel()
        raise
    return summarize(plan, todo, store)


def summarize(plan: Plan, todo: Todo, store: Store) -> Summary:
    """The state of all cells of a plan after a run."""
    summary = Summary(done_before=list(todo.done), skipped=list(plan.skipped))
    for cell in (*todo.train, *todo.failed):
        folder = store.cell(cell)
        if folder.state() == "done":
            summary.done.append(cell)
        else:
            reason = folder.failure()["reason"] if folder.failed.exists() else "it was not finished"
            summary.failed.append((cell, reason))
    return summary


def _fail(store: Store, cells: Sequence[Cell], kind: str, reason: str, log: str | None = None) -> None:
    """Record that a whole cohort could not go on, for those of its cells that were not finished."""
    for cell in cells:
        folder = store.cell(cell)
        if folder.state() in ("planned", "interrupted"):
            folder.say(f"failed ({kind}): {reason}" + (f"; see {log}" if log else ""))
            write_json(folder.failed, {"kind": kind, "reason": reason, "epoch": 0})
