"""One fate for several processes that train together: what fails in one of them is known to all, and none waits for it in vain.

A process in which something fails tells the others through the store by which they found each other, and leaves the group.
Whoever waits for it then gets an error from the group instead of an answer, and leaves too. All form a new group and raise what
the first report says: the same cell is taken out, or the same cohort halved, everywhere, and training goes on from the last
checkpoints. Where a device is lost, or a process does not come within ``LEAVE_SECONDS`` of a report, all of them end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from kdbench.engine import parallel
from kdbench.engine.faults import CellFailure, TooLargeError, chain, is_device_lost, release, sentence
from kdbench.errors import DeviceLostError, KdbenchError, StopRequested

#: Seconds after a report within which all processes have left what they did, a long evaluation perhaps; then they are ended.
LEAVE_SECONDS = 600.0
#: Seconds that a process whose group broke waits for the report of another before it reports what it saw itself.
REPORT_SECONDS = 10.0
#: Exit status of a process that ends for another to go on (EX_TEMPFAIL).
ENDED = 75

#: How torch's errors of a group read: of sockets and of gloo and NCCL.
_GROUP = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")


class CellFailedError(Exception):
    """A cell leaves all processes: ``failure`` says why; None where another run has taken it over."""

    def __init__(self, key: str, failure: CellFailure | None) -> None:
        super().__init__(failure.reason if failure else f"{key} was taken over")
        self.key = key
        self.failure = failure


def tell_others(key: str, failure: CellFailure | None) -> None:
    """Take a cell out of all processes; in a single one there is nobody to tell.

    A loss that is not finite was reduced over the processes: all of them see it at the same place and go on.

    Raises:
        CellFailedError: which ends the training of the cohort, to be taken up again without the cell.
    """
    if parallel.world_size() > 1 and (failure is None or failure.kind != "non-finite loss"):
        raise CellFailedError(key, failure)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """What ends a job in one of the processes ends it in all of them.

    Raises:
        SharedError: with the reason, where there are several.
        DeviceLostError: if a device is lost.
    """
    try:
        yield
        parallel.barrier()  # none goes on to the next job while another may still fail in this one
    except (StopRequested, SharedError, DeviceLostError):  # all processes know
        raise
    except Exception as error:
        raised = agreed(error)
        if raised is error:
            raise
        raise raised from error


class SharedError(KdbenchError):
    """What ended a job in one of several processes, and so in all of them."""


def agreed(error: Exception) -> Exception:
    """What the first of the processes that failed raised, for each of them, in a group that is new.

    Args:
        error: of this process: its own, or that of a group which another one has left.
    """
    if parallel.world_size() == 1:
        lost = is_device_lost(error) and not isinstance(error, DeviceLostError)
        return DeviceLostError(sentence(error)) if lost else error
    broken = any(_is_of_group(each) for each in chain(error))
    report = _report(error, sure=not broken)
    if broken:  # it is likely that another process knows why
        until = time.monotonic() + REPORT_SECONDS
        while parallel.reported() is None and time.monotonic() < until:
            time.sleep(0.1)
    first = json.loads(parallel.report(json.dumps(report)))
    if first["kind"] != "device":  # else all end
        release(error)  # nets that are wrapped for the group hold it
        parallel.form_again()
    return error if first == report and report["kind"] in ("cell", "memory") else _raised(first)


def _is_of_group(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(words in str(error).lower() for words in _GROUP)
    )


def _report(error: Exception, sure: bool) -> dict[str, Any]:
    report = {"process": parallel.rank(), "sure": sure, "kind": "job", "reason": sentence(error)}
    if isinstance(error, CellFailedError):
        return {**report, "kind": "cell", "cell": error.key, "failure": error.failure and asdict(error.failure)}
    if isinstance(error, TooLargeError):
        return {**report, "kind": "memory", "reason": str(error), "details": error.details, "smaller": error.smaller}
    return {**report, "kind": "device"} if is_device_lost(error) else report


def _raised(report: dict[str, Any]) -> Exception:
    if report["kind"] == "cell":
        return CellFailedError(report["cell"], CellFailure(**report["failure"]) if report["failure"] else None)
    if report["kind"] == "memory":
        return TooLargeError(report["reason"], report["details"], report["smaller"])
    if report["kind"] == "device":
        return DeviceLostError(report["reason"])
    where = "" if report["process"] == parallel.rank() else f"process {report['process']}: "
    return SharedError(f"{where}{report['reason']}")


#: Called where processes are ended because one of them does not leave what it does, with the cell that failed.
on_end: Callable[[CellFailedError], None]


def ignore(error: CellFailedError) -> None:
    """For when no cell is trained."""


on_end = ignore


def listen() -> None:
    """Look for reports beside what this process does, which may wait for others in vain."""
    threading.Thread(target=_listen, daemon=True, name="kdbench-fate").start()


def _listen() -> None:
    seen, since = 0, float("inf")
    with contextlib.suppress(Exception):  # the store went with the process that kept it
        while (number := parallel.group_number()) >= 0:
            report = parallel.reported()
            if report is None or number != seen:
                seen, since = number, float("inf")
            if report is not None:
                since = min(since, time.monotonic())
                if time.monotonic() - since > LEAVE_SECONDS:
                    _end(json.loads(report))
            time.sleep(1.0)


def _end(report: dict[str, Any]) -> None:
    """End this process: one of them, this or another, does not leave what it does."""
    raised = _raised(report)
    try:
        if isinstance(raised, CellFailedError) and report["sure"]:
            on_end(raised)
        print(
            f"kdbench: process {report['process']} reported: {report['reason']}; the others did not leave their work within "
            f"{LEAVE_SECONDS:.0f} s and are ended; the same command goes on from the last checkpoints",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(ENDED)
