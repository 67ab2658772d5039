"""A launcher that submits jobs to Slurm through submitit, as arrays; what they do is read from files in the run directory.

submitit writes what it submits as pickles, and its jobs load them: their folder is for its owner alone. Here nothing of
submitit's is loaded back. A job's end is what its own events say; whether it vanished is asked of
``squeue`` and ``scontrol``, since ``sacct`` knows nothing where Slurm keeps no accounts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, nearest
from kdbench.launch.job import JOBS_FOLDER, Event, Job
from kdbench.launch.remote import Carry, EventFiles, finished
from kdbench.opening import inside

#: Seconds between two polls of the queue, and after which a job that left it without reporting its end counts as dead.
QUEUE_SECONDS, GONE_SECONDS = 5.0, 20.0
#: How often Slurm may put a job back into the queue because its time was over.
MAX_TIMEOUTS = 1000

#: Options of sbatch that are ours: they would change what runs, or where its output goes.
_OURS = ("array", "dependency", "error", "export", "export-file", "output", "open-mode", "parsable", "signal", "wait", "wrap",
         "chdir", "setup", "teardown", "srun-args", "ntasks", "ntasks-per-node", "nodes", "requeue", "no-requeue")  # fmt: skip
_KNOWN = ("account", "comment", "constraint", "cpus-per-task", "exclude", "exclusive", "gpus", "gpus-per-node", "gres", "licenses",
          "mail-type", "mail-user", "mem", "mem-per-cpu", "nice", "nodelist", "partition", "priority", "qos", "reservation",
          "time", "tmp", "signal-delay")  # fmt: skip


def parse_options(text: str) -> dict[str, str]:
    """``"partition=gpu,time=4:00:00,gres=gpu:1"`` to a mapping of sbatch's long options.

    Raises:
        KdbenchError: for another form, or an option that is not to be set.
    """
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        if name in _OURS:
            raise KdbenchError(f"--slurm {part!r}: {name} is set by kdbench")
        if name not in _KNOWN:
            raise KdbenchError(f"--slurm {part!r}: unknown option {name!r}; {nearest(name, _KNOWN)}")
        if name != "exclusive" and not re.fullmatch(r"[\w.:+@%/\[\]&|*-]+", value):
            raise KdbenchError(f"--slurm {part!r} is not of the form NAME=VALUE (no spaces, no quotes)")
        if name == "time":
            minutes(value)
        if name == "signal-delay" and not value.isdecimal():
            raise KdbenchError(f"--slurm {part!r}: signal-delay is a number of seconds")
        options[name] = value
    return options


def minutes(text: str) -> int:
    """Slurm's forms of a time (``90``, ``4:00:00``, ``2-12``, ``1-00:30:00``) in minutes.

    Raises:
        KdbenchError: for another form.
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if not match:
        raise KdbenchError(f"--slurm time={text!r} is no time; valid: minutes, hours:minutes:seconds, days-hours")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:  # days-hours[:minutes[:seconds]]
        total = days * 24 * 60 + (first or 0) * 60 + (second or 0) + (1 if third else 0)
    elif third is not None:  # hours:minutes:seconds
        total = (first or 0) * 60 + (second or 0) + (1 if third else 0)
    else:  # minutes[:seconds]
        total = (first or 0) + (1 if second else 0)
    if not total:
        raise KdbenchError(f"--slurm time={text!r} leaves no time")
    return total


@dataclasses.dataclass
class _Known:
    """A submitted job."""

    job: Job
    files: EventFiles
    number: str = ""  # of the job in Slurm, "12_3" for a part of an array
    gone: float | None = None  # since when the queue does not show it
    stopped: Event | None = None


class SlurmLauncher:
    """See ``Launcher``.

    Args:
        out: run directory, on a file system that all nodes share.
        workers: jobs at a time; None leaves it to Slurm.
        options: sbatch's, see ``parse_options``.
    """

    def __init__(self, out: Path, workers: int | None, options: Mapping[str, str]) -> None:
        import submitit

        self.capacity = workers or 1000
        self.folder = _own_folder(Path(out).resolve())
        try:
            python = f"{shlex.quote(sys.executable)} -P"  # a file of the current folder hides no library
            self._executor = submitit.SlurmExecutor(self.folder, max_num_timeout=MAX_TIMEOUTS, python=python)
            self._executor.update_parameters(**_parameters(options))
        except RuntimeError:
            raise KdbenchError("--on slurm: there is no srun here; run it where jobs can be submitted") from None
        self._new: list[Job] = []
        self._known: dict[str, _Known] = {}
        self._polled = 0.0

    def submit(self, job: Job) -> None:
        self._new.append(job)

    def poll(self, seconds: float) -> list[Event]:
        events = self._flush()
        time.sleep(seconds)
        for name, known in list(self._known.items()):
            for event in known.files.read():
                if event["event"] != "end":
                    known.stopped = None if event["event"] == "began" else known.stopped
                    events.append({**event, "job": name})
                elif event.get("stopped") or event.get("crashed"):
                    known.stopped = event  # Slurm may put it back into its queue
                else:
                    events.append(finished(name, event))
                    self._known.pop(name, None)
        if self._known and time.monotonic() - self._polled >= QUEUE_SECONDS:
            self._polled = time.monotonic()
            events += self._check_queue()
        return events

    def cancel(self) -> None:
        numbers = [known.number for known in self._known.values() if known.number]
        if numbers:
            _ask(["scancel", *numbers])

    def _flush(self) -> list[Event]:
        """Submit what was given since, as one array."""
        jobs, self._new = self._new, []
        if not jobs:
            return []
        name = f"kdbench {jobs[0].request.protocol}".strip()
        self._executor.update_parameters(job_name=re.sub(r"[^\w.-]", "-", name)[:60])
        try:
            submitted = self._executor.map_array(Carry(), [job.to_json() for job in jobs])
        except Exception as error:  # of submitit's own kinds: FailedJobError with sbatch's words
            words = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = next((line for line in words if line.startswith("sbatch: error")), words[-1] if words else "")
            return [{"event": "finished", "job": job.name, "error": f"Slurm refused the job: {said}"} for job in jobs]
        for job, handle in zip(jobs, submitted, strict=True):
            self._known[job.name] = _Known(job, EventFiles(job.events), str(handle.job_id))
        return []

    def _check_queue(self) -> list[Event]:
        """Finish jobs that left the queue without reporting their end, or after they were stopped."""
        states = queue_states()
        events: list[Event] = []
        if states is None:  # no answer
            return events
        for name, known in list(self._known.items()):
            state = states.get(known.number)
            if state is not None:
                known.gone = None
                events.append({"event": "queue", "job": name, "state": state})
                continue
            now = time.monotonic()
            known.gone = known.gone or now
            if known.stopped is None and now - known.gone < GONE_SECONDS:  # its last events may still be on their way
                continue
            self._known.pop(name)
            end = known.stopped or {"error": f"Slurm's job {known.number} ended: {_why(known.number)}", "crashed": True}
            events.append(finished(name, end))
        return events


def _own_folder(out: Path) -> Path:
    """The folder of the pickles that jobs load: who can write there can run code as its owner.

    Raises:
        KdbenchError: if it is a link or another user's.
    """
    folder = inside(out, f"{JOBS_FOLDER}/slurm")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise KdbenchError(f"--on slurm: {folder} is not a folder of yours; jobs would run what lies in it")
    folder.chmod(0o700)
    return folder


def queue_states() -> dict[str, str] | None:
    """State of every own job in the queue by its number, parts of arrays on their own; None when Slurm does not answer."""
    answer = _ask(["squeue", "--me", "-h", "-r", "-o", "%i|%T|%r"])
    if answer is None:
        return None
    states = {}
    for line in answer.splitlines():
        number, state, reason = [*line.split("|", 2), "", ""][:3]
        if state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED",
                     "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD"):  # fmt: skip
            states[number.strip()] = state if reason in ("", "None") else f"{state} ({reason})"
    return states


def _parameters(options: Mapping[str, str]) -> dict[str, Any]:
    rest: dict[str, Any] = {
        name: value or True for name, value in options.items() if name not in ("time", "signal-delay")
    }
    return {
        "time": minutes(options["time"]) if "time" in options else 24 * 60,
        "signal_delay_s": int(options.get("signal-delay", 120)),
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {**rest, "requeue": True},
    }


def _why(number: str) -> str:
    """What Slurm still knows of a job that has ended."""
    answer = _ask(["scontrol", "show", "job", "-o", number]) or ""
    found = dict(re.findall(r"(JobState|Reason|ExitCode)=(\S+)", answer))
    if not found:
        return "it is not in the queue any more"
    return ", ".join(value for value in (found.get("JobState"), found.get("Reason")) if value and value != "None")


def _ask(command: Sequence[str]) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    return None
