"""A launcher that runs each job at once in the calling process: for tests and for debugging."""

from __future__ import annotations

from kdbench.errors import KdbenchError
from kdbench.launch.job import Event, Job, perform


class InProcessLauncher:
    """See ``Launcher``. ``submit`` returns when the job is finished."""

    capacity = 1

    def __init__(self) -> None:
        self._events: list[Event] = []

    def submit(self, job: Job) -> None:
        error = None
        try:
            perform(job, lambda event: self._events.append({**event, "job": job.name}))
        except KdbenchError as problem:
            error = str(problem)
        self._events.append({"event": "finished", "job": job.name, "error": error})

    def poll(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        return
