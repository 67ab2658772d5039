"""What a run keeps of a trained cell or a teacher: ``result.json``, typed. All writers make a ``Result``, all readers get one.

    python -m kdbench.store.result --schema

prints the JSON Schema, of which ``docs/result.schema.json`` is a copy.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kdbench.plugins.metrics import BUILT_IN, METRICS, Metric, is_metric_name
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable
from kdbench.store.files import DamagedFileError, read_checked, write_json

#: Beyond this a figure is no measurement; it is larger than any 32-bit float.
LARGEST = 1e40

# A result may come from anybody: what tables add up, plot and print is bounded.
Measure = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Text = Annotated[str, AfterValidator(lambda text: printable(text, NAME_LENGTH))]
Sentence = Annotated[str, AfterValidator(lambda text: printable(text, TEXT_LENGTH))]
#: Things that a result lists, such as metrics and versions.
MOST = 200


def _possible(scores: dict[str, float | None]) -> dict[str, float | None]:
    for name in _SHARES & scores.keys():
        value = scores[name]
        if value is not None and not 0 <= value <= 100 + 1e-6:
            raise ValueError(f"{name} of {value:g} %")
    return scores


_SHARES = frozenset(name for name in BUILT_IN if METRICS[name].unit == "%")
#: Metric -> value, in its own unit; null where it has none.
Scores = Annotated[dict[str, Measure | None], Field(max_length=MOST), AfterValidator(_possible)]


def timestamp() -> str:
    """The present time as records have it, in UTC; as text it sorts by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Record(BaseModel):
    """A part of a result: no other fields than these, no numbers that JSON lacks."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Definition(Record):
    """What tables need to know of a metric that comes from a plugin; see ``Metric``."""

    title: Text
    unit: Text
    higher_is_better: bool
    decimals: Annotated[int, Field(ge=0, le=12)]
    tie_band: Amount

    @classmethod
    def of(cls, metric: Metric) -> Definition:
        return cls(**{name: getattr(metric, name) for name in cls.model_fields})

    def metric(self, name: str) -> Metric:
        return Metric(name, **self.model_dump())


def _column(name: str) -> str:
    if not is_metric_name(name) or name in BUILT_IN:
        raise ValueError(f"{name!r} cannot be the name of a plugin's metric")
    return name


MetricName = Annotated[str, Field(max_length=NAME_LENGTH), AfterValidator(_column)]


class CellMetrics(Record):
    """Of the last epoch, and of the epoch that was best on the evaluated split by top-1 (an optimistic figure)."""

    last: Scores
    best: Scores
    best_epoch: Count


class TeacherMetrics(Record):
    """Of a teacher's last epoch, or of its weights as loaded."""

    last: Scores


class TeacherUsed(Record):
    """The teacher of a cell, measured again before it taught; ``checksum`` is that of its parameters and buffers."""

    name: str
    hash: str
    checksum: Text
    metrics: Scores


class Cost(Record):
    """What training took and what inference takes.

    Attributes:
        student_gmacs: 10⁹ multiply-adds of one image; null, as the next, where they could not be measured.
        inference_images_per_second: in batches of ``inference_batch``, on the device of the training.
        inference_extra_parameters: that inference needs beside the student's own.
        step_seconds: mean time of the cell's own part of a step and, with ``tuning.cuda_streams``, of what runs beside it.
        train_seconds: the cell's share of its cohort's time.
        peak_memory_bytes: of the whole cohort's process.
        estimated_memory_bytes: of the whole cohort, foretold; null where it was not.
        micro_batches: parts in which each batch was taken.
        processes: that trained together.
        tuning: how the run used its machine, where that was not the default.
    """

    student_parameters: Count
    extra_parameters: Count
    student_gmacs: Amount | None
    inference_images_per_second: Amount | None
    inference_batch: Count
    inference_extra_parameters: Count
    step_seconds: Amount
    train_seconds: Amount
    steps: Count
    peak_memory_bytes: Count
    estimated_memory_bytes: Count | None = None
    micro_batches: Count = 1
    processes: Count = 1
    tuning: dict[str, Any] = {}


class Provenance(Record):
    """What a number was computed with. ``commit`` and ``dirty`` are null where kdbench did not run from a clone; ``observers`` are
    hooks that only observe, each with the hash of its source; ``search`` is how its hyper-parameters were found (``Found.record``);
    ``gpu`` has the versions and settings of CUDA's libraries."""

    kdbench: Text
    commit: Text | None
    dirty: bool | None
    python: Text
    versions: Annotated[dict[Text, Text], Field(max_length=MOST)]
    device: Text
    device_type: Text
    threads: Count
    finished: Text
    observers: Annotated[dict[str, str], Field(max_length=MOST)] = {}
    search: Annotated[dict[str, Any], Field(max_length=MOST)] = {}
    gpu: Annotated[dict[str, Any], Field(max_length=MOST)] = {}


class Weights(Record):
    """The file that a teacher's weights come from; the last four where they were loaded whole, classifier included."""

    origin: str
    file: str
    file_sha256: str
    part: str | None = None
    classes: int | None = None
    rows: int | None = None
    resized: int | None = None


class CellResult(Record):
    """A trained student. ``losses``: mean terms of the last epoch; ``plugin_metrics``: those of ``metrics`` from plugins."""

    version: Literal[1] = 1
    kind: Literal["cell"] = "cell"
    hash: str
    metrics: CellMetrics
    plugin_metrics: Annotated[dict[MetricName, Definition], Field(max_length=MOST)] = {}
    losses: dict[str, float]
    teacher: TeacherUsed
    cost: Cost
    dataset_checksum: str
    train_images: Count
    provenance: Provenance


class TeacherResult(Record):
    """A teacher that was trained or loaded.

    Attributes:
        checksum: of its parameters and buffers.
        weights: null where it was trained from scratch; ``cost``: null where it was loaded.
        images: on which it was measured, of ``split_images`` that the split has.
        classes: among which it chooses; ``chosen_classes``: how many of the data set's the suite takes, null for all.
    """

    version: Literal[1] = 1
    kind: Literal["teacher"] = "teacher"
    name: str
    hash: str
    checksum: str
    metrics: TeacherMetrics
    weights: Weights | None = None
    cost: Cost | None = None
    images: Count
    split_images: Count
    classes: Annotated[int, Field(ge=1, le=10**18)]
    chosen_classes: Annotated[int, Field(ge=1, le=10**18)] | None = None
    dataset_checksum: str
    provenance: Provenance

    @property
    def top1(self) -> float:
        """In percent."""
        return self.metrics.last["top1"] or 0.0


class Failure(Record):
    """Why a cell has no result.

    Attributes:
        kind: ``"exception"``, ``"non-finite loss"``, ``"out of memory"``, ``"crash"``, ``"stall"``, ``"teacher"``, ``"plugin"``.
        reason: one sentence.
        epoch: that were complete.
        log: of the process, where it is not the cell's own.
    """

    kind: Text
    reason: Sentence
    epoch: Count = 0
    log: str | None = None


Result = Annotated[CellResult | TeacherResult, Field(discriminator="kind")]

R = TypeVar("R", bound=Record)


def scores(values: dict[str, float]) -> Scores:
    """Measured values as a result holds them."""
    return {name: number(value) for name, value in values.items()}


def number(value: float) -> float | None:
    """None for what JSON lacks, NaN and the infinities, and for what is no measurement."""
    return float(value) if math.isfinite(value) and abs(value) <= LARGEST else None


def write_record(path: Path, record: Record, once: bool = False) -> None:
    """Write a record with a checksum; see ``files.write_bytes``."""
    write_json(path, record.model_dump(mode="json"), once)


def read_record(path: Path, kind: type[R]) -> R:
    """Read what ``write_record`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is cut, altered, or a record of another kind or version.
    """
    try:
        return kind.model_validate_json(read_checked(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedFileError(path, printable(f"{where}: {first['msg']}", TEXT_LENGTH)) from None


def schema() -> str:
    """The JSON Schema of ``result.json``, as text."""
    return json.dumps(TypeAdapter(Result).json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--schema", action="store_true", required=True, help="print the JSON Schema")
    parser.parse_args()
    print(schema(), end="")
