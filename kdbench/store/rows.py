"""A run directory, or a file that holds its cells, as one tidy table. Works without torch.

``load_results(out).to_csv("cells.csv", index=False)`` makes such a file; ``load_results("cells.csv")`` gives the same table again,
and ``--out cells.csv`` lets the reading verbs read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.plugins.metrics import BUILT_IN
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import cell_name, cell_paths
from kdbench.store.result import CellResult

if TYPE_CHECKING:
    import pandas as pd

_COST = (
    *("student_parameters", "extra_parameters", "step_seconds", "train_seconds", "peak_memory_bytes"),
    *("student_gmacs", "inference_images_per_second", "inference_extra_parameters"),
)
_PROVENANCE = ("device", "commit", "dirty", "finished")
#: Columns of numbers that not every cell has: NaN where they are not known.
NUMBERS = [
    "epochs",
    *BUILT_IN,
    *(f"best_{name}" for name in BUILT_IN),
    "best_epoch",
    "teacher_top1",
    "teacher_top5",
    *_COST,
]
#: Columns of every frame; metrics of plugins follow them. ``plugin_metrics``: definitions of a cell's, as JSON.
COLUMNS = [
    *("suite", "protocol", "split", "dataset", "dataset_title", "pair", "teacher", "student"),
    *("teacher_display", "student_display", "teacher_family", "student_family"),
    *("method", "method_display", "method_family", "fidelity", "carries_kd"),
    *("variant_of", "settings", "seed", "state", "reason"),
    *(*NUMBERS, *_PROVENANCE, "hyperparameters", "config_hash", "path", "plugin_metrics"),
]


def load_results(out: Path | str = "runs", suite: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Read a run directory, or its cells in a CSV file, as a tidy table: one row per cell, plain numbers, cells that are not done
    included.

    Columns: what the cell is (suite, protocol, split, pair, teacher, student, method, seed and their display names and
    families), ``state`` (done, failed, skipped, running: a process has it, planned) and ``reason`` (why it failed or was
    skipped, or which of its files is damaged), for each metric M of the last epoch ``M`` and of the best epoch on the
    evaluated split ``best_M`` (accuracies, agreement and calibration error in percent; nll and teacher_kl in nats), the
    teacher's re-measured accuracy, cost and provenance.

    Args:
        out: the run directory, or a CSV file of such a table.
        suite, protocol: read only these.

    Raises:
        KdbenchError: if the directory does not exist or has a newer format, or the file holds something else.
    """
    if Path(out).is_file():
        return _read_csv(Path(out), suite, protocol)
    store = Store(out)
    if not store.root.exists():
        raise KdbenchError(f"run directory {store.root} does not exist; kdbench run makes it")
    store.check()
    import pandas as pd

    rows = [_row(store.root, path) for path in cell_paths(store.root, suite, protocol)]
    plugin = _plugin_columns(row["plugin_metrics"] for row in rows)
    columns = [*COLUMNS, *plugin]
    frame = pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=columns, dtype=object)
    return frame.astype(dict.fromkeys([*NUMBERS, *plugin], "float64") | {"seed": "int64"})


def _plugin_columns(definitions: Iterable[str]) -> list[str]:
    """Of the metrics of plugins, from the texts that define them."""
    names = sorted({name for text in {*definitions} if text for name in json.loads(text)})
    return [column for name in names for column in (name, f"best_{name}")]


def _read_csv(path: Path, suite: str | None, protocol: str | None) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=object, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors and undecodable bytes are ValueErrors
        raise KdbenchError(f"{path} cannot be read as CSV ({error})") from None
    lacking = [name for name in ("suite", "protocol", "pair", "method", "seed", "state") if name not in frame]
    if lacking:
        raise KdbenchError(
            f"{path} has no column {lacking[0]!r}; kdbench.load_results(DIR).to_csv(FILE, index=False) writes what can be read"
        )
    try:
        plugin = _plugin_columns(frame.get("plugin_metrics", ()))
        frame = frame.reindex(columns=[*COLUMNS, *plugin])  # a table of an older kdbench lacks some
        numbers = frame[[*NUMBERS, *plugin]].replace("", "nan").astype("float64")
        flags = frame[["dirty", "carries_kd"]].replace({"True": True, "False": False})
        frame = frame.where(frame != "", None).assign(**numbers, **flags, seed=frame["seed"].astype("int64"))
    except (ValueError, TypeError, AttributeError) as error:
        raise KdbenchError(f"{path} is damaged ({error})") from None
    for column, name in (("suite", suite), ("protocol", protocol)):
        if name is not None:
            frame = frame[frame[column] == name]
    return frame.reset_index(drop=True)


def _row(root: Path, path: str) -> dict[str, Any]:
    """The row of a cell; a damaged file is its ``reason``."""
    name = cell_name(path)
    teacher, _, student = name["pair"].partition("--")
    row: dict[str, Any] = {
        **{**name, "teacher": teacher, "student": student, "teacher_display": teacher, "student_display": student},
        **{"method_display": name["method"], "reason": "", "plugin_metrics": ""},
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
    return {**row, "path": path}


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
    names = [*BUILT_IN, *result.plugin_metrics]
    plugin = {name: definition.model_dump() for name, definition in result.plugin_metrics.items()}
    return {
        **{name: last.get(name) for name in names},
        **{f"best_{name}": best.get(name) for name in names},
        "best_epoch": result.metrics.best_epoch,
        "teacher_top1": result.teacher.metrics.get("top1"),
        "teacher_top5": result.teacher.metrics.get("top5"),
        **{name: getattr(result.cost, name) for name in _COST},
        **{name: getattr(result.provenance, name) for name in _PROVENANCE},
        "plugin_metrics": json.dumps(plugin) if plugin else "",
    }
