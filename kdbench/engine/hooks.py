"""Hooks of users in mmengine's runner: each cell has instances of its own, which see it as if it were trained alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from kdbench.engine.cell import CellTrainer, Distiller
from kdbench.engine.optim import QuietOptimWrapper
from kdbench.errors import KdbenchError
from kdbench.plugins.hooks import HookEntry
from kdbench.store.log import logger_of


class CellRunner:
    """What a hook gets as its runner: one cell of a cohort.

    Attributes:
        cell: name of the cell within its plan.
        method: name of its method.
        epoch, iter: epochs, and steps of all epochs, that are complete; of ``max_epochs``, ``max_iters``.
        train_dataloader: the pipeline; its length is that of an epoch, in steps.
        model: the student (``model.student.net``, timm's) and the method (``model.method``).
        optim_wrapper: with the optimizer of both.
        cfg: configuration of the cell.
        work_dir: folder of the cell.
        logger: its lines go to the cell's ``log.txt``.
        visualizer: writes to the trackers of ``--log``; steps are epochs.
    """

    epoch = property(attrgetter("_runner.epoch"))
    iter = property(attrgetter("_runner.iter"))
    max_epochs = property(attrgetter("_runner.max_epochs"))
    max_iters = property(attrgetter("_runner.max_iters"))
    train_dataloader = property(attrgetter("_runner.train_dataloader"))

    def __init__(self, runner: Runner, cell: CellTrainer) -> None:
        self._runner, self._cell = runner, cell
        self.cell = cell.key
        self.method = str(cell.method.name)
        self.model: Distiller = cell.distiller
        self.optim_wrapper: QuietOptimWrapper = cell.optim_wrapper
        self.cfg = Config(dict(cell.spec.config))
        self.work_dir = str(cell.spec.folder.path)
        self.logger = logger_of(cell.spec.folder.log)
        self.visualizer: Visualizer = runner.visualizers[cell.key]

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each loss term over the last complete epoch."""
        return self._cell.losses

    @property
    def metrics(self) -> dict[str, float]:
        """The last row of the cell's history; empty before the first evaluation."""
        return self._cell.history[-1] if self._cell.history else {}


class CellHooks(Hook):
    """Calls the hooks of users at mmengine's points, for each living cell.

    A hook that raises fails its cell. What it draws at random comes from the cell's stream, so that company and
    interruptions change nothing; what an observer draws is nobody's.
    """

    def __init__(self, entries: Sequence[HookEntry]) -> None:
        self.entries = entries
        self._of: dict[str, tuple[CellRunner, list[tuple[HookEntry, Hook]]]] = {}

    def before_run(self, runner: Runner) -> None:
        cohort = runner.model
        for cell in cohort.alive:
            with cohort.failing(cell, "a hook"):
                hooks = [(entry, HOOKS.build({"type": entry.load()})) for entry in self.entries]
                self._of[cell.key] = (CellRunner(runner, cell), hooks)
        self._call("before_run", runner, lambda cell: {})

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        details = {"batch_idx": batch_idx, "data_batch": data_batch}
        self._call("after_train_iter", runner, lambda cell: {**details, "outputs": cell.meters.last})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, dict[str, float]] | None = None) -> None:
        self._call("after_val_epoch", runner, lambda cell: {"metrics": cell.history[-1]})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, dict[str, Any]]) -> None:
        self._call("before_save_checkpoint", runner, lambda cell: {"checkpoint": checkpoint[cell.key]}, checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, dict[str, Any]]) -> None:
        self._call("after_load_checkpoint", runner, lambda cell: {"checkpoint": checkpoint[cell.key]}, checkpoint)

    def _call(
        self, point: str, runner: Runner, details: Callable[[CellTrainer], dict[str, Any]], only: Any = None
    ) -> None:
        cohort = runner.model
        for cell in cohort.alive:
            if only is not None and cell.key not in only:
                continue
            view, hooks = self._of[cell.key]
            for entry, hook in hooks:
                with (
                    cohort.failing(cell, "a hook"),
                    contextlib.nullcontext() if entry.observes else cell.stream.active(),
                ):
                    try:
                        getattr(hook, point)(view, **details(cell))
                    except Exception as error:
                        raise KdbenchError(
                            f"hook {entry.name} raised in {point}: {type(error).__name__}: {error}"
                        ) from error


def _point(name: str) -> Callable[..., None]:
    def call(self: CellHooks, runner: Runner, **details: Any) -> None:
        self._call(name, runner, lambda cell: details)

    return call


for _name in ("before_train", "before_train_epoch", "before_train_iter", "after_train_epoch", "before_val",
              "before_val_epoch", "after_val", "after_train", "after_run"):  # fmt: skip
    setattr(CellHooks, _name, _point(_name))
