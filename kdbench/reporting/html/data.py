"""What the report's page carries inside it: the list of cells by column, and each cell's files in compressed blocks.

Ten thousand cells must open at once: the list is small (texts are numbers of words), and files are unpacked by the browser
only when a cell is opened.
"""

from __future__ import annotations

import base64
import collections
import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.plugins.metrics import Metric
from kdbench.store.layout import Folder, folder_at
from kdbench.store.reading import read_history, read_log_end, read_mapping

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
    """JSON for the inside of a script element: nothing in it can end the element; figures that JSON lacks become null."""
    text = json.dumps(plain(content), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def plain(content: Any) -> Any:
    """Mappings, lists, texts and finite numbers; NaN and infinities become None."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content


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
            whole = [int(n) if column.decimals == 0 and math.isfinite(n) else n for n in scaled]
            about |= {"decimals": column.decimals, "values": whole}
        columns.append(about)
    return {"count": len(cells), "block": BLOCK, "columns": columns}


@dataclass
class Provenance:
    """How many finished cells ran on what: (thing, version or name) to cells."""

    counts: collections.Counter[tuple[str, str]]

    def add(self, provenance: dict[str, Any]) -> None:
        versions = provenance.get("versions")
        flat = {**provenance, **(versions if isinstance(versions, dict) else {})}
        for name, value in flat.items():
            if name not in ("versions", "finished", "dirty") and isinstance(value, (str, int, float, bool)):
                self.counts[(str(name), str(value))] += 1
        if "dirty" in provenance:
            self.counts[("uncommitted changes", "yes" if provenance["dirty"] else "no")] += 1


def blocks_of_files(
    root: Path | str,
    paths: Sequence[str],
    provenance: Provenance,
    more: Callable[[int], dict[str, Any]] = lambda number: {},
) -> Iterator[str]:
    """The files of the cells, ``BLOCK`` at a time: gzip of JSON in base64, which the page unpacks; counts provenance too.

    ``more`` gives what else belongs to the cell of a number.
    """
    for start in range(0, len(paths), BLOCK):
        block = [
            {**_files(folder_at(root, path), provenance), **more(number)}
            for number, path in enumerate(paths[start : start + BLOCK], start)
        ]
        text = json.dumps(block, separators=(",", ":"), allow_nan=False)
        yield base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _files(folder: Folder | None, provenance: Provenance) -> dict[str, Any]:
    if folder is None or not folder.path.is_dir():
        return {}
    config, result = read_mapping(folder.config), read_mapping(folder.result)
    if isinstance(result.get("provenance"), dict):
        provenance.add(result["provenance"])
    history = read_history(folder) or {}
    found = {
        "config": plain(config.get("config", config)),
        "result": plain(read_mapping(folder.failed) or result),
        "history": {name: _short(_thinned(values)) for name, values in history.items()} if "epoch" in history else {},
        "log": read_log_end(folder),
    }
    return {name: content for name, content in found.items() if content}


def _thinned(values: list[float]) -> list[float]:
    """At most ``MAX_EPOCHS`` values, evenly, the last one among them."""
    if len(values) <= MAX_EPOCHS:
        return values
    stride = -(-len(values) // MAX_EPOCHS)
    return values[(len(values) - 1) % stride :: stride]


def _short(values: list[float]) -> list[float | int | None]:
    """Five significant digits."""
    short: list[float | int | None] = []
    for value in values:
        number = float(f"{value:.5g}")
        short.append(None if not math.isfinite(number) else int(number) if number.is_integer() else number)
    return short
