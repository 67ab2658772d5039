"""Results of one suite, protocol and split in one file that can be handed in: made from a run directory, and checked.

    python -m kdbench.store.submission --schema

prints its JSON Schema, of which ``docs/submission.schema.json`` is a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from kdbench.errors import KdbenchError, ListedError, NothingError
from kdbench.opening import RefusedFileError, read_file
from kdbench.plugins.metrics import BUILT_IN
from kdbench.shown import TEXT_LENGTH, printable, without_homes
from kdbench.store.declared import Hypotheses, read_declared
from kdbench.store.files import DamagedFileError, encode_json, read_json, write_output
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, cell_paths
from kdbench.store.reading import ARCHIVE_BYTES, read_predictions
from kdbench.store.result import MOST, CellResult, Count, Failure, Record, Scores, Text
from kdbench.suite.types import Name

#: Bytes of a file that are read: ten thousand cells have half of it.
SUBMISSION_BYTES = 128 << 20
#: Problems of a file that are named.
MOST_PROBLEMS = 50
MOST_CELLS = 20_000

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Parts = Annotated[dict[str, Any], Field(max_length=MOST)]


class SubmittedCell(Record):
    """A cell that was trained, or that failed.

    Attributes:
        path: its folder in the run directory, ``SUITE/PROTOCOL/TEACHER--STUDENT/METHOD/seedN-HASH``.
        config: its whole configuration, of which ``HASH`` is the hash.
        facts: how its parts are called and grouped.
        result: ``result.json``; null where it failed.
        result_sha256: of the result's file.
        predictions_sha256: of the file with its answer to each image.
        images: on which it was measured.
        failure: why it has no result.
    """

    path: Annotated[str, Field(max_length=600)]
    config: Parts
    facts: Parts
    result: CellResult | None = None
    result_sha256: Sha256 | None = None
    predictions_sha256: Sha256 | None = None
    images: Annotated[int, Field(ge=1, le=10**9)] | None = None
    failure: Failure | None = None


class Mean(Record):
    """Means over seeds of the last epoch's figures of one method on one pair."""

    pair: Text
    method: Text
    seeds: Annotated[tuple[Count, ...], Field(max_length=MOST_CELLS)]
    metrics: Scores


class Submission(Record):
    """Results that are handed in; ``kdbench``: the version that wrote the file; ``hypotheses``: declared before their results."""

    version: Literal[1] = 1
    kind: Literal["submission"] = "submission"
    kdbench: Text
    suite: Name
    protocol: Name
    split: Name
    hypotheses: Hypotheses = ()
    means: Annotated[tuple[Mean, ...], Field(max_length=MOST_CELLS)]
    cells: Annotated[tuple[SubmittedCell, ...], Field(min_length=1, max_length=MOST_CELLS)]


def make_submission(root: Path, suite: str, protocol: str, split: str) -> tuple[Submission, list[str]]:
    """Collect the cells of a run directory that are done or failed.

    Returns:
        the submission, and ``FILE: reason`` of what could not be read.

    Raises:
        NothingError: if there are none.
    """
    store = Store(root)
    damaged: list[str] = []
    cells = []
    for path in cell_paths(root, suite, protocol, lambda path, reason: damaged.append(f"{path}: {reason}")):
        try:
            cell = _submitted(store, path, damaged)
        except (DamagedFileError, RefusedFileError) as error:
            damaged.append(f"{error.path}: {error.reason}")
        except (FileNotFoundError, KeyError, TypeError, ValidationError):
            damaged.append(f"{path}: its configuration is missing, or of another version")
        else:
            if cell and cell.config.get("split") == split:
                cells.append(cell)
    if not cells:
        raise NothingError(f"{root} holds no finished cell of suite {suite}, protocol {protocol}, split {split}")
    version = importlib.metadata.version("kdbench")
    try:
        declared = tuple(each for each in read_declared(root, suite, protocol) if each.split == split)
    except DamagedFileError as error:
        declared = ()
        damaged.append(f"{error.path}: {error.reason}")
    known: dict[str, Any] = {"suite": suite, "protocol": protocol, "split": split, "hypotheses": declared}
    means = tuple(means_of(cells))
    return Submission(kdbench=version, **known, means=means, cells=tuple(cells)), damaged


def _submitted(store: Store, path: str, damaged: list[str]) -> SubmittedCell | None:
    folder = store.folder(path)
    stored = read_json(folder.config)
    facts = {name: value for name, value in stored["facts"].items() if name != "plugin"}  # a path of this machine
    known: dict[str, Any] = {"path": path, "config": stored["config"], "facts": facts}
    found = folder.look()
    if found.problem:
        damaged.append(found.problem)
    if found.result is not None:
        predictions = read_predictions(folder, lambda file, reason: damaged.append(f"{file}: {reason}"))
        whole = CellResult.model_validate(found.result.model_dump(mode="json"))  # with every field of today
        known |= {"result": whole, "result_sha256": result_hash(whole)}
        if predictions is not None:
            content = read_file(folder.predictions, ARCHIVE_BYTES)
            known |= {"predictions_sha256": hashlib.sha256(content).hexdigest(), "images": len(predictions.correct)}
    elif found.state == "failed":
        failure = folder.failure()
        known["failure"] = failure.model_copy(update={"log": None, "reason": without_homes(failure.reason)})
    else:
        return None
    return SubmittedCell(**known)


def result_hash(result: CellResult) -> str:
    """The SHA-256 of a result as a submission holds it; fields that are younger than the submission do not count."""
    return hashlib.sha256(encode_json(result.model_dump(mode="json", exclude_unset=True))).hexdigest()


def means_of(cells: Iterable[SubmittedCell]) -> Iterator[Mean]:
    """Means over seeds by pair and method, of the cells that are done."""
    groups: dict[tuple[str, str], list[tuple[int, CellResult]]] = {}
    for cell in cells:
        if cell.result is not None:
            name = cell_name(cell.path)
            groups.setdefault((name["pair"], name["method"]), []).append((name["seed"], cell.result))
    for (pair, method), found in sorted(groups.items()):
        seeds = tuple(seed for seed, _ in sorted(found, key=lambda one: one[0]))
        metrics = {}
        for metric in BUILT_IN:
            values = [result.metrics.last.get(metric) for _, result in found]
            known = [value for value in values if value is not None]
            metrics[metric] = math.fsum(known) / len(known) if known else None
        yield Mean(pair=pair, method=method, seeds=seeds, metrics=metrics)


def write_submission(path: Path, submission: Submission) -> None:
    """Write it, one value on each line: what a check names is found by its line."""
    write_output(path, (json.dumps(submission.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode())


def read_submission(path: Path) -> tuple[Submission, str]:
    """Read a submission and its text.

    Raises:
        KdbenchError: if it is no regular file, or too large; ``ListedError`` with a line ``FILE:LINE: what`` for each field that
            is not as the schema says.
    """
    try:
        content = read_file(path, SUBMISSION_BYTES)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise KdbenchError(f"submission {path} does not exist") from None
    except UnicodeDecodeError:
        raise KdbenchError(f"submission {path} is no text in UTF-8") from None
    try:
        return Submission.model_validate_json(content, strict=True), text
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False, include_input=False)[:MOST_PROBLEMS]:
            at = re.search(r"at line (\d+)", one["msg"]) if one["type"] == "json_invalid" else None
            number = int(at[1]) if at else line_of(text, one["loc"])
            where = ".".join(map(str, one["loc"]))
            lines.append(printable(f"{path}:{number}: {where + ': ' if where else ''}{one['msg']}", TEXT_LENGTH))
        raise ListedError(f"{path} is no submission", lines) from None


def line_of(text: str, place: Sequence[int | str]) -> int:
    """The line of a place in JSON that has been read before; of what holds it where it is not there itself."""
    found = at = _after_space(text, 0)
    for step in place:
        with contextlib.suppress(ValueError, IndexError, RecursionError):  # what another reader takes for JSON
            begins_at = _member(text, at, step)
            if begins_at is not None:
                found, at = begins_at
                continue
        break
    return text.count("\n", 0, found) + 1


def _member(text: str, at: int, step: int | str) -> tuple[int, int] | None:
    """Where a member of the object or list at a position begins, with its key, and where its value does; of equal keys the last."""
    found = None
    closing, at = {"{": "}", "[": "]"}.get(text[at], ""), _after_space(text, at + 1)
    position = 0
    while closing and text[at] != closing:
        begins = at
        key: int | str = position
        if closing == "}":
            key, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        if key == step:
            found = begins, at
            if closing == "]":
                break
        at = _after_space(text, _DECODER.raw_decode(text, at)[1])
        at = _after_space(text, at + 1) if text[at] == "," else at
        position += 1
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def schema() -> str:
    """The JSON Schema of a submission, as text."""
    return json.dumps(Submission.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--schema", action="store_true", required=True, help="print the JSON Schema")
    parser.parse_args()
    print(schema(), end="")
