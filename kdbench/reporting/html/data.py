"""What the report's page carries inside it: the list of cells by column, and each cell's files in compressed blocks.

Ten thousand cells must open at once: the list is small (texts are numbers of words), and files are unpacked by the browser
only when a cell is opened.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.plugins.metrics import Metric
from kdbench.reporting.html.classes import CellClasses
from kdbench.shown import printable, without_homes
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.reading import Outcomes, read_log_end
from kdbench.store.result import CellResult, Failure, read_record

#: Cells in one compressed block.
BLOCK = 100
#: Epochs kept of a history: more do not show in a curve.
MAX_EPOCHS = 200


@dataclass(frozen=True)
class Column:
    """A column of the list of cells.

    Attributes:
        source: column of the frame.
        decimals: None for text.
        first: direction of the first sort.
        aside: shown in an opened cell only.
        scale: the frame's figure times this is shown.
    """

    name: str
    title: str
    source: str
    decimals: int | None = None
    first: str = "ascending"
    aside: bool = False
    scale: float = 1.0


_BEFORE_METRICS = (
    Column("method", "method", "method_title"),
    Column("pair", "pair", "pair_title"),
    Column("seed", "seed", "seed", 0),
    Column("state", "state", "state"),
)
_AFTER_METRICS = (
    Column("teacher_top1", "teacher top-1 (%)", "teacher_top1", 2, "descending"),
    Column("step", "step (ms)", "step_seconds", 2, scale=1e3),
    Column("train", "training (min)", "train_seconds", 2, scale=1 / 60),
    Column("peak", "peak memory (MiB)", "peak_memory_bytes", 0, scale=2**-20),
    Column("extra", "extra parameters", "extra_parameters", 0),
    Column("kept", "parameters kept at inference", "inference_extra_parameters", 0, aside=True),
    Column("gmacs", "GMACs of an image", "student_gmacs", 4, aside=True),
    Column("throughput", "images per second at inference", "inference_images_per_second", 0, "descending", aside=True),
    Column("reason", "reason", "reason", aside=True),
    Column("best_top1", "best test epoch's top-1 (%), optimistic", "best_top1", 2, aside=True),
    Column("best_epoch", "best test epoch", "best_epoch", 0, aside=True),
    Column("epochs", "epochs", "epochs", 0, aside=True),
    Column("parameters", "student parameters", "student_parameters", 0, aside=True),
    Column("family", "family of the method", "method_family", aside=True),
    Column("fidelity", "fidelity", "fidelity", aside=True),
    Column("hyperparameters", "hyper-parameters", "hyperparameters", aside=True),
    *(Column(name, name, name, aside=True) for name in ("suite", "protocol", "split", "device", "commit", "finished")),
    Column("path", "folder", "path", aside=True),
)


def safe_json(content: Any) -> str:
    """JSON for the inside of a script element: nothing in it can end the element."""
    text = printable(json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False))
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def columns_of(metrics: Iterable[Metric]) -> list[Column]:
    """The columns of the list of cells."""
    measured = (
        Column(m.name, m.with_unit(m.name), m.name, m.decimals + 1, "descending" if m.higher_is_better else "ascending")
        for m in metrics
    )
    return [*_BEFORE_METRICS, *measured, *_AFTER_METRICS]


def cells_data(cells: pd.DataFrame, metrics: Iterable[Metric]) -> dict[str, Any]:
    """The list of cells for the page.

    Args:
        cells: as ``Results.cells``, with the columns ``method_title`` and ``pair_title``.
        metrics: that have a column.
    """
    columns = []
    for column in columns_of(metrics):
        about: dict[str, Any] = {"name": column.name, "title": column.title}
        if column.first != "ascending":
            about["first"] = column.first
        if column.aside:
            about["aside"] = True
        if column.decimals is None:
            codes, words = pd.factorize(cells[column.source].map(str), sort=True)
            about |= {"words": [str(word) for word in words], "values": codes.tolist()}
        else:
            scaled = (cells[column.source] * column.scale).astype(float).round(column.decimals + 1)
            shown = [None if math.isnan(n) else n if column.decimals else int(n) for n in scaled]
            about |= {"decimals": column.decimals, "values": shown}
        columns.append(about)
    return {"count": len(cells), "block": BLOCK, "columns": columns}


def blocks_of_files(
    outcomes: Outcomes, cells: pd.DataFrame, classes: CellClasses, environment: Counter[tuple[str, str]]
) -> Iterator[str]:
    """The files of the cells, ``BLOCK`` at a time: gzip of JSON in base64, which the page unpacks.

    Args:
        outcomes: of the run directory; is told what cannot be read.
        cells: with the columns ``path`` and ``dataset``.
        classes: accuracy by class of each.
        environment: is increased by what each cell ran on: (thing, version or name).
    """
    for start in range(0, len(cells), BLOCK):
        part = cells.iloc[start : start + BLOCK]
        block = []
        for path, dataset in zip(part["path"], part["dataset"], strict=True):
            files = _files(outcomes, path, environment)
            files |= {"classes": found} if (found := classes.of(path, dataset)) else {}
            block.append(_json_of(files, outcomes, path))
        text = f"[{','.join(block)}]"
        yield base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _json_of(files: Mapping[str, Any], outcomes: Outcomes, path: str) -> str:
    try:
        return printable(json.dumps(files, separators=(",", ":"), allow_nan=False, ensure_ascii=False))
    except (ValueError, RecursionError):  # a number that JSON lacks, or lists in lists without end
        outcomes.note(outcomes.root / path, "its files hold what cannot be written as JSON")
        return "{}"


def _files(outcomes: Outcomes, path: str, environment: Counter[tuple[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    folder = outcomes.folder(path)
    if folder is None:
        return found
    with _telling(outcomes):
        found["config"] = read_json(folder.config)["config"]
    with _telling(outcomes):
        result = read_record(folder.result, CellResult)
        apart = {"versions", "observers", "finished", "dirty", "gpu"}
        ran_on = result.provenance.model_dump(exclude=apart, exclude_none=True)
        ran_on |= {
            **result.provenance.versions,
            **result.provenance.gpu,
            "uncommitted changes": "yes" if result.provenance.dirty else "no",
        }
        environment.update((name, str(value)) for name, value in ran_on.items())
        found["result"] = result.model_dump(mode="json")
    with _telling(outcomes):
        failure = read_record(folder.failed, Failure)
        log = failure.log and Path(failure.log).name  # results of older versions hold the whole path
        found["result"] = {**failure.model_dump(mode="json"), "reason": without_homes(failure.reason), "log": log}
    if "epoch" in (history := outcomes.history(path)):
        found["history"] = {name: _short(_thinned(values)) for name, values in history.items()}
    if log_end := read_log_end(folder, outcomes.note):
        found["log"] = log_end
    return found


@contextlib.contextmanager
def _telling(outcomes: Outcomes) -> Iterator[None]:
    """Passes over a file that is absent or damaged; the latter is told."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError):
        pass
    except DamagedFileError as error:
        outcomes.note(error.path, error.reason)


def _thinned(values: list[float]) -> list[float]:
    """At most ``MAX_EPOCHS`` values, evenly, the last one among them."""
    stride = -(-len(values) // MAX_EPOCHS)
    return values[(len(values) - 1) % stride :: stride]


def _short(values: list[float]) -> list[float | int | None]:
    """Five significant digits."""
    short: list[float | int | None] = []
    for value in values:
        number = float(f"{value:.5g}")
        short.append(None if not math.isfinite(number) else int(number) if number.is_integer() else number)
    return short
