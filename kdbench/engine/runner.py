"""mmengine's runner of a cohort, built in one place."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from kdbench.engine import parallel
from kdbench.engine.cohort import CohortLoop, CohortModel
from kdbench.engine.evaluation import Evaluated, EvaluationLoop
from kdbench.engine.hooks import CellHooks
from kdbench.engine.saver import Emit, Saver
from kdbench.engine.trackers import ScalarVisualizer, visualizer_of
from kdbench.plugins.hooks import HookEntry


class CohortRunner(Runner):
    """mmengine's runner of one cohort: its life cycle and hook points, with these exceptions.

    - The loops are ``CohortLoop`` and ``EvaluationLoop``, which may begin in the middle of an epoch and outlive a cell's failure.
    - No default hooks: those of the logger and the timer read losses in every step, which would wait for the device; learning
      rates are timm's schedules, and checkpoints those of each cell.
    - ``load_or_resume``: each cell goes on from a file of its own. mmengine's single file holds objects (``HistoryBuffer``)
      that torch refuses to load with ``weights_only``.
    - ``wrap_model``: the cells are on their device, and in their own DDP, already.
    - ``build_logger``: mmengine's opens a file for each runner that it never closes.
    - ``_log_env``, ``dump_config``: provenance and configuration are in every cell's folder; collecting mmengine's takes seconds.

    Args:
        model: the cohort.
        split: where it is evaluated.
        work_dir: an existing folder; nothing is written there.
        emit: receives events.
        states: checkpoints from which cells go on, by their keys.
        hooks: of the user.
        trackers: of ``--log``; one run per cell.
        root: the run directory.
    """

    def __init__(
        self,
        model: CohortModel,
        split: Evaluated,
        work_dir: Path,
        emit: Emit,
        states: Mapping[str, dict[str, Any]] | None = None,
        hooks: Sequence[HookEntry] = (),
        trackers: Sequence[str] = (),
        root: Path = Path(),
    ) -> None:
        self.emit = emit
        self.states = dict(states or {})
        self.saver = Saver(emit, model.cells[0].spec.recipe.epochs)
        tracked = bool(trackers) and parallel.is_first()
        self.visualizers = {
            cell.key: visualizer_of(trackers, cell.spec.folder, root) if tracked else ScalarVisualizer(cell.key)
            for cell in model.cells
        }
        recipe = model.cells[0].spec.recipe
        super().__init__(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=model.pipeline,
            train_cfg={
                "type": CohortLoop,
                "max_epochs": recipe.epochs,
                "val_interval": recipe.evaluate_every,
            },
            val_dataloader=split,
            val_cfg={"type": EvaluationLoop},
            val_evaluator=[],
            optim_wrapper=OptimWrapperDict(**{cell.key: cell.optim_wrapper for cell in model.cells}),
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            custom_hooks=[CellHooks(hooks)] if hooks else [],
            visualizer=ScalarVisualizer("cohort"),
            randomness={"seed": 0},
            log_level="ERROR",
            experiment_name=f"kdbench-{uuid.uuid4().hex}",
        )

    def train(self) -> CohortModel:
        try:
            return super().train()
        finally:
            for visualizer in self.visualizers.values():
                visualizer.close()

    def load_or_resume(self) -> None:
        cohort: CohortModel = self.model
        for cell in cohort.alive:
            state = self.states.pop(cell.key, None)
            if state is None:
                continue
            with cohort.failing(cell, "the resumption"):
                cell.restore(state)
                if parallel.is_first():
                    epoch, step = cohort.position
                    cell.spec.folder.say(f"resumed after epoch {epoch}" + (f", step {step}" if step else ""))
                self.emit({"event": "resumed", "cell": cell.key, **cohort.position._asdict()})
                self.call_hook("after_load_checkpoint", checkpoint={cell.key: state})

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        logger: MMLogger = MMLogger.get_instance(self._experiment_name, logger_name="kdbench", log_level=log_level)
        logger.setLevel(logging.ERROR)
        return logger

    def wrap_model(self, model_wrapper_cfg: Any, model: Any) -> Any:
        return model

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        return

    def dump_config(self) -> None:
        return
