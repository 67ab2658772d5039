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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json.decoder import scanstring
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from kdbench.errors import KdbenchError, ListedError, NothingError
from kdbench.matrix.identity import config_hash
from kdbench.opening import RefusedFileError, read_file
from kdbench.plugins.metrics import BUILT_IN
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable, without_homes
from kdbench.store.files import DamagedFileError, encode_json, read_json, write_bytes
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, cell_paths, is_cell_path
from kdbench.store.older import CHOSEN, differences, phrase
from kdbench.store.reading import ARCHIVE_BYTES, read_predictions
from kdbench.store.result import MOST, CellResult, Count, Failure, Record, Scores, Text
from kdbench.suite.types import Name

#: Bytes of a file that are read: ten thousand cells have half of it.
SUBMISSION_BYTES = 128 << 20
#: Problems of a file that are named.
MOST_PROBLEMS = 50
MOST_CELLS = 20_000
#: Figures that are computed twice differ by less.
_SAME = 1e-6

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Parts = Annotated[dict[str, Any], Field(max_length=MOST)]
#: Where in the file something is: keys and positions, as of pydantic's errors.
Place = tuple[int | str, ...]


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
    """Results that are handed in; ``kdbench``: the version that wrote the file."""

    version: Literal[1] = 1
    kind: Literal["submission"] = "submission"
    kdbench: Text
    suite: Name
    protocol: Name
    split: Name
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
    means = tuple(_means(cells))
    return Submission(
        kdbench=version, suite=suite, protocol=protocol, split=split, means=means, cells=tuple(cells)
    ), damaged


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
        known |= {"result": found.result, "result_sha256": _hash_of(found.result)}
        if predictions is not None:
            content = read_file(folder.predictions, ARCHIVE_BYTES)
            known |= {"predictions_sha256": hashlib.sha256(content).hexdigest(), "images": len(predictions.correct)}
    elif found.state == "failed":
        failure = folder.failure()
        known["failure"] = failure.model_copy(update={"log": None, "reason": without_homes(failure.reason)})
    else:
        return None
    return SubmittedCell(**known)


def _hash_of(result: CellResult) -> str:
    return hashlib.sha256(encode_json(result.model_dump(mode="json"))).hexdigest()


def _means(cells: Iterable[SubmittedCell]) -> Iterator[Mean]:
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
    write_bytes(path, (json.dumps(submission.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode())


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
            key, at = scanstring(text, at + 1)
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


def problems_of(
    submission: Submission,
    planned: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None,
    root: Path | None = None,
) -> list[tuple[Place, str]]:
    """What is wrong in a submission: where, and what.

    Args:
        planned: configurations of today by pair and method, for those that are known here; None for an unknown suite.
        root: the run directory that it was made from, where that is at hand: hashes and accuracies are computed from its files.
    """
    found: list[tuple[Place, str]] = []
    seen: dict[str, int] = {}
    data: dict[str, int] = {}
    sound = []
    for i, cell in enumerate(submission.cells):
        place: Place = ("cells", i)

        def wrong(what: str, *below: int | str, place: Place = place) -> None:
            found.append(((*place, *below), what))

        if not is_cell_path(cell.path):
            wrong(f"{printable(cell.path, NAME_LENGTH)!r} is no path of a cell", "path")
            continue
        if cell.path in seen:
            wrong(f"the cell stands twice: {cell.path}", "path")
            continue
        seen[cell.path] = i
        sound.append(cell)
        _check_identity(submission, cell, planned, wrong)
        if (cell.result is None) == (cell.failure is None):
            wrong("a cell has either a result or a failure")
        if cell.result is None:
            continue
        _check_result(cell, cell.result, wrong)
        first = data.setdefault(cell.result.dataset_checksum, i)
        if len(data) > 1 and first == i:
            wrong("the data set is not that of the first cell", "result", "dataset_checksum")
        if root is not None:
            _check_files(cell, root, wrong)
    return found + _check_means(submission.means, sound)


Wrong = Callable[..., None]


def _check_identity(
    submission: Submission,
    cell: SubmittedCell,
    planned: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None,
    wrong: Wrong,
) -> None:
    name, config = cell_name(cell.path), cell.config
    for part in ("suite", "protocol"):
        if name[part] != getattr(submission, part):
            wrong(f"a cell of {part} {name[part]} among those of {getattr(submission, part)}", "path")
            return
    protocol, method = config.get("protocol"), config.get("method")
    says = {
        "suite": config.get("suite"),
        "protocol": protocol.get("name") if isinstance(protocol, dict) else None,
        "split": config.get("split"),
    }
    for part, value in says.items():
        if value != getattr(submission, part):
            wrong(
                f"a configuration of {part} {printable(value, NAME_LENGTH)} among cells of {getattr(submission, part)}",
                "config", part,
            )  # fmt: skip
            return
    if not isinstance(method, dict):
        wrong("a configuration without a method", "config")
        return
    if (hash := config_hash(config)) != name["config_hash"]:
        wrong(f"the configuration has hash {hash}, the path says {name['config_hash']}", "config")
    elif cell.result is not None and cell.result.hash != hash:
        wrong(f"the result is of {printable(cell.result.hash, NAME_LENGTH)}, the cell is {hash}", "result", "hash")
    elif known := (planned or {}).get((name["pair"], name["method"])):
        changes = min((differences(config, json.loads(json.dumps(one, default=list))) for one in known), key=len)
        if changed := {key: both for key, both in changes.items() if not key.startswith(CHOSEN)}:
            wrong(f"not the suite's configuration of today: {printable(phrase(changed), TEXT_LENGTH)}", "config")


def _check_result(cell: SubmittedCell, result: CellResult, wrong: Wrong) -> None:
    if cell.result_sha256 is None:
        wrong("the hash of the result is missing", "result_sha256")
    elif cell.result_sha256 != _hash_of(result):
        wrong("the result is not the one whose hash this is: a value in it was changed", "result")
    if cell.predictions_sha256 is None or cell.images is None:
        wrong("the hash of the predictions, or how many images they are of, is missing", "predictions_sha256")
    recipe = cell.config.get("recipe")
    epochs = recipe.get("epochs") if isinstance(recipe, dict) else None
    if isinstance(epochs, int) and result.metrics.best_epoch > epochs:
        wrong(f"epoch {result.metrics.best_epoch} of {epochs}", "result", "metrics", "best_epoch")
    for part in ("last", "best"):
        scores = getattr(result.metrics, part)
        top1, top5, nll = (scores.get(name) for name in ("top1", "top5", "nll"))
        at = ("result", "metrics", part)
        if top1 is None:
            wrong("a result without top-1 accuracy", *at)
            continue
        if top5 is not None and top5 < top1 - _SAME:
            wrong(f"top-5 accuracy {top5:g} is below top-1 accuracy {top1:g}", *at, "top5")
        if nll is not None and nll < 0:
            wrong(f"a negative log-likelihood of {nll:g}", *at, "nll")
        right = top1 * (cell.images or 0) / 100
        if abs(right - round(right)) > 1e-3:
            wrong(f"no number of {cell.images:,} images is {top1!r} %", *at, "top1")
    last, best = (getattr(result.metrics, part).get("top1") for part in ("last", "best"))
    if last is not None and best is not None and best < last - _SAME:
        wrong(f"the best epoch has {best:g} %, the last one {last:g} %", "result", "metrics", "best", "top1")


def _check_files(cell: SubmittedCell, root: Path, wrong: Wrong) -> None:
    """Compare a cell with the files that it was made from."""
    assert cell.result is not None
    try:
        folder = Store(root).folder(cell.path)
    except RefusedFileError as error:
        wrong(f"{error}", "path")
        return
    stored = folder.look().result
    if stored != cell.result:
        what = "no sound result" if stored is None else "another one"
        wrong(f"the run directory holds {what} of this cell", "result")
    refused: list[str] = []
    predictions = read_predictions(folder, lambda path, reason: refused.append(reason))
    if predictions is None:
        wrong(
            f"the run directory holds no predictions of this cell{''.join(f' ({one})' for one in refused)}",
            "predictions_sha256",
        )
        return
    if hashlib.sha256(read_file(folder.predictions, ARCHIVE_BYTES)).hexdigest() != cell.predictions_sha256:
        wrong("the predictions in the run directory have another hash", "predictions_sha256")
    top1 = 100 * float(predictions.correct.mean())
    if abs(top1 - (cell.result.metrics.last.get("top1") or 0.0)) > 1e-3:
        wrong(f"the predictions in the run directory are right in {top1:g} %", "result", "metrics", "last", "top1")


def _check_means(means: Sequence[Mean], cells: Iterable[SubmittedCell]) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    expected = {(mean.pair, mean.method): mean for mean in _means(cells)}
    for i, mean in enumerate(means):
        right = expected.pop((mean.pair, mean.method), None)
        if right is None:
            found.append((("means", i), f"no cell, or a second mean, of {mean.method} on {mean.pair}"))
            continue
        if mean.seeds != right.seeds:
            found.append((("means", i, "seeds"), f"the cells have the seeds {', '.join(map(str, right.seeds))}"))
        for name, value in right.metrics.items():
            given = mean.metrics.get(name)
            if (given is None) != (value is None) or (
                value is not None and given is not None and not math.isclose(given, value, rel_tol=1e-9, abs_tol=_SAME)
            ):
                found.append((("means", i, "metrics", name), f"the mean of the cells is {value!r}"))
    return found + [(("means",), f"the mean of {method} on {pair} is missing") for pair, method in expected]


def schema() -> str:
    """The JSON Schema of a submission, as text."""
    return json.dumps(Submission.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--schema", action="store_true", required=True, help="print the JSON Schema")
    parser.parse_args()
    print(schema(), end="")
