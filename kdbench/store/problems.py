"""What is wrong in a submission: hashes, identities, means and ranges, and the files that it was made from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.matrix.identity import config_hash
from kdbench.opening import RefusedFileError, read_file
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, is_cell_path
from kdbench.store.older import CHOSEN, differences, phrase
from kdbench.store.reading import ARCHIVE_BYTES, read_predictions
from kdbench.store.result import CellResult
from kdbench.store.submission import Mean, Submission, SubmittedCell, means_of, result_hash

#: Where in the file something is: keys and positions, as of pydantic's errors.
Place = tuple[int | str, ...]
#: Notes what is wrong with a cell, and where below it: ``wrong(what, *below)``.
Wrong = Callable[..., None]
#: Figures that are computed twice differ by less.
_SAME = 1e-6


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
    seen: set[str] = set()
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
        seen.add(cell.path)
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
    return found + _check_declared(submission, sound) + _check_means(submission.means, sound)


def _check_declared(submission: Submission, cells: Sequence[SubmittedCell]) -> list[tuple[Place, str]]:
    """Hypotheses of another split, and those that were declared after a result of their method."""
    first: dict[str, str] = {}
    for cell in cells:
        if cell.result is not None:
            method, finished = cell_name(cell.path)["method"], cell.result.provenance.finished
            first[method] = min(finished, first.get(method, finished))
    found: list[tuple[Place, str]] = []
    for i, each in enumerate(submission.hypotheses):
        place: Place = ("hypotheses", i)
        if each.split != submission.split:
            found.append(
                ((*place, "split"), f"a hypothesis about the {each.split} split, and these are results of another")
            )
        if each.method in first and first[each.method] < each.declared:
            what = f"declared at {each.declared}, after a result of {each.method} ({first[each.method]})"
            found.append(((*place, "declared"), what))
    return found


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
    elif cell.result_sha256 != result_hash(result):
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
    expected = {(mean.pair, mean.method): mean for mean in means_of(cells)}
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
