"""Several processes that do every job together, each with its share of a cohort's batches (DDP).

Under ``torchrun``, or in a Slurm step of several tasks, every process runs the same command. The first one plans, writes and
shows progress; it sends each job to the others, which follow until it says that there are no more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from kdbench.errors import DeviceLostError, KdbenchError
from kdbench.launch.inprocess import InProcessLauncher
from kdbench.launch.job import Event, Job, perform_together, recipe_of
from kdbench.launch.local import LocalLauncher
from kdbench.launch.worker import STOPPED
from kdbench.matrix.devices import index_of


def launcher_of_environment() -> str | None:
    """``"pytorch"`` under torchrun, ``"slurm"`` in a Slurm step of several tasks, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        return "pytorch"
    step = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if step.isdecimal() and int(step) > 1 and "SLURM_PROCID" in os.environ:
        return "slurm"
    return None


class TogetherLauncher(InProcessLauncher):
    """The first process's launcher: see ``Launcher``. A job is done when ``submit`` returns.

    A job whose batches the processes cannot share equally runs in a separate process while the others wait: with the figures and
    the speed of a single process.

    Args:
        gpus: the GPU of such a process.
    """

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        super().__init__()
        self._apart = LocalLauncher(1, gpus)
        self._running_apart = 0

    def submit(self, job: Job) -> None:
        from kdbench.engine import parallel

        try:
            recipe = recipe_of(job)
            reason = parallel.why_not_shared(recipe.batch_size, recipe.augment.mixes)
        except KdbenchError:
            reason = None  # the job meets and reports the same
        if reason is None:
            super().submit(job)
            return
        self._events.append({"event": "warning", "job": job.name, "reason": f"{reason}: a single process trains it"})
        self._running_apart += 1
        self._apart.submit(job)

    def poll(self, seconds: float) -> list[Event]:
        own = super().poll(seconds)
        if not self._running_apart:
            return own
        apart = self._apart.poll(0.0 if own else seconds)
        self._running_apart -= sum(event["event"] == "finished" for event in apart)
        return own + apart

    def cancel(self) -> None:
        self._apart.cancel()

    def before_work(self, job: Job) -> None:
        from kdbench.engine import parallel

        parallel.send(job.to_json())


def together(environment: str, device: str | None, lead: Callable[[], int]) -> int:
    """Join the other processes; lead, as the first of them, or follow.

    Args:
        environment: see ``launcher_of_environment``.
        device: as on the command line.
        lead: what the first process does.

    Returns:
        the exit status of this process.
    """
    # All of the engine before there is a group: torch has functions with the default ``group=dist.group.WORLD``. Imported later,
    # they would hold the group, whose connections then outlive it, and nobody would notice that this process left.
    import kdbench.engine.prepare_teacher  # noqa: F401
    from kdbench.engine import fate, parallel

    if index_of(device) is not None:
        raise KdbenchError(f"--device {device} is one GPU, and each of several processes has its own: --device cuda")
    parallel.join(environment, device)
    fate.listen()
    try:
        if not parallel.is_first():
            with ended_by_lost_device():
                follow()
            return 0
        try:
            with ended_by_lost_device():
                return lead()
        finally:
            parallel.send(None)  # the others return from follow()
    finally:
        parallel.leave()


@contextlib.contextmanager
def ended_by_lost_device() -> Iterator[None]:
    """End the process where a device is lost in it: nothing of CUDA works any more, nor does an orderly end."""
    try:
        yield
    except DeviceLostError as error:
        print(f"kdbench: {error}; the same command goes on from the last checkpoints", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STOPPED)


def follow() -> None:
    """What the other processes do: every job of the first one, until there are no more.

    Raises:
        KdbenchError: if a job as a whole cannot be done; the first process meets and reports the same.
    """
    from kdbench.engine import parallel

    while True:
        text = parallel.send(None)
        if text is None:
            return
        try:
            perform_together(Job.from_json(text))
        except KdbenchError:
            continue  # the same in all processes; the first one says it
