"""``kdbench tune``: search the hyper-parameters of methods on held-out images, with the same number of trials for each."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from kdbench.cli import console
from kdbench.cli.options import CELLS, FILES, MACHINE, TEACHERS, plan_of, verb
from kdbench.cli.run import Run, lead, tell, train
from kdbench.cli.values import PATH, TRIALS, WHOLE_SEED, OneOf
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, Plan, choose_methods
from kdbench.matrix.check import check_cells
from kdbench.matrix.found import Found, read_any
from kdbench.matrix.request import Request
from kdbench.search.sampling import SAMPLERS, check_sampler, make_sampler, rounds
from kdbench.search.space import Space, declared, read_space
from kdbench.search.trials import Search, Trial, best_of, score_of
from kdbench.store.files import write_output
from kdbench.store.folders import Store
from kdbench.store.older import differences, phrase

#: A search has rows of its own, its own split, and no settings of another search.
_CELLS = tuple(name for name in CELLS if name not in ("split", "variants", "settings"))

#: What does not tell two searches apart.
_OUTCOME = {"kdbench", "top1", "settings", "checksum"}


@verb(
    "tune", *_CELLS, *TEACHERS, "teacher_tolerance", *FILES, *MACHINE,
    "compile", "graphs", "cuda_streams", "deterministic", "cudnn_benchmark", "log", "stall", "retry_failed", "max_hours", "yes",
)  # fmt: skip
@click.option(
    "--trials", type=TRIALS, required=True, metavar="N", help="Trials of each method; the first has its own values."
)
@click.option(
    "--space", type=PATH, metavar="FILE", help="What to search (default: the ranges that the methods declare)."
)
@click.option("--sampler", type=OneOf(SAMPLERS), default="random", metavar="NAME", help="random (default) or optuna.")
@click.option("--search-seed", type=WHOLE_SEED, default=0, metavar="N", help="Seed of the search (default: 0).")
@click.option("--split", type=OneOf(("validation",)), default="validation", metavar="NAME", help="Always validation.")
@click.option(
    "--to", type=PATH, default="best.yaml", metavar="FILE", help="Where to write the best values (default: best.yaml)."
)
def tune(request: Request, trials: int, space: str | None, sampler: str, search_seed: int, split: str, to: str) -> int:
    """Search hyper-parameters on held-out images.

    Every method has the same number of trials. kdbench run --settings best.yaml uses what was found.
    """

    def work(together: bool) -> int:
        found = search(request, trials, space, sampler, search_seed, to, together)
        words = f"kdbench run {request.suite} --protocol {found.found.protocol} --settings {to}"
        console.say(f"\n{found}\n\nthe best values are in {to}; {words} uses them")
        return int(found.failed > 0)

    return lead(request, work)


def search(
    request: Request,
    trials: int,
    space: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    sampler: str = "random",
    search_seed: int = 0,
    to: str = "best.yaml",
    together: bool = False,
) -> Search:
    """Train all trials that are not done, and write the best values of every method.

    Every trial is a row of one run, so that trials of all methods share batches and the teacher's forward pass. What is drawn is a
    function of suite, protocol, method and seed of the search: a search that was stopped goes on where it was. A file ``to`` of the
    same search with as many trials, or fewer, is replaced.

    Raises:
        KdbenchError: if the request is wrong, or ``to`` is there and no file of this search; nothing was written then.
        InterruptedRun: if it was interrupted.
    """
    check_sampler(sampler)
    _check_target(Path(to))
    request = replace(request, split="validation")
    plan, spaces = _choose(request, space)
    samplers = {
        method: make_sampler(sampler, f"{plan.suite.name}/{plan.under.name}/{method}/{search_seed}", found)
        for method, found in spaces.items()
        if found
    }
    known: dict[str, list[Trial]] = {method: [Trial(method, 0)] for method in spaces}

    def described(cells: Sequence[Cell]) -> dict[str, Any]:
        return {
            "suite": plan.suite.name,
            "protocol": plan.under.name,
            "split": "validation",
            "pairs": [*dict.fromkeys(cell.pair for cell in cells)],
            "seeds": [*dict.fromkeys(cell.seed for cell in cells)],
            "trials": trials,
            "sampler": sampler,
            "search_seed": search_seed,
            "kdbench": importlib.metadata.version("kdbench"),
            "space": {method: {name: part.plain() for name, part in found.items()} for method, found in spaces.items()},
        }

    if Path(to).exists():
        possible = check_cells(plan_of(_request_of(request, known, plan))).cells
        _check_replaced(Path(to), Found.sealed({**described(possible), "top1": {}, "settings": {}}))
    for numbers in rounds(sampler, trials):
        for method, own in samplers.items():
            drawn = zip(numbers, own.ask(numbers), strict=True)
            known[method] += [Trial(method, number, values) for number, values in drawn]
        ran = train(_request_of(request, known, plan), together)
        known = _scored(known, ran)
        for method, own in samplers.items():
            own.tell([known[method][number].score for number in numbers])
    tell(ran)
    best = {method: best_of(own) for method, own in known.items()}
    content = {
        **described(ran.plan.cells),
        "top1": {method: {"own": known[method][0].score, "best": trial.score} for method, trial in best.items()},
        "settings": {method: dict(trial.values) for method, trial in best.items()},
    }
    found = Found.sealed(content)
    write_output(Path(to), yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False).encode())
    return Search(known, found, to, len(ran.failed))


def _check_target(path: Path) -> None:
    """Refuse, before anything trains, a file that cannot be written at the end."""
    folder = path.absolute().parent
    if path.is_symlink() or path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise KdbenchError(f"--to {path} cannot be written")


def _check_replaced(path: Path, search: Found) -> None:
    """Refuse, before anything trains, a file of another search, of more trials, or of anything else."""
    advice = "name another file with --to, or remove it"
    try:
        there = read_any(path)
    except KdbenchError as error:
        raise KdbenchError(f"--to {path} is there and is no file of this search ({error}); {advice}") from None
    was, is_now = (
        {"methods": sorted(each.space), **each.model_dump(mode="json", exclude=_OUTCOME)} for each in (there, search)
    )
    if there.trials <= search.trials:
        was["trials"] = search.trials
    if changes := differences(was, is_now):
        raise KdbenchError(f"--to {path} holds another search ({phrase(changes)}); {advice}")


def _choose(
    request: Request, space: str | os.PathLike[str] | Mapping[str, Any] | None
) -> tuple[Plan, dict[str, Space]]:
    """A plan of the methods' own values, and what is searched of each; notes those of which nothing is."""
    plan = plan_of(replace(request, methods=()))
    given = {} if space is None else read_space(space, plan.catalog)
    default = [name for name in dict.fromkeys(cell.method for cell in plan.cells) if not plan.catalog[name].variant_of]
    names = choose_methods(plan.catalog, request.methods or tuple(given) or default)
    for name in names:
        if parent := plan.catalog[name].variant_of:
            raise KdbenchError(f"{name} is a variant of {parent}; a search is of methods: --methods {parent}")
    spaces: dict[str, Space] = {}
    for name in names:
        entry = plan.catalog[name]
        spaces[name] = given.get(name, declared(entry, request.set.get(name, ())))
        if not spaces[name]:
            why = "declares no range to search" if entry.hyperparameters else "has no hyper-parameters"
            console.note(f"{name} {why}; its own values are kept")
    return plan, spaces


def _request_of(request: Request, known: Mapping[str, list[Trial]], plan: Plan) -> Request:
    """The run of all trials that are known."""
    every = [trial for trials in known.values() for trial in trials]
    variants = {trial.row: trial.variant(plan.catalog[trial.method].display) for trial in every if trial.number}
    return replace(request, methods=tuple(trial.row for trial in every), variants=variants)


def _scored(known: Mapping[str, list[Trial]], ran: Run) -> dict[str, list[Trial]]:
    """The trials with what they reached."""
    states = Store(ran.plan.request.out).scan(ran.plan.cells)
    scored: dict[str, list[Trial]] = {}
    for method, trials in known.items():
        found = [(trial, *score_of(trial, trials, ran.plan.cells, states)) for trial in trials]
        scored[method] = [replace(trial, score=score, reason=reason) for trial, score, reason in found]
    return scored
