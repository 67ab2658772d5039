"""Teachers made ready before any cohort starts, each by a job of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kdbench.launch.execute import MAX_CRASHES
from kdbench.launch.job import Event, Job, Launcher, job_for_teacher
from kdbench.plan import Plan, TeacherPlan
from kdbench.store import Store


def prepare(
    plan: Plan,
    teachers: Sequence[TeacherPlan],
    store: Store,
    launcher: Launcher,
    suite_name: str,
    *,
    data: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    on_jobs: Callable[[Sequence[Job]], None] = lambda jobs: None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_tick: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train or load teachers, as many at a time as the launcher takes. On Ctrl-C the workers are stopped.

    Returns:
        a sentence for each teacher that could not be made ready.
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
    waiting = [job_for_teacher(plan, teacher, **common) for teacher in teachers]
    running: dict[str, Job] = {}
    crashes: Counter[str] = Counter()
    problems: list[str] = []
    on_jobs(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < launcher.capacity:
                job = waiting.pop(0)
                running[job.name] = job
                on_event({"event": "started", "job": job.name})
                launcher.submit(job)
            for event in launcher.poll(0.25):
                if event["event"] != "finished":
                    on_event(event)
                    continue
                job, error = running.pop(event["job"]), event["error"]
                if event.get("crashed") and crashes[job.name] < MAX_CRASHES:
                    crashes[job.name] += 1
                    on_event({"event": "restarted", "job": job.name, "error": error})
                    waiting.insert(0, job)
                    continue
                on_event(event)
                if error is not None:
                    problems.append(f"{job.name}: {error}{f'; see {job.log}' if event.get('crashed') else ''}")
            on_tick()
    except BaseException:
        launcher.cancel()
        raise
    return problems
