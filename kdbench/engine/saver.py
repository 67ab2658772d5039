"""When checkpoints are written, and how the time of a cohort is shared among its cells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mmengine.runner import Runner

from kdbench.engine import fate, parallel
from kdbench.engine.cell import CellTrainer
from kdbench.errors import StopRequested
from kdbench.store.claims import ClaimLostError

#: Seconds between checkpoints, and within an epoch, where epochs are longer.
CHECKPOINT_SECONDS, LONG_EPOCH_SECONDS = 5.0, 300.0

#: How often processes that train together ask each other whether to save or to stop: it makes them wait for each other.
STEPS_BETWEEN_AGREEMENTS = 20

#: Receives events; True as its answer asks that work be saved and ended.
Emit = Callable[[dict[str, Any]], bool | None]


class Saver:
    """Saves all cells after the first epoch and then every few seconds, within long epochs too, and when asked to stop.

    Resume is exact from any checkpoint, so how often one is written changes no result; writing takes at most a twentieth
    of the time. The last good checkpoint of a cell is kept until the next one is whole, and where none can be written
    (a full disk) training goes on with it.

    Args:
        emit: receives events.
        epochs: number of epochs in all.
    """

    def __init__(self, emit: Emit, epochs: int) -> None:
        self.emit = emit
        self.epochs = epochs
        self._saved_at: float | None = None
        self._cost = 0.0

    def start_epoch(self) -> None:
        """Start the clock."""
        self._counted = time.perf_counter()
        if self._saved_at is None:
            self._within = time.monotonic()

    def after_step(self, runner: Runner) -> None:
        """Save if it is time to, or if that was asked for.

        Raises:
            StopRequested: if it was asked for.
        """
        cohort = runner.model
        step = cohort.position.step
        stop = self._report(cohort)
        # The epoch's last step is followed by its evaluation first.
        if step == len(cohort.pipeline) or (parallel.world_size() > 1 and step % STEPS_BETWEEN_AGREEMENTS):
            return
        self._save_if(runner, stop, time.monotonic() - self._within >= max(LONG_EPOCH_SECONDS, 20 * self._cost))

    def after_epoch(self, runner: Runner) -> None:
        """The same after an epoch and its evaluation."""
        cohort = runner.model
        self._count_time(cohort)
        stop = self._report(cohort)
        if cohort.position.epoch < self.epochs:
            long_ago = self._saved_at is None or time.monotonic() - self._saved_at >= max(
                CHECKPOINT_SECONDS, 20 * self._cost
            )
            self._save_if(runner, stop, long_ago)

    def _report(self, cohort: Any) -> bool:
        epoch, step = cohort.position
        steps = len(cohort.pipeline)
        return bool(self.emit({"event": "step", "epoch": epoch, "epochs": self.epochs, "step": step, "steps": steps}))

    def _save_if(self, runner: Runner, stop: bool, due: bool) -> None:
        stop, due = parallel.agree(stop), parallel.agree(due)
        if stop or due:
            self._count_time(runner.model)
            self._save(runner)
        if stop:
            raise StopRequested

    def _count_time(self, cohort: Any) -> None:
        """Share the time since the last count among the cells."""
        now = time.perf_counter()
        for cell in cohort.alive:
            cell.train_seconds += (now - self._counted) / len(cohort.alive)
            cell.read_watch()
        self._counted = now

    def _save(self, runner: Runner) -> None:
        started = time.monotonic()
        cohort = runner.model
        position = cohort.position
        written: list[CellTrainer] = []
        try:
            for cell in cohort.alive:
                state = cell.state(position)
                runner.call_hook("before_save_checkpoint", checkpoint={cell.key: state})
                if cell.key in cohort.failed:
                    continue
                try:
                    cell.save(position, state)
                    written.append(cell)
                except ClaimLostError as error:
                    self.emit({"event": "lost", "cell": cell.key, "reason": str(error)})
                    fate.tell_others(cell.key, None)
                    cohort.drop(cell)
            for cell in written:
                cell.drop_old_checkpoints(position)
        except OSError as error:
            for cell in written:
                cell.spec.folder.checkpoint(*position).unlink(missing_ok=True)
            self.emit(
                {"event": "warning", "reason": f"no checkpoint can be written ({error.strerror}); the last one is kept"}
            )
        self._saved_at = self._within = time.monotonic()
        self._cost = self._saved_at - started
