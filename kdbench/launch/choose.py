"""From the options of a command to the machine: data, device, workers, what is trained together, and who runs it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, counted
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.store.folders import Store

#: Of so many cells each net and method takes a while to be looked at, which is said.
MANY_CELLS = 100


def data_folder(options: argparse.Namespace) -> Path | None:
    return Path(options.data) if options.data else None


def suite_name(options: argparse.Namespace) -> str:
    return os.path.abspath(options.suite) if Path(options.suite).is_file() else str(options.suite)


def ready_data(options: argparse.Namespace, made: Plan) -> None:
    """Fetch the data set of a plan if that was asked for, and see that it is there before anything runs."""
    from kdbench.datasets.load import check_dataset, download_dataset

    wanted, folder = made.suite.dataset, data_folder(options)
    if options.download:
        download_dataset(wanted, folder, say_download if sys.stderr.isatty() else None)
    for note in check_dataset(wanted, folder):
        print(f"kdbench: note: {note}", file=sys.stderr)


def say_download(done: int, size: int) -> None:
    end = "\n" if done >= size else ""
    print(f"\rdownloading: {done / 1e6:.0f} of {size / 1e6:.0f} MB", end=end, file=sys.stderr, flush=True)


def check_backend(name: str | None) -> None:
    """Refuse a machine that cannot train before anything is written."""
    from kdbench.engine.process import check_opencv

    check_opencv()
    if name is None:
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KdbenchError(f"--device {name}: {str(error).splitlines()[0]}") from None


def check_where(options: argparse.Namespace) -> None:
    """Refuse options of engines that are not used, and engines that are not installed, before anything is written."""
    from kdbench.launch.remote import need_installed
    from kdbench.launch.slurm import parse_options

    for option, given, engine in (("--slurm", options.slurm, "slurm"), ("--ray-address", options.ray_address, "ray")):
        if given and options.on != engine:
            raise KdbenchError(f"{option} {given} is for --on {engine}, not for --on {options.on}")
    parse_options(options.slurm)
    if options.on in ("slurm", "ray"):
        need_installed({"slurm": "submitit", "ray": "ray"}[options.on], options.on)


def gpus_of(options: argparse.Namespace) -> int:
    if options.device not in (None, "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def workers_of(options: argparse.Namespace, made: Plan) -> int:
    if options.on == "together":
        return 1
    if options.workers:
        return int(options.workers)
    gpus = gpus_of(options)
    if options.on == "slurm":
        return 1  # Slurm knows how many; cohorts stay whole
    return gpus or max(1, (os.cpu_count() or 1) // made.suite.cpu_threads)


def cohorts_of(
    made: Plan, cells: Sequence[Cell], store: Store, options: argparse.Namespace, workers: int
) -> Sequence[Cohort]:
    """What is trained together: as many cells as fit into memory, and enough cohorts for all workers."""
    from kdbench.forecast.balance import balance
    from kdbench.forecast.fit import available, estimate_memory, fit

    if not cells:
        return []
    cohorts = made.cohorts(True, cells) if options.solo else balance(made.cohorts(False, cells), workers)

    def estimated(parts: Sequence[Cohort]) -> Any:
        return estimate_memory(made, parts, store, options.device, data_folder(options))

    elsewhere = options.on in ("slurm", "ray")  # what their machines have is not known here
    if options.memory:
        limit = options.memory * 2**30
    else:
        limit = float("inf") if elsewhere else available(options.device, workers)
    if len(cells) > MANY_CELLS:
        print(f"working out what {counted(len(cells), 'cell')} take of memory ...", file=sys.stderr, flush=True)
    return fit(estimated(cohorts), limit, estimated)


def launcher_of(options: argparse.Namespace, made: Plan, workers: int) -> Any:
    if options.on == "together":
        from kdbench.launch.torchrun import TogetherLauncher

        return TogetherLauncher()
    if options.on == "inprocess":
        from kdbench.launch.inprocess import InProcessLauncher

        return InProcessLauncher()
    if options.on == "slurm":
        from kdbench.launch.slurm import SlurmLauncher, parse_options

        return SlurmLauncher(Path(options.out), options.workers, parse_options(options.slurm))
    if options.on == "ray":
        from kdbench.launch.ray import RayLauncher

        cpu = options.device not in (None, "cuda")
        return RayLauncher(options.ray_address, options.workers, cpu, made.suite.cpu_threads)
    from kdbench.launch.local import LocalLauncher

    return LocalLauncher(workers, gpus_of(options))


@contextlib.contextmanager
def sigterm_as_interrupt() -> Any:
    """End in order on SIGTERM too: stop the workers, keep what is done."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
