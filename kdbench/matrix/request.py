"""What the user asks for, as one value: made by the command line, or in Python, and passed to all that plans and trains."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.suite.net import TrainedHere


@dataclass(frozen=True)
class Request:
    """Which cells of a suite to train, on what, and how. What is empty is the suite's own choice, or the machine's.

    Attributes:
        suite: a suite, or the path of its YAML file.
        protocol: how much of the suite.
        methods, pairs: names or globs.
        seeds: 0 to 2**32 - 1.
        split: what students are measured on, ``"test"`` or ``"validation"``.
        limit: images of each split, evenly spread over it.
        set: method or variant to hyper-parameter to value.
        variants: name to ``method``, ``set`` and ``display``, as in a suite.
        settings: the file of a search of hyper-parameters (``kdbench tune``), whose values are used.
        as_tuned: use values that were published for single pairs, where there are any.
        train_teachers, fine_tune_teachers: names, globs or ``all``: teachers that are trained here from scratch, or from timm's
            weights, whatever the suite says.
        teacher_tolerance: points that the accuracy of a teacher with weights may differ from the published one.
        accept_teacher: train behind a teacher whose weights differ from those behind results of the pair.
        plugins, hooks: Python files.
        out: the run directory.
        data, weights: folders of the data sets and of the teachers' weights.
        download: fetch what is missing of both.
        on: ``"local"``, ``"slurm"``, ``"ray"`` or ``"inprocess"``.
        slurm: options of sbatch, ``"partition=gpu,time=4:00:00"``.
        workers: jobs at a time.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        memory: GiB of the device for each worker.
        solo: train every cell in a cohort of its own.
        compile: run nets through ``torch.compile``.
        graphs: on a GPU, record steps as CUDA graphs.
        cuda_streams: on a GPU, recorded steps of a cohort that run side by side.
        deterministic: refuse kernels whose last bits differ from run to run.
        cudnn_benchmark: let cuDNN time its algorithms and take the fastest.
        loaders: processes that decode files for each worker; by default one per core, at most eight.
        log: experiment trackers.
        confirm: methods of which a gain is declared before the run; their tests are corrected for these alone.
        max_hours: refuse a plan of more hours of computing.
        stall: minutes without a step after which a worker is restarted; 0 for never.
        retry_failed: train failed cells again.
        yes: do not ask before a long run.
    """

    suite: str = "digits"
    _: KW_ONLY
    protocol: str = ""
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    split: str = "test"
    limit: int | None = None
    set: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: str | None = None
    as_tuned: bool = False
    train_teachers: tuple[str, ...] = ()
    fine_tune_teachers: tuple[str, ...] = ()
    teacher_tolerance: float = 1.0
    accept_teacher: bool = False
    plugins: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    out: str = "runs"
    data: str | None = None
    weights: str | None = None
    download: bool = False
    on: str = "local"
    slurm: str = ""
    workers: int | None = None
    device: str | None = None
    memory: float | None = None
    solo: bool = False
    compile: bool = False
    graphs: bool = True
    cuda_streams: int = 1
    deterministic: bool = False
    cudnn_benchmark: bool = False
    loaders: int | None = None
    log: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    max_hours: float | None = None
    stall: float = 30.0
    retry_failed: bool = False
    yes: bool = False

    @property
    def data_folder(self) -> Path | None:
        return Path(self.data) if self.data else None

    @property
    def weights_folder(self) -> Path | None:
        """As given, else ``weights/`` below the data sets."""
        if self.weights:
            return Path(self.weights)
        return Path(self.data, "weights") if self.data else None

    def absolute(self) -> Request:
        """The same request for a process that runs in another folder."""
        return replace(
            self,
            suite=os.path.abspath(self.suite) if os.path.isfile(self.suite) else self.suite,
            settings=os.path.abspath(self.settings) if self.settings else None,
            plugins=tuple(map(os.path.abspath, self.plugins)),
            hooks=tuple(map(os.path.abspath, self.hooks)),
            out=os.path.abspath(self.out),
            data=os.path.abspath(self.data) if self.data else None,
            weights=os.path.abspath(self.weights) if self.weights else None,
        )

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Request:
        """From what ``dataclasses.asdict`` and JSON made of it."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**fields)


def retrained_teachers(request: Request, teachers: Sequence[str], suite: str) -> dict[str, TrainedHere]:
    """Teachers of a suite that are to be trained here, and how.

    Raises:
        KdbenchError: for a name or a glob that is none of ``teachers``, or a teacher that is named twice.
    """
    names = list(dict.fromkeys(teachers))
    chosen: dict[str, TrainedHere] = {}
    wanted: dict[TrainedHere, tuple[str, ...]] = {
        "train": request.train_teachers,
        "finetune": request.fine_tune_teachers,
    }
    for how, patterns in wanted.items():
        for pattern in patterns:
            matches = names if pattern == "all" else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            if not matches:
                raise UnknownNameError("teacher", pattern, names, f"suite {suite}")
            for name in matches:
                if chosen.setdefault(name, how) != how:
                    raise KdbenchError(
                        f"teacher {name} is in both --train-teachers and --fine-tune-teachers; choose one of them"
                    )
    return chosen
