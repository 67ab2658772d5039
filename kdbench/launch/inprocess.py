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

        def keep(event: Event) -> None:
            if event["event"] != "step":  # nobody looks before the job is finished
                self._events.append({**event, "job": job.name})

        try:
            perform(job, keep, before_work=self.before_work)
        except KdbenchError as problem:
            error = str(problem)
        self._events.append({"event": "finished", "job": job.name, "error": error})

    def before_work(self, job: Job) -> None:
        """Called before a job is trained."""

    def poll(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        return
