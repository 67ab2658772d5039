"""mmengine's runner with what a cohort needs: evaluation of every cell, exact resume, no file or log of mmengine's own."""

from __future__ import annotations

import logging
import time
import types
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor

from kdbench.data.images import Images
from kdbench.data.transforms import EvaluationView
from kdbench.data.views import evaluation_batches
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.engine.checkpoint import Position, checkpoint_path
from kdbench.engine.cohort import CohortModel
from kdbench.errors import StopRequested
from kdbench.plugins.metrics import measure
from kdbench.store.claims import ClaimLostError

#: Seconds between checkpoints within an epoch, where epochs are longer.
LONG_EPOCH_SECONDS = 300.0

#: How often processes that train together ask each other whether to save or to stop: it makes them wait for each other.
STEPS_BETWEEN_AGREEMENTS = 20

#: Receives events; True as its answer asks that work be saved and ended.
Emit = Callable[[dict[str, Any]], bool | None]


@torch.no_grad()
def predict_all(
    predict: Callable[[Tensor], Tensor], data: Images, view: EvaluationView, device: torch.device
) -> Tensor:
    """Logits (N, C) of a whole split, in batches of raw images in [0, 1]; several processes share the work."""
    batches = evaluation_batches(data, view, device, parallel.share_of(len(data)))
    return parallel.join_shares(torch.cat([predict(images) for images in batches]), len(data))


class EvaluationLoop(BaseLoop):
    """After every epoch: each living cell is measured on the split, and the row of its history is written.

    Args:
        runner: the runner.
        dataloader: the split (mmengine's name for it).
        evaluator: the teacher's logits (N, C) on that split, or None.
    """

    def __init__(self, runner: Runner, dataloader: Evaluated, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)
        self.split = dataloader

    def run(self) -> dict[str, Any]:
        model: CohortModel = self.runner.model
        model.eval()
        means: dict[str, dict[str, float]] = {}
        for cell in model.alive:
            with model.failing(cell):
                seconds, steps = model.watches[cell.trainee.key].read()
                cell.step_seconds += seconds
                cell.steps_timed += steps
                means[cell.trainee.key] = cell.end_epoch()
        views = dict.fromkeys(cell.trainee.view for cell in model.alive)
        for view in views:  # whose images are made once for all cells that see the same
            self._predict(model, [cell for cell in model.alive if cell.trainee.view == view], view)
        rows: dict[str, dict[str, float]] = {}
        for cell in model.alive:
            with model.failing(cell):
                rows[cell.trainee.key] = self._row(cell, means[cell.trainee.key])
        self.runner.call_hook("after_val_epoch", metrics=rows)
        return rows

    @torch.no_grad()
    def _predict(self, model: CohortModel, cells: Sequence[CellTrainer], view: EvaluationView) -> None:
        """Logits of cells, and without averaged weights of those that average them, on the whole split."""
        count = len(self.split.data)
        found: dict[tuple[str, bool], list[Tensor]] = {}
        for images in evaluation_batches(self.split.data, view, model.device, parallel.share_of(count)):
            for cell in cells:
                if cell.trainee.key in model.failed:
                    continue
                with model.failing(cell):
                    for raw in (False, True) if cell.average is not None else (False,):
                        found.setdefault((cell.trainee.key, raw), []).append(cell.predict(images, raw))
        for cell in cells:
            if cell.trainee.key in model.failed:
                continue
            with model.failing(cell):
                cell.last_logits = parallel.join_shares(torch.cat(found[cell.trainee.key, False]), count)
                if cell.average is not None:
                    cell.last_raw_logits = parallel.join_shares(torch.cat(found[cell.trainee.key, True]), count)

    def _row(self, cell: CellTrainer, means: dict[str, float]) -> dict[str, float]:
        assert cell.last_logits is not None
        row = {
            "epoch": cell.epoch,
            "lr": cell.optim_wrapper.optimizer.param_groups[0]["lr"],
            "loss": sum(means.values()),
            **{f"loss_{name}": value for name, value in means.items()},
            **measure(cell.last_logits, self.split.labels, self.split.teacher_logits),
        }
        if cell.last_raw_logits is not None:
            row["raw_top1"] = measure(cell.last_raw_logits, self.split.labels)["top1"]
        cell.history.append(row)
        return row


class Evaluated:
    """A split to evaluate on, with the teacher's logits on it."""

    def __init__(self, data: Images, teacher_logits: Tensor | None, device: torch.device) -> None:
        self.data = data
        self.labels = data.labels.to(device)
        self.teacher_logits = teacher_logits
        self.dataset = data


class TrainLoop(EpochBasedTrainLoop):
    """mmengine's loop, which can begin in the middle of an epoch."""

    first_step = 0

    def run_epoch(self) -> None:
        first, self.first_step = self.first_step, 0
        self.dataloader.first_step = first
        self.runner.call_hook("before_train_epoch")
        self.runner.model.start_epoch(first)
        self.runner.model.train()
        for step, batch in enumerate(self.dataloader, first):
            self.run_iter(step, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class ScheduleHook(Hook):
    """Sets the learning rates before every step."""

    def before_train_epoch(self, runner: Runner) -> None:
        runner.train_dataloader.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for cell in runner.model.alive:
            cell.schedule.set(runner.epoch, batch_idx)


class ProgressHook(Hook):
    """Reports every epoch, and stops the run when no cell is left."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        for cell in runner.model.alive:
            row = cell.history[-1]
            if not parallel.is_first():
                continue
            cell.trainee.folder.say(
                f"epoch {row['epoch']}/{runner.max_epochs}  loss {row['loss']:.4f}  top-1 {row['top1']:.2f}  lr {row['lr']:.3g}"
            )
            self.emit(
                {
                    "event": "epoch",
                    "cell": cell.trainee.key,
                    "epoch": row["epoch"],
                    "epochs": runner.max_epochs,
                    "top1": row["top1"],
                }
            )
        if not runner.model.alive:
            runner.train_loop.stop_training = True


class CheckpointHook(Hook):
    """Saves all cells after the first epoch and then every few seconds, within long epochs too, and when asked to stop.

    Resume is exact from any checkpoint, so how often one is written changes no result; writing takes at most a twentieth
    of the time. The last good checkpoint of a cell is kept until the next one is whole, and where none can be written
    (a full disk) training goes on with it.
    """

    priority = "LOWEST"

    def __init__(self, emit: Emit, seconds: float, long_seconds: float = LONG_EPOCH_SECONDS) -> None:
        self.emit = emit
        self.seconds = seconds
        self.long_seconds = long_seconds
        self._saved_at = float("-inf")
        self._cost = 0.0
        self._counted = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self._counted = time.perf_counter()
        if self._saved_at == float("-inf"):
            self._within = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        step, steps = batch_idx + 1, len(runner.train_dataloader)
        stop = self._tell(runner, step, steps)
        due = time.monotonic() - self._within >= max(self.long_seconds, 20 * self._cost)
        # The epoch's last step is followed by its evaluation first. Processes that train together ask each other now and then.
        if step == steps or (parallel.world_size() > 1 and step % STEPS_BETWEEN_AGREEMENTS):
            return
        stop, due = parallel.agree(stop), parallel.agree(due)
        if stop or due:
            self._count_time(runner)
            self._save(runner, step)
        if stop:
            raise StopRequested

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self._count_time(runner)
        stop = self._tell(runner, 0, len(runner.train_dataloader))
        if runner.epoch >= runner.max_epochs:
            return
        due = time.monotonic() - self._saved_at >= max(self.seconds, 20 * self._cost)
        stop, due = parallel.agree(stop), parallel.agree(due)
        if stop or due:
            self._save(runner, 0)
        if stop:
            raise StopRequested

    def _tell(self, runner: Runner, step: int, steps: int) -> bool:
        done = {"epoch": runner.epoch, "epochs": runner.max_epochs, "step": step, "steps": steps}
        return bool(self.emit({"event": "step", **done}))

    def _count_time(self, runner: Runner) -> None:
        """Share the time since the last count among the cells."""
        now = time.perf_counter()
        for cell in runner.model.alive:
            cell.train_seconds += (now - self._counted) / len(runner.model.alive)
            seconds, steps = runner.model.watches[cell.trainee.key].read()
            cell.step_seconds += seconds
            cell.steps_timed += steps
        self._counted = now

    def _save(self, runner: Runner, step: int) -> None:
        begun = time.monotonic()
        written: list[CellTrainer] = []
        try:
            for cell in runner.model.alive:
                try:
                    cell.save(step)
                    written.append(cell)
                except ClaimLostError as error:
                    if parallel.world_size() > 1:  # the others cannot be told; all of them end
                        raise RuntimeError(str(error)) from error
                    runner.model.drop(cell)
                    self.emit({"event": "lost", "cell": cell.trainee.key, "reason": str(error)})
            parallel.barrier()
            for cell in written:
                cell.drop_old_checkpoints(step)
        except OSError as error:
            for cell in written:
                checkpoint_path(cell.trainee.folder, (cell.epoch, step)).unlink(missing_ok=True)
            self.emit(
                {"event": "warning", "reason": f"no checkpoint can be written ({error.strerror}); the last one is kept"}
            )
        if not runner.model.alive:
            runner.train_loop.stop_training = True
        self._saved_at = self._within = time.monotonic()
        self._cost = self._saved_at - begun


class CohortRunner(Runner):
    """mmengine's runner of one cohort.

    mmengine's own checkpoints hold objects that torch refuses to load with ``weights_only`` (``HistoryBuffer``), and one
    file for all cells. Here each cell has a file of tensors and plain values (``CellTrainer.save``), and ``resume_at``
    sets the loop's counters; what mmengine's message hub holds is not needed to go on.

    Args:
        model: the cohort.
        split: where it is evaluated after every epoch.
        epochs: number of epochs in all.
        work_dir: an existing folder; nothing is written there.
        emit: receives events.
        checkpoint_seconds: least time between checkpoints.
    """

    def __init__(
        self,
        model: CohortModel,
        split: Evaluated,
        epochs: int,
        work_dir: Path,
        emit: Emit,
        checkpoint_seconds: float = 5.0,
    ) -> None:
        super().__init__(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=model.pipeline,
            train_cfg={"type": TrainLoop, "max_epochs": epochs},
            val_dataloader=split,
            val_cfg={"type": EvaluationLoop},
            val_evaluator=types.SimpleNamespace(),
            optim_wrapper=OptimWrapperDict(**{cell.trainee.key: cell.optim_wrapper for cell in model.alive}),
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            custom_hooks=[ScheduleHook(), ProgressHook(emit), CheckpointHook(emit, checkpoint_seconds)],
            randomness={"seed": 0},
            log_level="ERROR",
            experiment_name=f"kdbench-{uuid.uuid4().hex}",
        )

    def resume_at(self, position: Position) -> None:
        """Go on after so many epochs and steps; the cells have been restored before."""
        epoch, step = position
        loop: Any = self.build_train_loop(self.__dict__["_train_loop"])
        loop._epoch = epoch
        loop._iter = epoch * len(self.train_dataloader) + step
        loop.first_step = step
        self._train_loop = loop

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        logger: MMLogger = MMLogger.get_instance(self._experiment_name, logger_name="kdbench", log_level=log_level)
        logger.setLevel(logging.ERROR)
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Any:
        return types.SimpleNamespace(dataset_meta=None)

    def wrap_model(self, model_wrapper_cfg: Any, model: Any) -> Any:
        return model  # the cells are on their device already, and the teacher is no submodule

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        return  # provenance is in every result; collecting mmengine's takes seconds

    def dump_config(self) -> None:
        return
