"""The verbs for results that are handed in: ``submit`` and ``check``. Neither imports torch."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kdbench.cli import console
from kdbench.cli.options import TEACHERS, plan_of, verb
from kdbench.cli.values import PATH
from kdbench.errors import KdbenchError, ListedError, counted
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.shown import NAME_LENGTH, TEXT_LENGTH, printable
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, is_cell_path
from kdbench.store.problems import problems_of
from kdbench.store.submission import (
    MOST_PROBLEMS,
    Submission,
    line_of,
    make_submission,
    read_submission,
    write_submission,
)
from kdbench.suite.suite import suite_files

#: Rows of what is missing that are named.
_MOST_MISSING = 10


@verb("submit", "suite", "protocol", "split", "plugins", "out")
@click.option("--to", type=PATH, required=True, metavar="FILE.json", help="The file to submit.")
def submit(request: Request, to: str) -> int:
    """Write the results of a suite to submit, as one file.

    The file holds every cell of one protocol and split, finished or failed.
    """
    if Path(to).suffix.lower() != ".json":
        raise KdbenchError(f"--to {to}: expected a name that ends with .json")
    Store(request.out).check()
    plan = plan_of(request)
    submission, damaged = make_submission(Path(request.out), plan.suite.name, plan.under.name, request.split)
    write_submission(Path(to), submission)
    checking = shlex.join(["kdbench", "check", to, "--out", request.out])
    console.say(f"{counted(len(submission.cells), 'cell')} in {to}; {checking} checks them")
    for line in _missing(submission, plan):
        console.say(f"missing: {line}")
    console.damaged([printable(line, TEXT_LENGTH) for line in damaged])
    return 0


@verb("check", "plugins")
@click.argument("file", type=PATH)
@click.option(
    "--out", "store", type=PATH, metavar="DIR", help="Run directory that it was made from, to compare every file."
)
def check(request: Request, file: str, store: str | None) -> int:
    """Check a file written by kdbench submit.

    Says what is wrong, line by line, and what is missing. Means, hashes and identities are computed anew; with --out
    predictions are compared too.
    """
    if store is not None:
        if not Path(store).is_dir():
            raise KdbenchError(f"run directory {store} does not exist")
        Store(store).check()
    try:
        submission, text = read_submission(Path(file))
    except ListedError as error:
        console.say("\n".join([*error.lines, f"{error}"]))
        return 1
    plan = _plan(request, submission)
    planned = _configurations(plan, submission) if plan else None
    problems = problems_of(submission, planned, Path(store) if store else None)
    for place, what in problems[:MOST_PROBLEMS]:
        console.say(printable(f"{file}:{line_of(text, place)}: {what}", TEXT_LENGTH))
    if len(problems) > MOST_PROBLEMS:
        console.say(f"and {len(problems) - MOST_PROBLEMS} more")
    for line in _missing(submission, plan):
        console.say(f"missing: {line}")
    for line in _remarks(submission, planned, store):
        console.note(line)
    what = f"{counted(len(submission.cells), 'cell')} of suite {submission.suite}, protocol {submission.protocol}"
    console.say(f"{counted(len(problems), 'problem')} in {what}" if problems else f"no problem in {what}")
    return int(bool(problems))


def _names(submission: Submission) -> list[dict[str, Any]]:
    """What the paths of its cells tell, of those that are some."""
    return [cell_name(cell.path) for cell in submission.cells if is_cell_path(cell.path)]


def _plan(request: Request, submission: Submission) -> Plan | None:
    """The plan of today; None for a suite or protocol that is not known here."""
    if submission.suite not in suite_files():  # a name alone: the file of a stranger chooses no path
        return None
    with contextlib.suppress(KdbenchError):
        return plan_of(replace(request, suite=submission.suite, protocol=submission.protocol, split=submission.split))
    return None


def _configurations(plan: Plan, submission: Submission) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Of every pair and method that is known here, also behind teachers trained or fine-tuned on the spot."""
    request = replace(plan.request, methods=("*",), pairs=("*",), seeds=(0,))
    teachers = {name["pair"].partition("--")[0] for name in _names(submission)}
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    choices: list[dict[str, Any]] = [{}, *({field: tuple(sorted(teachers))} for field in TEACHERS)]
    for changed in choices:
        with contextlib.suppress(KdbenchError):  # not every net can be fine-tuned
            for cell in make_plan(plan.suite, replace(request, **changed), plan.catalog).cells:
                found.setdefault((cell.pair, cell.method), []).append(cell.config)
    return found


def _missing(submission: Submission, plan: Plan | None) -> list[str]:
    """Planned cells, of the suite's own methods and those that were submitted, of which there is nothing."""
    if plan is None:
        return []
    names = _names(submission)
    there = {(name["pair"], name["method"], name["seed"]) for name in names}
    own = tuple(name for name in dict.fromkeys(name["method"] for name in names) if name in plan.catalog)
    methods = {cell.method for cell in plan.cells}
    more = make_plan(plan.suite, replace(plan.request, methods=own), plan.catalog).cells if own else ()
    cells = [*plan.cells, *(cell for cell in more if cell.method not in methods)]
    lacking = Counter(
        (cell.method, cell.pair) for cell in cells if (cell.pair, cell.method, cell.seed) not in there
    )  # fmt: skip
    if not lacking:
        return []
    lines = [f"{lacking.total():,} of {len(cells):,} planned cells"]
    lines += [
        f"{method} on {pair}: {counted(count, 'seed')}" for (method, pair), count in [*lacking.items()][:_MOST_MISSING]
    ]
    rest = len(lacking) - _MOST_MISSING
    return lines + ([f"and {rest} more of a method and a pair"] if rest > 0 else [])


def _remarks(
    submission: Submission, planned: Mapping[tuple[str, str], Sequence[Any]] | None, store: str | None
) -> list[str]:
    """What is not wrong, and should be known."""
    remarks = []
    if planned is None:
        remarks.append(
            f"suite {submission.suite} or its protocol is not known here: identities are compared with nothing"
        )
    else:
        known = {method for _, method in planned}
        strange = sorted({name["method"] for name in _names(submission)} - known)
        if strange:
            shown = ", ".join(printable(name, NAME_LENGTH) for name in strange[:10])
            remarks.append(f"not known here, so that identities are compared with nothing: {shown} (--plugin FILE)")
    results = [cell.result for cell in submission.cells if cell.result is not None]
    if failed := len(submission.cells) - len(results):
        remarks.append(f"{counted(failed, 'cell')} failed")
    if dirty := sum(result.provenance.dirty is not False for result in results):
        remarks.append(f"{counted(dirty, 'cell')} not of a clean commit")
    changed = sorted(
        {
            cell_name(cell.path)["method"]
            for cell in submission.cells
            if cell.facts.get("settings") and is_cell_path(cell.path)
        }
    )
    if changed:
        remarks.append(f"hyper-parameters that are not the suite's: {', '.join(changed)}")
    checksums: dict[str, set[str]] = {}
    for result in results:
        if result.teacher.checksum:
            checksums.setdefault(result.teacher.name, set()).add(result.teacher.checksum)
    for teacher, found in sorted(checksums.items()):
        if len(found) > 1:
            remarks.append(f"{len(found)} different teachers are called {printable(teacher, NAME_LENGTH)}")
    if store is None:
        remarks.append("predictions were not compared: --out DIR does, where the run directory is at hand")
    return remarks
