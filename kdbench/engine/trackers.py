"""Experiment trackers behind mmengine's visualizer: TensorBoard, Weights & Biases and MLflow, with one run for each cell."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend, TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import force_init_env

from kdbench.opening import inside, read_file
from kdbench.store.files import write_bytes
from kdbench.store.folders import CellFolder


class ScalarVisualizer(Visualizer):
    """mmengine's visualizer without its figure, for which it would import matplotlib. Without trackers it does nothing.

    Args:
        name: of the run.
        trackers: configurations of backends.
        record: file that holds the last epoch that was logged.
        say: receives why a tracker is not written any more; training goes on without it.
    """

    def __init__(
        self,
        name: str,
        trackers: Sequence[dict[str, Any]] = (),
        record: Path = Path(),
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(name, vis_backends=list(trackers))
        self._record, self._say = record, say
        self._logged = 0
        with contextlib.suppress(OSError, ValueError):
            self._logged = int(read_file(record)) if trackers else 0

    def _initialize_fig(self, fig_cfg: Any) -> tuple[Any, Any, Any]:
        return None, SimpleNamespace(get_dpi=lambda: 0), None

    def add_row(self, row: Mapping[str, float], config: Mapping[str, Any]) -> None:
        """A row of a history, under the tags ``train/...``, ``val/...`` and ``lr``; the step is the epoch.

        Rows that were logged before an interruption are left out: their numbers are the same. The configuration of the
        cell goes with the first one.
        """
        epoch = int(row["epoch"])
        if not self._vis_backends or epoch <= self._logged:
            return
        if not self._logged:
            self._each(lambda backend: backend.add_config(Config(dict(config))))
        scalars = {tag_of(name): row[name] for name in row if name != "epoch" and math.isfinite(row[name])}
        self._each(lambda backend: backend.add_scalars(scalars, epoch))
        self._logged = epoch
        with contextlib.suppress(OSError):  # a full disk
            write_bytes(self._record, f"{epoch}\n".encode())

    def close(self) -> None:
        self._each(lambda backend: backend.close())

    def _each(self, act: Callable[[BaseVisBackend], None]) -> None:
        for name, backend in list(self._vis_backends.items()):
            try:
                act(backend)
            except Exception as error:
                del self._vis_backends[name]
                self._say(f"{name} is not written any more: {type(error).__name__}: {error}")


def visualizer_of(trackers: Sequence[str], folder: CellFolder, root: Path) -> ScalarVisualizer:
    """The visualizer of a cell with the trackers of ``--log``, below the run directory ``root``."""
    name = folder.path.relative_to(root).as_posix()
    run_id = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    kinds: dict[str, dict[str, Any]] = {
        "tensorboard": {"type": "TensorBoardRun", "save_dir": str(folder.tensorboard)},
        "wandb": {"type": "WandbRun", "save_dir": str(folder.path), "run_name": name, "run_id": run_id},
        "mlflow": {"type": "MlflowRun", "save_dir": str(root / "mlruns"), "run_name": name, "run_id": run_id},
    }
    backends = [kinds[tracker] for tracker in trackers]
    for place in ("mlruns", f"{name}/tensorboard", f"{name}/wandb"):
        inside(root, place)  # the trackers would write through a link
    return ScalarVisualizer(name, backends, folder.logged, folder.say)


def tag_of(column: str) -> str:
    """The tag of a column of a history."""
    if column == "lr":
        return column
    return f"train/{column}" if column.startswith("loss") else f"val/{column}"


@VISBACKENDS.register_module()
class TensorBoardRun(TensorboardVisBackend):
    """mmengine's, which puts every row on disk at once."""

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, *args: Any, **kwargs: Any) -> None:
        super().add_scalars(scalar_dict, step)
        self.experiment.flush()


class _Run(BaseVisBackend):
    """A run of a cell, which goes on with its id; mmengine's own backends of these trackers know one run per process."""

    def __init__(self, save_dir: str, run_name: str, run_id: str) -> None:
        super().__init__(save_dir)
        self._name, self._id = run_name, run_id
        self._tracker: Any = None

    @property
    @force_init_env
    def experiment(self) -> Any:
        return self._tracker

    def add_scalar(self, name: str, value: float, step: int = 0, **kwargs: Any) -> None:
        self.add_scalars({name: value}, step)


@VISBACKENDS.register_module()
class WandbRun(_Run):
    """A run of Weights & Biases, which makes a folder ``wandb`` in ``save_dir``."""

    def _init_env(self) -> None:
        import wandb

        self._tracker = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdbench"), name=self._name, id=self._id, dir=self._save_dir,
            resume="allow", reinit="create_new", settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def add_config(self, config: Config, **kwargs: Any) -> None:
        self.experiment.config.update(config.to_dict(), allow_val_change=True)

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, *args: Any, **kwargs: Any) -> None:
        self.experiment.log(scalar_dict, step=step)

    def close(self) -> None:
        if self._env_initialized:
            self._tracker.finish()


@VISBACKENDS.register_module()
class MlflowRun(_Run):
    """A run of MLflow, kept in ``save_dir`` unless ``$MLFLOW_TRACKING_URI`` names a server."""

    def _init_env(self) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need no lock between workers, a database does
        from mlflow import MlflowClient

        client = self._tracker = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or Path(self._save_dir).resolve().as_uri()
        )
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        found = client.search_runs([experiment], f"tags.kdbench_id = '{self._id}'")
        tags = {"kdbench_id": self._id}
        run = found[0] if found else client.create_run(experiment, run_name=self._name, tags=tags)
        self._run_id = run.info.run_id
        client.update_run(self._run_id, status="RUNNING")

    def add_config(self, config: Config, **kwargs: Any) -> None:
        self.experiment.log_dict(self._run_id, config.to_dict(), "config.yaml")

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, *args: Any, **kwargs: Any) -> None:
        for name, value in scalar_dict.items():
            self.experiment.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        if self._env_initialized:
            self._tracker.set_terminated(self._run_id)
