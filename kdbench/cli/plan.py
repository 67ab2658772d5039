"""``kdbench plan``: cells, cohorts, cost. And the limits of what a run may cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import click
from tabulate import tabulate

from kdbench.cli import console
from kdbench.cli.options import CELLS, FILES, MACHINE, TEACHERS, note_untuned, plan_of, verb
from kdbench.cli.progress import format_seconds
from kdbench.cli.replay import command_given
from kdbench.errors import KdbenchError
from kdbench.forecast.time import Estimate, estimate
from kdbench.launch.choose import Machine, check_images, check_machine, choose_machine, cohorts_of, ready_data
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.store.folders import CellState, Store
from kdbench.teachers.readiness import check_weights, state_of, teachers_of

#: Hours of computing above which a run asks first.
LONG_RUN_HOURS = 24.0
#: How far a guess from parameter counts may be too low: below a limit by this factor, no step is timed.
GUESS_MARGIN = 20.0
#: States of cells that the user sees under another name.
STATE_WORDS = {"planned": "pending"}


@verb("plan", *CELLS, *TEACHERS, *FILES, *MACHINE, "max_hours")
@click.option("--no-probe", is_flag=True, help="Estimate without timing a few steps.")
@click.option("--cells", "all_cells", is_flag=True, help="List every cell.")
def plan(request: Request, no_probe: bool, all_cells: bool) -> int:
    """Show what would be trained, and what it costs."""
    check_machine(request)
    store = Store(request.out)
    store.check()
    made = plan_of(request)
    made = check_cells(made)
    note_untuned(made)
    states = store.scan(made.cells)
    left = [cell for cell in made.cells if states[cell.folder].state not in ("done", "failed")]
    machine = choose_machine(request, made)
    if request.download:
        with console.download_bar() as bar:
            ready_data(made, console.note, bar)
    else:
        check_images(made, needed=False)
    cohorts = cohorts_of(made, left, states, machine, console.progress)
    probe = machine.is_here and not no_probe  # steps timed here do not apply elsewhere
    cost = estimate(made, cohorts, store, states, machine.workers, probe, console.progress) if cohorts else None
    print_plan(made, store, states, cohorts, cost, all_cells)
    try:
        with console.download_bar() as bar:
            check_weights(teachers_of(left), store, request, console.note, bar if request.download else None)
    except KdbenchError as error:
        console.say("\n".join(("", f"missing: {error}", *(f"  {line}" for line in getattr(error, "lines", ())))))
    if cost is not None:
        check_hours(cost, request.max_hours)
    return console.plugin_errors(made.catalog.errors)


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
    return (
        f"{cost.compute_seconds / 3600:,.1f} hours of computing ({cost.wall_seconds / 3600:,.1f} with {cost.workers} "
        f"at a time{'; partly guessed, not timed' if guessed else ''})"
    )


def print_plan(
    plan: Plan,
    store: Store,
    states: Mapping[str, CellState],
    cohorts: Sequence[Cohort],
    cost: Estimate | None,
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
    if cost is not None:
        lines += ["\ncohorts (trained in lockstep, one teacher forward)", _cohorts_table(cohorts, cost)]
    if all_cells:
        lines += ["\ncells", *(f"  {cell.key}  {states[cell.folder].state}  {cell.folder}" for cell in plan.cells)]
    lines += _reasons("skipped", plan.skipped) + _reasons("cannot be imported", plan.broken)
    if cost is None:
        retry = f"; {counts['failed']} failed, which run --retry-failed trains again" if counts["failed"] else ""
        lines.append(f"\nnothing is left to train{retry}")
    else:
        lines.append(
            f"\nestimate: {format_seconds(cost.wall_seconds)} with {cost.workers} workers "
            f"({cost.compute_seconds / 3600:.2f} hours of computing), {cost.disk_bytes / 1e6:.0f} MB of disk, "
            f"{cost.memory_bytes / 1e9:.1f} GB of memory for the largest cohort"
        )
    console.say("\n".join(lines))


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


def _cohorts_table(cohorts: Sequence[Cohort], cost: Estimate) -> str:
    jobs = {job.name: job for job in cost.jobs}
    rows = [
        {
            "cohort": cohort.name,
            "cells": len(cohort.cells),
            "methods": " ".join(dict.fromkeys(cell.method for cell in cohort.cells)),
            "memory": f"{cohort.memory / 1e9:.1f} GB" if cohort.memory else "-",
            "time": f"{format_seconds(jobs[cohort.name].seconds)} ({jobs[cohort.name].source})",
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
