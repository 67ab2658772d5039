"""A run directory, or a file that holds its cells, as one tidy table. Works without torch.

``load_results(out).to_csv("cells.csv", index=False)`` makes such a file; ``load_results("cells.csv")`` gives the same table again,
and ``--out cells.csv`` lets the reading verbs read it. They read what ``kdbench submit`` wrote too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, TypeAdapter, ValidationError

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, open_file
from kdbench.plugins.metrics import BUILT_IN
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable
from kdbench.store.declared import Hypotheses, as_text, read_declared
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import PAIR, cell_name, cell_paths, folder_in, is_cell_path
from kdbench.store.reading import MAX_EPOCHS
from kdbench.store.result import CellResult, Definition, Measure, MetricName, Scores, Sentence, Text
from kdbench.store.submission import read_submission
from kdbench.suite.datasets import DATASETS
from kdbench.suite.types import Name, Seed

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.matrix.cells import Cell

#: State of a planned cell of which the store has nothing, and whose method or pair no table shows.
ABSENT = "absent"
#: How the reason begins of a planned cell of which the store has only results of another configuration.
STALE = "stale"

_COST = (
    *("student_parameters", "extra_parameters", "step_seconds", "train_seconds", "peak_memory_bytes"),
    *("student_gmacs", "inference_images_per_second", "inference_extra_parameters"),
)
_PROVENANCE = ("device", "commit", "dirty", "finished")
#: Columns of numbers that not every cell has: NaN where they are not known.
NUMBERS = [
    "image_size",
    "epochs",
    *BUILT_IN,
    *(f"best_{name}" for name in BUILT_IN),
    "best_epoch",
    "teacher_top1",
    "teacher_top5",
    *_COST,
]
#: Columns of every frame; metrics of plugins follow them. ``plugin_metrics``: definitions of a cell's, as JSON; ``declared``: the
#: hypotheses of its suite and protocol, as JSON.
COLUMNS = [
    *("suite", "protocol", "split", "dataset", "dataset_title", "pair", "teacher", "student"),
    *("teacher_display", "student_display", "teacher_family", "student_family"),
    *("method", "method_display", "method_family", "fidelity", "carries_kd"),
    *("variant_of", "settings", "seed", "state", "reason"),
    *(*NUMBERS, *_PROVENANCE, "teacher_checksum", "hyperparameters"),
    *("config_hash", "path", "plugin_metrics", "declared"),
]


def load_results(out: Path | str = "runs", suite: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Read a run directory, or its cells in a CSV file, as a tidy table: one row per cell, plain numbers, cells that are not done
    included.

    Columns: what the cell is (suite, protocol, split, pair, teacher, student, method, seed and their display names and
    families), ``state`` (done, failed, skipped, running: a process has it, planned) and ``reason`` (why it failed or was
    skipped, or which of its files is damaged), for each metric M of the last epoch ``M`` and of the best epoch on the
    evaluated split ``best_M`` (accuracies, agreement and calibration error in percent; nll and teacher_kl in nats), the
    teacher's re-measured accuracy and the checksum of its weights, cost and provenance. ``attrs["damaged"]`` of the table lists
    ``FILE: reason`` of everything that could not be read; of a damaged file nothing is taken.

    Args:
        out: the run directory, a CSV file of such a table, or a submission (``.json``).
        suite, protocol: read only these.

    Raises:
        KdbenchError: if the directory does not exist or has a newer format, or the file holds something else.
    """
    if Path(out).is_file():
        frame = _of_submission(Path(out)) if Path(out).suffix.lower() == ".json" else _read_csv(Path(out))
        for column, name in (("suite", suite), ("protocol", protocol)):
            if name is not None:
                frame = frame[frame[column] == name]
        frame = frame.reset_index(drop=True)
        frame.attrs.setdefault("damaged", [])
        return frame
    store = Store(out)
    store.check_exists()
    damaged: list[str] = []
    frame = _frame(list(_rows(store.root, suite, protocol, damaged)))
    frame.attrs["damaged"] = damaged
    return frame


def planned_results(cells: Iterable[Cell]) -> pd.DataFrame:
    """Rows as of ``load_results`` for cells of a plan of which nothing is on disk."""
    return _frame(
        [
            {**cell_name(cell.folder), "teacher": cell.teacher.name, "student": cell.student, "state": "planned"}
            | _described(_Stored.model_validate({"config": cell.config, "hash": cell.hash, "facts": cell.facts}))
            | {"reason": "", "plugin_metrics": "", "declared": "", "path": cell.folder}
            for cell in cells
        ]
    )


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    plugin = _plugin_columns(row["plugin_metrics"] for row in rows)
    columns = [*COLUMNS, *plugin]
    frame = pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=columns, dtype=object)
    return frame.astype(dict.fromkeys([*NUMBERS, *plugin], "float64") | {"seed": "int64"})


def _plugin_columns(definitions: Iterable[str]) -> list[str]:
    """Of the metrics of plugins, from the texts that define them."""
    names = sorted({name for text in {*definitions} if text for name in json.loads(text)})
    return [column for name in names for column in (name, f"best_{name}")]


def _of_submission(path: Path) -> pd.DataFrame:
    submission, _ = read_submission(path)
    declared = as_text(submission.hypotheses)
    rows = []
    for cell in submission.cells:
        if not is_cell_path(cell.path):
            raise KdbenchError(
                f"{path} names a cell {printable(cell.path, NAME_LENGTH)!r}; kdbench check {path} tells more"
            )
        row = {**_named(cell.path), "path": cell.path}
        content = {"config": cell.config, "hash": row["config_hash"], "facts": cell.facts}
        row |= _configured(path, content, row)
        row |= {"state": "done", **_measured(cell.result)} if cell.result else {"state": "failed"}
        row |= {"reason": cell.failure.reason} if cell.failure else {}
        row["declared"] = declared
        rows.append(row)
    return _frame(rows)


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        with open_file(path.resolve()) as file:  # unpacked by nothing: a few bytes could hold all of the memory
            frame = pd.read_csv(file, dtype=object, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors and undecodable bytes are ValueErrors
        raise KdbenchError(f"{path} cannot be read as CSV ({error})") from None
    lacking = [name for name in ("suite", "protocol", "pair", "method", "seed", "state") if name not in frame]
    if lacking:
        raise KdbenchError(
            f"{path} has no column {lacking[0]!r}; kdbench.load_results(DIR).to_csv(FILE, index=False) writes what can be read"
        )
    problems = {line: problem for line, row in enumerate(frame.to_dict("records"), 2) if (problem := _problem(row))}
    frame = frame[[line not in problems for line in range(2, len(frame) + 2)]]
    try:
        plugin = _plugin_columns(frame.get("plugin_metrics", ()))
        # A table of an older kdbench lacks some: they are texts too, not numbers.
        frame = frame.reindex(columns=[*COLUMNS, *plugin]).astype(object)
        numbers = frame[[*NUMBERS, *plugin]].replace("", "nan").astype("float64")
        flags = frame[["dirty", "carries_kd"]].replace({"True": True, "False": False})
        frame = frame.where(frame != "", None).assign(**numbers, **flags, seed=frame["seed"].astype("int64"))
    except (ValueError, TypeError, AttributeError) as error:
        raise KdbenchError(f"{path} is damaged ({error})") from None
    frame.attrs["damaged"] = [printable(f"{path}, line {line}: {it}", TEXT_LENGTH) for line, it in problems.items()]
    return frame


class _Line(BaseModel):
    """What every row of a CSV file must hold so that tables can show it."""

    suite: Name
    protocol: Name
    split: Name | Literal[""] = ""  # empty where a cell is damaged
    pair: Annotated[str, Field(pattern=f"^{PAIR.pattern}$")]
    method: Name
    seed: Seed
    state: Literal["done", "failed", "skipped", "running", "planned", "absent"]
    epochs: Annotated[float, Field(ge=0, le=MAX_EPOCHS)] | Literal[""] = ""
    hyperparameters: Json[dict[str, Any]] | Literal[""] = ""
    plugin_metrics: Json[dict[MetricName, Definition]] | Literal[""] = ""
    declared: Json[Hypotheses] | Literal[""] = ""


_NUMBERS = TypeAdapter(dict[str, Measure])
_SCORES = TypeAdapter(Scores)


def _problem(row: Mapping[Any, Any]) -> str:
    """Why a row of a CSV file cannot be shown; empty if it can."""
    try:
        line = _Line.model_validate(row)
        _NUMBERS.validate_python({name: row[name] for name in NUMBERS if row.get(name)})
        for prefix in ("", "best_"):
            names = [name for name in (*BUILT_IN, *line.plugin_metrics) if row.get(prefix + name)]
            _SCORES.validate_python({name: row[prefix + name] for name in names})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['input']!s:.80}: {first['msg']}"
    return ""


def damaged_in(root: Path, suite: str | None = None, protocol: str | None = None) -> list[str]:
    """``FILE: reason`` of everything that ``load_results`` cannot read."""
    damaged: list[str] = []
    for _ in _rows(root, suite, protocol, damaged):
        pass
    return damaged


def _rows(root: Path, suite: str | None, protocol: str | None, damaged: list[str]) -> Iterator[dict[str, Any]]:
    """The row of every cell; ``damaged`` receives what cannot be read."""

    def odd(path: str, reason: str) -> None:
        damaged.append(printable(f"{path}: {reason}", TEXT_LENGTH))

    declared: dict[tuple[str, str], str] = {}
    for path in cell_paths(root, suite, protocol, odd):
        row = _row(root, path)
        damaged += [row["damaged"]] if row["damaged"] else []
        where = row["suite"], row["protocol"]
        if where not in declared:
            try:
                declared[where] = as_text(read_declared(root, *where))
            except DamagedFileError as error:
                declared[where] = ""
                odd(str(error.path).removeprefix(f"{root}/"), error.reason)
        yield {**row, "declared": declared[where]}


def _row(root: Path, path: str) -> dict[str, Any]:
    """The row of a cell. A damaged file is its ``damaged``, and nothing is taken from it."""
    row = _named(path)
    try:
        folder = CellFolder(folder_in(root, path).path)
        row.update(_configured(folder.config, read_json(folder.config), row))
        found = folder.look()
        row["state"] = "planned" if found.state == "interrupted" else found.state
        if found.result is not None:
            row.update(_measured(found.result))
        elif found.state == "failed":
            row["reason"] = folder.failure().reason
        elif found.state == "skipped":
            row["reason"] = printable(read_json(folder.skipped)["reason"], TEXT_LENGTH)
        elif found.state == "interrupted":
            row["reason"] = "interrupted; kdbench run continues from its last checkpoint"
        row["damaged"] = found.problem
    except (DamagedFileError, RefusedFileError) as error:
        row.update(state="planned", damaged=f"{error.path}: {error.reason}")
    except FileNotFoundError as error:
        row.update(state="planned", damaged=f"{error.filename}: it is missing")
    except (KeyError, TypeError):  # of a mapping with a checksum
        row.update(state="planned", damaged=f"{root / path}: written by another version of kdbench")
    if row["damaged"]:
        row["damaged"] = printable(row["damaged"].removeprefix(f"{root}/"), TEXT_LENGTH)
        row["reason"] = row["reason"] or f"damaged: {row['damaged']}; kdbench run trains the cell again"
    return {**row, "path": path}


def _named(path: str) -> dict[str, Any]:
    """What the row of a cell begins with."""
    name = cell_name(path)
    teacher, _, student = name["pair"].partition("--")
    nets = {"teacher": teacher, "student": student, "teacher_display": teacher, "student_display": student}
    blank = dict.fromkeys(("reason", "damaged", "plugin_metrics", "declared"), "")
    return {**name, **nets, **blank, "method_display": name["method"], "state": "planned"}


class _Part(BaseModel):
    """What tables take from ``config.json``: of these types, or the file is damaged."""

    model_config = ConfigDict(strict=True)


class _Named(_Part):
    name: Name


class _Dataset(_Named):
    image_size: int | None = None


class _Recipe(_Part):
    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)]


class _Method(_Part):
    hyperparameters: dict[str, Any]


class _Config(_Part):
    suite: str
    protocol: _Named
    split: Name
    dataset: _Dataset
    recipe: _Recipe
    method: _Method


class _Facts(_Part):
    """What ``facts`` may say: how things are called and grouped, nothing that is measured or that identifies."""

    dataset_title: Text = ""
    teacher_display: Text | None = None
    student_display: Text | None = None
    teacher_family: Text | None = None
    student_family: Text | None = None
    method_display: Text | None = None
    method_family: Text | None = None
    fidelity: Text | None = None
    carries_kd: bool = False
    variant_of: Text | None = None
    settings: Sentence | None = None


class _Stored(_Part):
    hash: str
    config: _Config
    facts: _Facts


def _configured(path: Path, content: Mapping[str, Any], name: dict[str, Any]) -> dict[str, Any]:
    """What tables take from the configuration of a cell, which a file holds."""
    try:
        stored = _Stored.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DamagedFileError(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    says = (stored.config.suite, stored.config.protocol.name, stored.hash)
    if says != (name["suite"], name["protocol"], name["config_hash"]):
        raise DamagedFileError(path, f"it is the configuration of {'/'.join(says)}")
    return _described(stored)


def _described(stored: _Stored) -> dict[str, Any]:
    config = stored.config
    dataset = DATASETS.get(config.dataset.name)
    return {
        "split": config.split,
        "dataset": config.dataset.name,
        "image_size": config.dataset.image_size or (dataset and dataset.image_size),
        "epochs": config.recipe.epochs,
        "hyperparameters": json.dumps(config.method.hyperparameters),
        **stored.facts.model_dump(exclude_none=True),
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
        "teacher_checksum": result.teacher.checksum,
        **{name: getattr(result.cost, name) for name in _COST},
        **{name: getattr(result.provenance, name) for name in _PROVENANCE},
        "plugin_metrics": json.dumps(plugin) if plugin else "",
    }
