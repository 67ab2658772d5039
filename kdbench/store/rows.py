"""A run directory as one tidy table. Works without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.plugins.metrics import BUILT_IN
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import cell_name
from kdbench.store.result import CellResult
from kdbench.store.rowcache import LEAST, SETTLED, read_rows

if TYPE_CHECKING:
    import pandas as pd

_COST = (
    *("student_parameters", "extra_parameters", "step_seconds", "train_seconds", "peak_memory_bytes"),
    *("student_gmacs", "inference_images_per_second", "inference_extra_parameters"),
)
_PROVENANCE = ("device", "commit", "dirty", "finished")
#: Columns of numbers that not every cell has: NaN where they are not known.
_NUMBERS = (
    *(
        "epochs",
        *BUILT_IN,
        *(f"best_{name}" for name in BUILT_IN),
        "best_epoch",
        "teacher_top1",
        "teacher_top5",
        *_COST,
    ),
)
#: Columns of every frame; metrics of plugins follow them. ``plugin_metrics``: definitions of a cell's, as JSON.
COLUMNS = [
    *(
        "suite",
        "protocol",
        "split",
        "dataset",
        "dataset_title",
        "image_size",
        "pair",
        "teacher",
        "student",
        "teacher_display",
    ),
    *(
        "student_display",
        "teacher_family",
        "student_family",
        "method",
        "method_display",
        "method_family",
        "fidelity",
        "carries_kd",
    ),
    *("seed", "state", "reason", *_NUMBERS, *_PROVENANCE, "hyperparameters", "config_hash", "path", "plugin_metrics"),
]
#: A cell's values of metrics from plugins, as JSON: name -> (last, best). Becomes columns of their own.
_VALUES = "plugin_values"


def load_results(out: Path | str = "runs", suite: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Read a run directory as a tidy table: one row per cell, plain numbers, cells that are not done included.

    Columns: what the cell is (suite, protocol, split, pair, teacher, student, method, seed and their display names and
    families), ``state`` (done, failed, skipped, running: a process has it, planned) and ``reason`` (why it failed or was
    skipped, or which of its files is damaged), for each metric M of the last epoch ``M`` and of the best epoch on the
    evaluated split ``best_M`` (accuracies, agreement and calibration error in percent; nll and teacher_kl in nats), the
    teacher's re-measured accuracy, cost and provenance.

    Args:
        out: the run directory.
        suite, protocol: read only these.

    Raises:
        KdbenchError: if the directory does not exist or has a newer format.
    """
    store = Store(out)
    if not store.root.exists():
        raise KdbenchError(f"run directory {store.root} does not exist; kdbench run makes it")
    store.check()
    return read_frame(store.root, suite, protocol)


def read_frame(
    root: Path, suite: str | None = None, protocol: str | None = None, least: int = LEAST, settled: float = SETTLED
) -> pd.DataFrame:
    """``load_results`` of a directory that was checked; ``least`` and ``settled`` as for ``read_rows``."""
    import pandas as pd

    columns = [*COLUMNS, _VALUES]
    rows = read_rows(root, suite, protocol, _row, columns, least, settled)
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    values = [json.loads(text) if text else {} for text in frame.pop(_VALUES)]
    frame = frame.astype(dict.fromkeys(_NUMBERS, "float64") | {"seed": "int64"})
    for name in sorted({name for own in values for name in own}):
        for column, place in ((name, 0), (f"best_{name}", 1)):
            frame[column] = pd.Series([own.get(name, (None, None))[place] for own in values], dtype="float64")
    return frame


def _row(root: Path, path: str) -> dict[str, Any]:
    """The row of a cell; a damaged file is its ``reason``."""
    name = cell_name(path)
    teacher, _, student = name.pair.partition("--")
    row: dict[str, Any] = {
        **{"suite": name.suite, "protocol": name.protocol, "pair": name.pair, "method": name.method, "seed": name.seed},
        **{"teacher": teacher, "student": student, "teacher_display": teacher, "student_display": student},
        **{"method_display": name.method, "config_hash": name.hash, "path": path, "reason": "", "plugin_metrics": ""},
    }
    folder = CellFolder(root / path)
    try:
        row.update(_configured(read_json(folder.config)))
        found = folder.look()
        row["state"] = "planned" if found.state == "interrupted" else found.state
        if found.result is not None:
            row.update(_measured(found.result))
        elif found.state == "failed":
            row["reason"] = folder.failure().reason
        elif found.state == "skipped":
            row["reason"] = read_json(folder.skipped)["reason"]
        elif found.problem:
            row["reason"] = f"{found.problem}; kdbench run trains the cell again"
        elif found.state == "interrupted":
            row["reason"] = "interrupted; kdbench run continues from its last checkpoint"
    except (DamagedFileError, FileNotFoundError) as error:
        row.update(state="planned", reason=f"{error}; kdbench run writes it again")
    except (KeyError, TypeError) as error:
        row.update(state="planned", reason=f"written by another version of kdbench ({type(error).__name__}: {error})")
    return row


def _configured(stored: Mapping[str, Any]) -> dict[str, Any]:
    config = stored["config"]
    return {
        "suite": config["suite"],
        "protocol": config["protocol"]["name"],
        "split": config["split"],
        "dataset": config["dataset"]["name"],
        "epochs": config["recipe"]["epochs"],
        "hyperparameters": json.dumps(config["method"]["hyperparameters"]),
        "config_hash": stored["hash"],
        **{key: value for key, value in stored["facts"].items() if key in COLUMNS},
    }


def _measured(result: CellResult) -> dict[str, Any]:
    last, best = result.metrics.last, result.metrics.best
    plugin = {name: definition.model_dump() for name, definition in result.plugin_metrics.items()}
    return {
        **{name: last.get(name) for name in BUILT_IN},
        **{f"best_{name}": best.get(name) for name in BUILT_IN},
        "best_epoch": result.metrics.best_epoch,
        "teacher_top1": result.teacher.metrics.get("top1"),
        "teacher_top5": result.teacher.metrics.get("top5"),
        **{name: getattr(result.cost, name) for name in _COST},
        **{name: getattr(result.provenance, name) for name in _PROVENANCE},
        "plugin_metrics": json.dumps(plugin) if plugin else "",
        _VALUES: json.dumps({name: (last.get(name), best.get(name)) for name in plugin}) if plugin else "",
    }
