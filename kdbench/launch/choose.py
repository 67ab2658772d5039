"""From a request to the machine: data, device, workers, what is trained together, and by which launcher."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdbench.errors import KdbenchError, counted
from kdbench.forecast.fit import available, balance, estimate_memory, fit
from kdbench.launch.job import Launcher
from kdbench.launch.mps import can_share
from kdbench.launch.remote import check_installed
from kdbench.launch.slurm import parse_options
from kdbench.matrix.cells import Cell, Cohort, Plan, check_batches
from kdbench.matrix.devices import check_device, gpus_of, index_of
from kdbench.matrix.request import Request
from kdbench.store.folders import CellState
from kdbench.suite.datasets import find_dataset

#: That share a GPU by default, each on a core of its own.
WORKERS_PER_GPU = 8
#: Above this many cells, estimating their memory takes so long that a progress note is due.
MANY_CELLS = 100


@dataclass(frozen=True)
class Machine:
    """What runs the jobs of a plan: ``on`` as in a request, or ``"together"`` under torchrun; ``workers`` at a time."""

    on: str
    workers: int

    @property
    def is_here(self) -> bool:
        """Whether jobs run on this machine, so that its memory and its speed are theirs."""
        return self.on not in ("slurm", "ray")

    def __str__(self) -> str:
        return {"slurm": "on Slurm", "ray": "on Ray"}.get(self.on, counted(self.workers, "worker"))


def choose_machine(request: Request, plan: Plan, together: bool = False) -> Machine:
    """Where a plan runs; by default with as many workers as there are cores for the suite's threads.

    On GPUs there is one worker for each, or up to ``WORKERS_PER_GPU`` where its images lie on the device (small nets, whose
    kernels leave most of a GPU idle) and MPS lets them share it.

    Args:
        together: whether several processes share every job (torchrun).
    """
    if together:
        return Machine("together", 1)
    if request.on == "inprocess":
        return Machine("inprocess", 1)
    if request.workers:
        return Machine(request.on, request.workers)
    if request.on == "slurm":
        return Machine("slurm", 1)  # Slurm knows how many; cohorts stay whole
    gpus = gpus_of(request.device)
    workers = max(1, (os.cpu_count() or 1) // plan.suite.cpu_threads)
    if gpus:
        alone = find_dataset(plan.suite.dataset.name).streams or not can_share(gpus)
        workers = len(gpus) * (1 if alone else min(WORKERS_PER_GPU, max(1, workers // len(gpus))))
    return Machine(request.on, workers)


def check_machine(request: Request) -> None:
    """Refuse a device, an engine or options of an engine that are not there, before anything is written.

    Raises:
        KdbenchError: in one line.
    """
    index = index_of(request.device)
    if request.deterministic and request.cudnn_benchmark:
        raise KdbenchError(
            "--deterministic and --cudnn-benchmark exclude each other: what is fastest differs from run to run"
        )
    alone = {"--no-graphs": not request.graphs, "--compile": request.compile, "--solo": request.solo}
    for option, given in alone.items():
        if given and request.cuda_streams > 1:
            raise KdbenchError(
                f"--cuda-streams {request.cuda_streams} and {option} exclude each other: no recorded steps run side by side then"
            )
    if request.slurm and request.on != "slurm":
        raise KdbenchError(f"--slurm {request.slurm} is for --on slurm, not for --on {request.on}")
    parse_options(request.slurm)
    if request.on in ("slurm", "ray"):
        if index is not None:
            raise KdbenchError(
                f"--device {request.device}: --on {request.on} chooses GPUs itself; expected cpu or cuda"
            )
        check_installed({"slurm": "submitit", "ray": "ray"}[request.on], request.on)
    else:
        check_device(request.device)
        if request.cuda_streams > 1 and not gpus_of(request.device):
            raise KdbenchError(f"--cuda-streams {request.cuda_streams} is for GPUs; this run would train on the CPU")


def ready_data(plan: Plan, note: Callable[[str], None], progress: Callable[[int, int], None]) -> None:
    """Fetch the data set of a plan if the request says so, and check that it is there.

    Args:
        note: takes what is worth knowing of its files.
        progress: takes the bytes downloaded so far, and all.

    Raises:
        KdbenchError: if it is missing, or has fewer images than a batch or the suite's limits need.
    """
    from kdbench.datasets.load import check_dataset, download_dataset

    request = plan.request
    if request.download:
        download_dataset(plan.suite.dataset, request.data_folder, progress)
    for text in check_dataset(plan.suite.dataset, request.data_folder):
        note(text)
    check_images(plan)


def check_images(plan: Plan, needed: bool = True) -> None:
    """Refuse batches, and numbers of images per class, that are larger than what a data set of files holds.

    What is known without its files was checked when the plan was made.

    Args:
        needed: whether the data set has to be there. If not, it is looked at where it is and its size is not published.

    Raises:
        KdbenchError: if it is missing or too small.
    """
    wanted, under = plan.suite.dataset, plan.under
    entry = find_dataset(wanted.name)
    if not plan.cells or not entry.streams:
        return
    if not needed and entry.train_images is not None and wanted.classes is None:
        return
    split = plan.request.split
    try:
        dataset = plan.dataset(split)
    except KdbenchError:
        if needed:
            raise
        return
    limits = (under.images_per_class, under.teacher_images_per_class)
    check_batches(plan.suite, plan.cells, *(len(dataset.training(limit)) for limit in limits))
    dataset.measured(split, under.measured_images_per_class)


def cohorts_of(
    plan: Plan,
    cells: Sequence[Cell],
    states: Mapping[str, CellState],
    machine: Machine,
    progress: Callable[[str], None],
) -> Sequence[Cohort]:
    """What is trained together: as many cells as fit into memory, and enough cohorts for all workers.

    Args:
        cells: what is left to train.
        states: of all cells of the plan.
    """
    request = plan.request
    if not cells:
        return []
    cohorts = plan.cohorts(True, cells) if request.solo else balance(plan.cohorts(False, cells), machine.workers)

    estimated = partial(estimate_memory, plan, states)
    if request.memory:
        limit = request.memory * 2**30
    else:
        limit = available(gpus_of(request.device), machine.workers) if machine.is_here else float("inf")
    if len(cells) > MANY_CELLS:
        progress(f"estimating the memory of {counted(len(cells), 'cell')}")
    return fit(estimated(cohorts), limit, estimated)


def launcher_of(plan: Plan, machine: Machine) -> Launcher:
    """The launcher of a machine. Engines are imported only here."""
    request = plan.request
    if machine.on == "together":
        from kdbench.launch.torchrun import TogetherLauncher

        return TogetherLauncher(gpus_of(request.device)[:1])
    if machine.on == "inprocess":
        from kdbench.launch.inprocess import InProcessLauncher

        return InProcessLauncher()
    if machine.on == "slurm":
        from kdbench.launch.slurm import SlurmLauncher

        return SlurmLauncher(Path(request.out), request.workers, parse_options(request.slurm))
    if machine.on == "ray":
        from kdbench.launch.ray import RayLauncher

        return RayLauncher(request.workers, request.device == "cpu", plan.suite.cpu_threads)
    from kdbench.launch.local import LocalLauncher

    return LocalLauncher(machine.workers, gpus_of(request.device))
