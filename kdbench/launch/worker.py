"""The process of one job: ``python -m kdbench.launch.worker``, job on standard input, events on standard output and in a file.

It ends when its standard input closes, so that no worker outlives the run that started it. On SIGTERM it saves its work after
the current step, and ends. When it makes no step for too long, it writes where it hangs into its log and ends.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from kdbench.opening import inside, open_log

#: Exit status of a worker that was asked to end and saved its work (EX_TEMPFAIL).
STOPPED = 75
#: Minimum seconds between two steps that are sent to the parent, and between two that are written to the file.
STEP_INTERVAL, FILE_INTERVAL = 1.0, 10.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Reporter:
    """Passes events on, rarely those of steps, and answers whether the job is to stop.

    Args:
        pipe: the parent's end.
        file: where others read them.
        stall: seconds without an event after which the process ends; 0 for never.
        log: receives the traces of a process that hangs.
    """

    def __init__(self, pipe: IO[str], file: Path, stall: float, log: IO[str]) -> None:
        self.stop = False
        self._pipe, self._path = pipe, file
        self._file: IO[str] | None = None
        self._stall, self._log = stall, log
        self._told = self._written = self._armed = float("-inf")
        self._watch_out()

    def __call__(self, event: dict[str, Any]) -> bool:
        now = time.monotonic()
        self._watch_out()
        if event["event"] != "step" or now - self._told >= min(STEP_INTERVAL, self._stall / 4 or STEP_INTERVAL):
            self._told = now
            line = json.dumps({**event, "time": time.time()}) + "\n"
            with contextlib.suppress(BrokenPipeError):
                self._pipe.write(line)
            if event["event"] != "step" or now - self._written >= FILE_INTERVAL:
                self._written = now
                with contextlib.suppress(OSError):  # the view suffers, the work does not
                    if self._file is None:
                        self._file = open_log(self._path)
                    self._file.write(line)
        return self.stop

    def _watch_out(self) -> None:
        """Set the alarm again. It is a thread in C, which also ends a process that hangs in C."""
        now = time.monotonic()
        if self._stall and now - self._armed >= min(5.0, self._stall / 4):
            self._armed = now
            faulthandler.dump_traceback_later(self._stall, exit=True, file=self._log)


def main() -> int:
    """Read a job, do it, report events as JSON lines. Exit status 0 if the job as a whole was done."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    request = sys.stdin.readline()
    if not request.strip():
        return 1
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The imports below take seconds; the parent's disappearance is noticed meanwhile.
    from kdbench.errors import DeviceLostError, KdbenchError, StopRequested
    from kdbench.launch.job import JOBS_FOLDER, Job, perform

    job = Job.from_json(request)
    end: dict[str, Any] = {"event": "end", "error": None}
    status = 1
    try:
        log = open_log(job.log_file)
        events = f"{JOBS_FOLDER}/{job.ticket}/{secrets.token_hex(6)}.jsonl"
        told = inside(Path(job.request.out), events)
    except KdbenchError as error:
        pipe.write(json.dumps({**end, "error": str(error)}) + "\n")
        return status
    except OSError as error:
        pipe.write(json.dumps({**end, **_of_os(error)}) + "\n")
        return status
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    report = Reporter(pipe, told, job.stall, log)

    def stop(number: int, frame: Any) -> None:
        report.stop = True

    # Slurm sends SIGTERM when it takes a node back, and submitit's own signal to all processes of a job.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, stop)
    report({"event": "began", "host": os.uname().nodename, "pid": os.getpid()})
    try:
        perform(job, report, events)
        status = 0
    except StopRequested:
        end.update(error="it was asked to end, and saved its work", stopped=True)
        status = STOPPED
    except DeviceLostError as error:
        traceback.print_exc()
        end.update(error=str(error), broken=True)
    except KdbenchError as error:
        end.update(error=str(error))
    except OSError as error:
        traceback.print_exc()
        end.update(_of_os(error))
    except BaseException as error:
        traceback.print_exc()
        end.update(error=f"{type(error).__name__}: {error}")
    faulthandler.cancel_dump_traceback_later()
    report(end)
    return status


def _of_os(error: OSError) -> dict[str, Any]:
    where = f": {error.filename}" if error.filename else ""
    return {"error": f"{error.strerror or type(error).__name__}{where}", "full": error.errno in _NO_SPACE}


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(130)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of numerical libraries can make a normal exit hang or take seconds
