"""``kdbench plan``: cells, cohorts, cost. And the limits of what a run may cost."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from tabulate import tabulate

from kdbench.cli import console
from kdbench.cli.options import CELLS, FILES, MACHINE, TEACHERS, note_untuned, plan_of, verb
from kdbench.cli.progress import format_range, format_time, rounded
from kdbench.cli.replay import command_given
from kdbench.errors import KdbenchError, counted
from kdbench.forecast.fit import balance
from kdbench.forecast.profiles import Foretold, find_profile, foretell
from kdbench.forecast.time import Estimate, estimate
from kdbench.launch.choose import Machine, check_images, check_machine, choose_machine, cohorts_of, ready_data
from kdbench.matrix.cells import Cell, Cohort, Plan, teachers_of
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.store.declared import Hypothesis, hypotheses_of
from kdbench.store.folders import CellState, Store
from kdbench.teachers.readiness import check_weights, state_of

#: Hours of computing above which a run asks first.
LONG_RUN_HOURS = 24.0
#: How far a guess from parameter counts may be too low: below a limit by this factor, no step is timed.
GUESS_MARGIN = 20.0
#: States of cells that the user sees under another name.
STATE_WORDS = {"planned": "pending"}


@verb("plan", *CELLS, *TEACHERS, *FILES, *MACHINE, "cuda_streams", "confirm", "max_hours")
@click.option(
    "--for", "profile", metavar="NAME", help="Estimate for GPUs elsewhere: h100x8, a100x4, rtx4090, h200, v100."
)
@click.option("--no-probe", is_flag=True, help="Estimate without timing any step here.")
@click.option("--cells", "all_cells", is_flag=True, help="List every cell.")
def plan(request: Request, profile: str | None, no_probe: bool, all_cells: bool) -> int:
    """Show what would be trained, and at what cost.

    The status is 2 where data or weights are missing; the plan is shown all the same.
    """
    gc.set_threshold(50_000)  # imports make many objects and no garbage: looking for it takes a second
    gpus = None
    if profile is not None:
        gpus = find_profile(profile)
        if request.device or request.memory or request.on != "local" or request.cuda_streams > 1:
            raise KdbenchError(
                "--for has no use for --device, --memory, --cuda-streams and --on: it describes another machine"
            )
        if request.max_hours is not None:
            raise KdbenchError("--for foretells a range of hours, which --max-hours cannot be compared with")
    else:
        check_machine(request)
    store = Store(request.out)
    store.check()
    made = plan_of(request)
    states = store.scan(made.cells)
    missing = _missing(made, states, store)
    console.checking(counted(len(made.cells), "cell"))
    made = check_cells(made)
    declared_by(made, store.root)
    note_untuned(made)
    left = [cell for cell in made.cells if states[cell.folder].state not in ("done", "failed")]
    cohorts: Sequence[Cohort] = []
    cost: Estimate | Foretold | None = None
    try:
        if gpus is not None and left:
            workers = request.workers or gpus[1]
            cohorts = balance(made.cohorts(request.solo, left), workers)
            cost = foretell(made, cohorts, store, gpus[0], workers)
        elif left:
            machine = choose_machine(request, made)
            if missing:  # what runs later is not worth minutes now
                cohorts = balance(made.cohorts(request.solo, left), machine.workers)
            else:
                cohorts = cohorts_of(made, left, states, machine, console.progress)
            probe = machine.is_here and not no_probe and not missing  # steps timed here do not apply elsewhere
            cost = estimate(made, cohorts, store, states, machine.workers, probe, console.progress)
    except KdbenchError as error:
        if not missing:
            raise
        cohorts = cohorts or made.cohorts(request.solo, left)
        console.note(f"no estimate: {error}")
    print_plan(made, {cell.folder: states[cell.folder] for cell in made.cells}, store, cohorts, cost, all_cells)
    for problem in missing:
        console.say("\n".join(("", f"missing: {problem}", *(f"  {line}" for line in getattr(problem, "lines", ())))))
    if isinstance(cost, Estimate):
        check_hours(cost, request.max_hours)
    return console.plugin_errors(made.catalog.errors) or (2 if missing else 0)


def _missing(plan: Plan, states: Mapping[str, CellState], store: Store) -> list[KdbenchError]:
    """What of the data and of the teachers' weights is not there, fetched first if the request says so."""
    request, problems = plan.request, []
    left = [cell for cell in plan.cells if states[cell.folder].state not in ("done", "failed")]
    if not left:
        return []
    check_images(plan, needed=False)  # a contradiction is no gap
    with console.download_bar() as bar:
        for check in (
            lambda: ready_data(plan, console.note, bar),
            lambda: check_weights(teachers_of(left), store, request, console.note, bar if request.download else None),
        ):
            try:
                check()
            except KdbenchError as error:
                if request.download:
                    raise
                problems.append(error)
    return problems


def check_hours(cost: Estimate, limit: float | None) -> None:
    """Refuse what is estimated to cost more than ``--max-hours``.

    Raises:
        KdbenchError: with the estimate.
    """
    if limit is not None and cost.compute_seconds > limit * 3600:
        raise KdbenchError(f"the plan is estimated to take {_hours(cost)}, more than --max-hours {limit:g}")


def check_cost(
    plan: Plan,
    cohorts: Sequence[Cohort],
    store: Store,
    states: Mapping[str, CellState],
    machine: Machine,
    ask_above: float = LONG_RUN_HOURS,
) -> None:
    """Refuse a run beyond ``--max-hours``, and ask before one of more than ``ask_above`` hours.

    What is small by a wide margin is not timed, so that a short run starts at once.

    Raises:
        KdbenchError: if it costs too much, or nobody can be asked, or the answer is no.
    """
    request = plan.request
    limits = [limit for limit in (request.max_hours, None if request.yes else ask_above) if limit is not None]
    if not limits:
        return
    cost = estimate(plan, cohorts, store, states, machine.workers, False, console.progress)
    guessed = sum(job.seconds * (GUESS_MARGIN if job.source == "guessed" else 2.0) for job in cost.jobs)
    if guessed < min(limits) * 3600:
        return
    if machine.is_here:  # steps timed here do not apply elsewhere
        cost = estimate(plan, cohorts, store, states, machine.workers, True, console.progress)
    check_hours(cost, request.max_hours)
    if request.yes or cost.compute_seconds <= ask_above * 3600:
        return
    answer = console.confirm(f"The plan is estimated to take {_hours(cost)}. Start?")
    if answer is None:
        raise KdbenchError(f"the plan is estimated to take {_hours(cost)}; to run it anyway: {command_given()} --yes")
    if not answer:
        raise KdbenchError("nothing was started")


def _hours(cost: Estimate) -> str:
    guessed = any(job.source == "guessed" for job in cost.jobs)
    hours = [f"{rounded(seconds / 3600)} hours" for seconds in (cost.compute_seconds, cost.wall_seconds)]
    remarks = f"{'; partly guessed, not timed' if guessed else ''}{f'; {cost.busy}' if cost.busy else ''}"
    return f"{hours[0]} of computing ({hours[1]} with {cost.workers} at a time{remarks})"


def print_plan(
    plan: Plan,
    states: Mapping[str, CellState],
    store: Store,
    cohorts: Sequence[Cohort],
    cost: Estimate | Foretold | None,
    all_cells: bool,
) -> None:
    """What will be trained together, what is skipped and why, and what it costs."""
    counts = Counter(state.state for state in states.values())
    skipped = {"skipped": len(plan.skipped)} if plan.skipped else {}
    known = {**{STATE_WORDS.get(state, state): count for state, count in counts.items()}, **skipped}
    lines = [
        f"suite {plan.suite.name}, protocol {plan.under.name}: {plan.suite.protocols[plan.under.name].description}",
        f"{len(plan.cells) + len(plan.skipped) + len(plan.broken)} cells: "
        + ", ".join(f"{count} {state}" for state, count in known.items()),
        "\nteachers",
        *(f"  {teacher.name}: {state_of(teacher, store)}" for teacher in plan.teachers),
    ]
    if found := _nets(plan):
        lines += ["\nnets (layouts as their shapes tell)", *found]
    if cohorts:
        lines += ["\ncohorts (trained in lockstep, one teacher forward)", _cohorts_table(cohorts, cost)]
    if all_cells:
        lines += ["\ncells", *(f"  {cell.key}  {states[cell.folder].state}  {cell.folder}" for cell in plan.cells)]
    lines += _reasons("skipped", plan.skipped) + _reasons("cannot be imported", plan.broken)
    if not cohorts:
        retry = f"; {counts['failed']} failed, which run --retry-failed trains again" if counts["failed"] else ""
        lines.append(f"\nnothing is left to train{retry}")
    elif isinstance(cost, Foretold):
        lines += _foretold_lines(cost)
    elif cost is not None:
        lines.append(
            f"\nestimate: {format_time(cost.wall_seconds)} with {cost.workers} workers "
            f"({_hours_of(cost.compute_seconds)} of computing), {_size(cost.disk_bytes)} of disk"
            + (f", {_size(cost.memory_bytes)} of memory for the largest cohort" if cost.memory_bytes else "")
        )
        lines += [f"{cost.busy}: alone it is faster"] if cost.busy else []
    if detectable := _detectable_line(plan):
        lines += ["", detectable]
    console.say("\n".join(lines))


def declared_by(plan: Plan, root: Path) -> list[Hypothesis]:
    """See ``hypotheses_of``: what ``--confirm`` adds, of the methods of a plan."""
    request, methods = plan.request, [*dict.fromkeys(cell.method for cell in plan.cells)]
    return hypotheses_of(root, plan.suite.name, plan.under.name, request.split, request.confirm, methods)


def _detectable_line(plan: Plan) -> str:
    """What gain over the reference the plan can show; empty where there is nothing to compare."""
    from kdbench.reporting.power import POWER, SPREADS, detectable_gain

    methods = {cell.method for cell in plan.cells}
    reference = next((name for name in ("kd", "scratch") if name in methods), "")
    competing = {cell.method for cell in plan.cells if cell.facts["method_family"] != "baseline"}
    tested = {*plan.request.confirm} or competing - {reference, "scratch"}
    if not reference or not tested:
        return ""
    pairs = sorted({(cell.teacher.name, cell.student) for cell in plan.cells})
    seeds = len({cell.seed for cell in plan.cells})
    gain = detectable_gain(pairs, seeds, len(tested))
    over = f"{counted(len(pairs), 'pair')}, {counted(seeds, 'seed')} and {counted(len(tested), 'tested method')}"
    if gain is None:
        return f"detectable gain over {reference}: none, however large: {over} cannot make a difference significant"
    return (
        f"detectable gain over {reference}: {gain:.1f} points (found with probability {POWER:g}, with {over}; noise as "
        f"results/benchmarks/inference.json assumes it, standard deviations in points: {SPREADS['net']:g} of teachers and of students, "
        f"{SPREADS['pair']:g} of pairs, {SPREADS['seed']:g} of seeds)"
    )


def _foretold_lines(cost: Foretold) -> list[str]:
    """What a plan would take elsewhere, and what was assumed."""
    shares = [
        f"{100 * low:.0f} to {100 * high:.0f} % of {cost.profile.tera[precision]:g} TFLOP/s ({precision})"
        for precision, (low, high) in cost.shares.items()
    ]
    return [
        f"\nestimate for {counted(cost.workers, 'GPU')}, {cost.profile.title}: "
        f"{format_range(cost.wall.low, cost.wall.high)}; {format_range(cost.compute.low, cost.compute.high)} of computing, "
        f"{_size(cost.disk_bytes)} of disk",
        f"assumed shares of the peak: {', '.join(shares)}. Counted: forward and backward passes of students, forward passes of teachers; "
        "not what methods add, nor reading images",
        f"weights, gradients and optimiser states of the largest cohort: {_size(cost.trained_bytes)} of {cost.profile.memory:g} GB; "
        "activations come on top, and what does not fit is trained in parts",
    ]


def _hours_of(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours" if seconds < 36_000 else f"{rounded(seconds / 3600)} hours"


def _size(number: float) -> str:
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:,.1f} GB"


def _time_of(name: str, cost: Estimate | Foretold | None) -> str:
    if cost is None:
        return "-"
    if isinstance(cost, Foretold):
        return format_range(cost.jobs[name].low, cost.jobs[name].high)
    job = next(job for job in cost.jobs if job.name == name)
    return f"{format_time(job.seconds)} ({job.source})"


def _nets(plan: Plan) -> list[str]:
    """What was found out of nets whose stages are outputs of modules, a line for each."""
    from kdbench.nets.tapped import describe  # cached since the plan was checked

    nets = {cell.teacher.name: cell.teacher.net for cell in plan.cells}
    nets |= {cell.student: cell.student_net for cell in plan.cells}
    return [
        f"  {name}: {describe(net, plan.num_classes, name).words}"
        for name, net in nets.items()
        if not net.timm or any(isinstance(tap, str) and tap != "final" for tap in net.taps or ())
    ]


def _cohorts_table(cohorts: Sequence[Cohort], cost: Estimate | Foretold | None) -> str:
    rows = [
        {
            "cohort": cohort.name,
            "cells": len(cohort.cells),
            "methods": " ".join(dict.fromkeys(cell.method for cell in cohort.cells)),
            "memory": f"{cohort.memory / 1e9:.1f} GB" if cohort.memory else "-",
            "time": _time_of(cohort.name, cost),
        }
        for cohort in cohorts
    ]
    return tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=[None, None, 60, None, None])


def _reasons(title: str, cells: Sequence[Cell]) -> list[str]:
    """Why cells are not trained, a line for each method and pair."""
    seeds = Counter((cell.method, cell.pair, (cell.reason or "").splitlines()[0]) for cell in cells)
    lines = [
        f"  {method} on {pair}{f' ({count} seeds)' if count > 1 else ''}: {reason}"
        for (method, pair, reason), count in seeds.items()
    ]
    for reason in dict.fromkeys(cell.reason or "" for cell in cells):  # tracebacks of the user's own files
        lines += [f"    {line}" for line in reason.splitlines()[1:]]
    return [f"\n{title}", *lines] if lines else []
