"""A launcher that gives jobs to a Ray cluster as tasks: a running one, or a local one that it starts and ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.launch.job import Event, Job
from kdbench.launch.remote import EventFiles, carry, finished

#: How often Ray runs a task again whose node or worker was lost.
RETRIES = 5


class RayLauncher:
    """See ``Launcher``. Nodes and this process share the run directory; kdbench is installed on all of them.

    ``$RAY_ADDRESS`` names a running cluster, as it does for Ray; without it one is started on this machine.

    Args:
        workers: jobs at a time; None takes what the cluster has.
        cpu: whether jobs are to leave GPUs alone; else each gets one where the cluster has any.
        threads: CPU threads of a job.
    """

    def __init__(self, workers: int | None, cpu: bool, threads: int) -> None:
        address = os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address:
            _check_reachable(address)
            if address.split(":")[0] in ("127.0.0.1", "localhost"):
                options["_node_ip_address"] = "127.0.0.1"
        else:
            options["include_dashboard"] = False
            # Only on the loopback: Ray replaces 127.0.0.1 by the machine's own address, unless it may have no other nodes.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # Other users of this machine reach the loopback too: a token that only its own processes know.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(24).hex())
            options.update(
                num_cpus=(workers or max(1, (os.cpu_count() or 1) // threads)) * threads, _node_ip_address="127.0.0.1"
            )
        import ray  # only now: it reads its environment when it is imported

        self._ray: Any = ray
        try:
            ray.init(address=address or "local", **options)
        except Exception as error:
            where = f"at {address}" if address else "on this machine"
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise KdbenchError(f"--on ray: no cluster {where} ({said})") from None
        total = ray.cluster_resources()
        gpus = 1 if total.get("GPU") and not cpu else 0
        places = int(total.get("GPU", 0) // gpus) if gpus else int(total.get("CPU", 1) // threads)
        self.capacity = workers or max(1, places)
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(carry)
        self._running: dict[Any, tuple[Job, EventFiles]] = {}

    def submit(self, job: Job) -> None:
        self._running[self._task.remote(job.to_json())] = (job, EventFiles(job.events))

    def poll(self, seconds: float) -> list[Event]:
        ready, _ = self._ray.wait(list(self._running), timeout=seconds) if self._running else ([], [])
        events: list[Event] = []
        for job, files in self._running.values():
            events += [{**event, "job": job.name} for event in files.read() if event["event"] != "end"]
        for reference in ready:
            job, _ = self._running.pop(reference)
            try:
                end = json.loads(self._ray.get(reference))
            except Exception as error:  # of Ray's kinds: a lost node, a worker that died
                end = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", "crashed": True}
            events.append(finished(job.name, end))
        return events

    def cancel(self) -> None:
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=False)
        with contextlib.suppress(Exception):
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=30)
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    if address == "auto":  # the cluster of this machine
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise KdbenchError(f"RAY_ADDRESS={address!r} is not of the form HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise KdbenchError(f"RAY_ADDRESS={address}: no cluster answers ({error.strerror or error})") from None
