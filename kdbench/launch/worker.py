"""The process of one job: ``python -m kdbench.launch.worker``, job on standard input, events on standard output.

It ends when its standard input closes, so that no worker outlives the run that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback


def main() -> int:
    """Read a job, do it, report events as JSON lines. Exit status 0 if the job as a whole was done, 1 otherwise."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    request = sys.stdin.readline()
    if not request.strip():
        return 1
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The imports below take seconds; the parent's disappearance is noticed meanwhile.
    from kdbench.errors import KdbenchError
    from kdbench.launch.job import Job, perform

    job = Job.from_json(request)
    os.makedirs(os.path.dirname(job.log), exist_ok=True)
    with open(job.log, "a", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

        def emit(event: dict[str, object]) -> None:
            with contextlib.suppress(BrokenPipeError):
                events.write(json.dumps(event) + "\n")

        try:
            perform(job, emit)
        except KdbenchError as error:
            emit({"event": "error", "error": str(error)})
            return 1
        except BaseException as error:
            traceback.print_exc()
            emit({"event": "error", "error": f"{type(error).__name__}: {error}"})
            return 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(130)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of numerical libraries can make a normal exit hang or take seconds
