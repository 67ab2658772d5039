"""mmengine's runner of a cohort, built in one place."""

from __future__ import annotations

import logging
import types
import uuid
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from kdbench.engine.cohort import CohortLoop, CohortModel
from kdbench.engine.evaluation import Evaluated, EvaluationLoop
from kdbench.engine.saver import Emit, Saver


class CohortRunner(Runner):
    """mmengine's runner of one cohort.

    mmengine's own checkpoints hold objects that torch refuses to load with ``weights_only`` (``HistoryBuffer``), and one
    file for all cells. Here each cell has a file of tensors and plain values (``CellTrainer.save``), and the cohort has
    a position from which its loop goes on; what mmengine's message hub holds is not needed to go on.

    Args:
        model: the cohort.
        split: where it is evaluated.
        work_dir: an existing folder; nothing is written there.
        emit: receives events.
    """

    def __init__(self, model: CohortModel, split: Evaluated, work_dir: Path, emit: Emit) -> None:
        recipe = model.cells[0].spec.recipe
        super().__init__(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=model.pipeline,
            train_cfg={
                "type": CohortLoop,
                "max_epochs": recipe.epochs,
                "val_interval": 1,
                "saver": Saver(emit, recipe.epochs),
            },
            val_dataloader=split,
            val_cfg={"type": EvaluationLoop},
            val_evaluator=emit,
            optim_wrapper=OptimWrapperDict(**{cell.key: cell.optim_wrapper for cell in model.cells}),
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            randomness={"seed": 0},
            log_level="ERROR",
            experiment_name=f"kdbench-{uuid.uuid4().hex}",
        )

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
