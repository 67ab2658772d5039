"""Loader processes: jobs are handed out in turn, and answers fetched in any order. A process that dies or hangs is named.

torch's ``DataLoader`` does not fit: it gives an epoch's batches in order only, and its errors name neither the images nor the
batch that a dead process was at. These processes come from a fork server, without the parent's CUDA context and threads.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

import torch

from kdbench.errors import KdbenchError

#: Seconds after which a loader process that does not answer counts as hung.
TIMEOUT = 300.0
#: Most loader processes that are started unless more are asked for.
MOST_WORKERS = 8
#: Seconds that a loader process has to end by itself.
_GRACE = 2.0
#: Seconds that a loader process stays after SIGTERM, in which its parent saves its work.
_GRACE_AFTER_SIGTERM = 10.0
_HINTS = {"SIGBUS": ": too little shared memory, see df /dev/shm", "SIGKILL": ": killed, perhaps for want of memory"}

Job = TypeVar("Job")
Answer = TypeVar("Answer")
_Job = TypeVar("_Job", contravariant=True)
_Answer = TypeVar("_Answer", covariant=True)


class Work(Protocol[_Job, _Answer]):
    """What loader processes do. It is pickled into each of them."""

    def __call__(self, job: _Job, /) -> _Answer: ...

    def describe(self, job: _Job, /) -> str:
        """The job in words, for messages."""


def default_workers() -> int:
    """One for each core that this process may use, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


@dataclass(eq=False)
class Ticket(Generic[Job]):
    """A job that was handed in."""

    job: Job
    worker: _Worker | None
    answered: bool = False
    answer: Any = None


class Loader(Generic[Job, Answer]):
    """Does work in other processes, which are started with the first job, or (``workers`` = 0) in this one.

    Args:
        workers: number of processes; None chooses by the number of cores.
        timeout: seconds after which a process that does not answer counts as hung.

    Raises:
        KdbenchError: for a number of processes below 0.
    """

    def __init__(self, work: Work[Job, Answer], workers: int | None = None, timeout: float = TIMEOUT) -> None:
        self.workers = default_workers() if workers is None else workers
        if self.workers < 0:
            raise KdbenchError(f"{workers} loader processes: expected 0 or more")
        self.work = work
        self.timeout = timeout
        self._processes: list[_Worker] = []
        self._turn = 0
        self._finalizer: weakref.finalize | None = None

    def batches(self, batches: Iterable[Iterable[Job]], ahead: int) -> Iterator[list[Answer]]:
        """The answers to each batch of jobs, in order, while ``ahead`` more batches are worked on. Raises as ``result``."""
        asked: deque[list[Ticket[Job]]] = deque()
        for jobs in batches:
            asked.append([self.submit(job) for job in jobs])
            if len(asked) > ahead:
                yield [self.result(ticket) for ticket in asked.popleft()]
        while asked:
            yield [self.result(ticket) for ticket in asked.popleft()]

    def submit(self, job: Job) -> Ticket[Job]:
        """Hand in a job.

        Raises:
            KdbenchError: if the process that it falls to has died.
        """
        if not self.workers:
            return Ticket(job, None)
        if not self._processes:
            self._processes = [_Worker(number, self.work) for number in range(self.workers)]
            self._finalizer = weakref.finalize(self, _end, self._processes)
        worker = self._processes[self._turn % len(self._processes)]
        self._turn += 1
        ticket = Ticket(job, worker)
        worker.pending.append(ticket)
        try:
            worker.connection.send(job)
        except OSError:
            raise self._died(worker) from None
        return ticket

    def result(self, ticket: Ticket[Job]) -> Answer:
        """Wait for the answer to a job. A ticket is good for one answer.

        Raises:
            KdbenchError: if its process died, hangs, or could not do it.
        """
        if ticket.worker is None:
            return self.work(ticket.job)
        while not ticket.answered:
            self._receive(ticket.worker)
        answer, ticket.answer = ticket.answer, None
        if isinstance(answer, KdbenchError):
            raise answer
        return answer

    def close(self) -> None:
        """End the processes. The next job starts others."""
        if self._finalizer is not None:
            self._finalizer()
        self._processes = []

    def _receive(self, worker: _Worker) -> None:
        """The next answer of a process; they come in the order of its jobs."""
        if not worker.pending:
            raise KdbenchError("the loader processes were ended while a batch was waited for")
        ready = wait([worker.connection, worker.process.sentinel], self.timeout)
        if not ready:
            doing = self.work.describe(worker.pending[0].job)
            self.close()
            raise KdbenchError(f"{worker} has not answered for {self.timeout:g} s; it was at {doing}")
        if worker.connection not in ready:
            raise self._died(worker)
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            raise self._died(worker) from None
        ticket = worker.pending.popleft()
        ticket.answered, ticket.answer = True, answer

    def _died(self, worker: _Worker) -> KdbenchError:
        doing = f"; it was at {self.work.describe(worker.pending[0].job)}" if worker.pending else ""
        worker.process.join(_GRACE)
        code = worker.process.exitcode
        self.close()
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"died of {name}{_HINTS.get(name, '')}"
        return KdbenchError(f"{worker} {how}{doing}")


class _Worker:
    """One process, and the jobs that it has not answered."""

    def __init__(self, number: int, work: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kdbench.data.transforms"])  # imported once for all; ignored once it runs
        self.number = number
        self.pending: deque[Ticket[Any]] = deque()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True, name=f"loader-{number}")
        self.process.start()
        theirs.close()

    def __str__(self) -> str:
        return f"loader process {self.number} (pid {self.process.pid})"


def _serve(connection: Connection, work: Any) -> None:
    """The loop of a loader process, until its parent closes the connection or dies."""
    # These are for the parent, which saves its work, for which it may need a batch more, and then ends this process.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            try:
                answer = work(job)
            except KdbenchError as error:
                answer = KdbenchError(str(error))
            except Exception as error:
                answer = KdbenchError(f"{type(error).__name__} in a loader process at {work.describe(job)}: {error}")
            connection.send(answer)


def _leave_later(number: int, frame: object) -> None:
    """On SIGTERM, which engines send to all processes of a job: leave with the parent, or after a while without it."""
    timer = threading.Timer(_GRACE_AFTER_SIGTERM, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _leave_with_parent() -> None:
    """End this process when its parent is gone, also while it hangs in its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(_GRACE)
    os._exit(1)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.pending.clear()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(_GRACE)
