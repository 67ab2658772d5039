"""How a plan and the state of its cells are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from kdbench.cli.progress import format_seconds
from kdbench.forecast.time import Estimate
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.store.folders import Store
from kdbench.teachers.readiness import state_of


def print_plan(
    plan: Plan, store: Store, cohorts: Sequence[Cohort], cost: Estimate | None, all_cells: bool = False
) -> None:
    """What will be trained together, what is skipped and why, and what it costs."""
    states = {cell.folder: store.cell(cell).state() for cell in plan.cells}
    counts = Counter(states.values())
    total = len(plan.cells) + len(plan.skipped) + len(plan.broken)
    print(f"suite {plan.suite.name}, protocol {plan.protocol}: {plan.suite.protocols[plan.protocol].description}")
    known = ", ".join(f"{count} {STATE_WORDS.get(state, state)}" for state, count in counts.items())
    print(f"{total} cells: {known}" + (f", {len(plan.skipped)} skipped" if plan.skipped else ""))
    print("\nteachers")
    for teacher in plan.teachers:
        print(f"  {teacher.name}: {state_of(teacher, store)}")
    if cohorts:
        print("\ncohorts (trained in lockstep, one teacher forward)")
        seconds = {job.name: job for job in cost.jobs} if cost else {}
        rows = []
        for cohort in cohorts:
            job = seconds.get(cohort.name)
            methods = " ".join(dict.fromkeys(cell.method for cell in cohort.cells))
            rows.append(
                [
                    cohort.name,
                    len(cohort.cells),
                    methods,
                    f"{cohort.memory / 1e9:.1f} GB" if cohort.memory else "-",
                    f"{format_seconds(job.seconds)} ({job.source})" if job else "-",
                ]
            )
        print(
            tabulate(
                rows,
                headers=["cohort", "cells", "methods", "memory", "time"],
                tablefmt="simple",
                maxcolwidths=[None, None, 60, None, None],
            )
        )
    if all_cells:
        print("\ncells")
        for cell in plan.cells:
            print(f"  {cell.key}  {states[cell.folder]}  {cell.folder}")
    _print_reasons("skipped", plan.skipped)
    _print_reasons("cannot be imported", plan.broken)
    if cost is None:
        failed = counts.get("failed", 0)
        print(
            f"\nnothing is left to train{f'; {failed} failed, which run --retry-failed tries again' if failed else ''}"
        )
    else:
        print(
            f"\nestimate: {format_seconds(cost.wall_seconds)} with {cost.workers} workers "
            f"({cost.compute_seconds / 3600:.2f} hours of computing), {cost.disk_bytes / 1e6:.0f} MB of disk, "
            f"{cost.memory_bytes / 1e9:.1f} GB of memory for the largest cohort"
        )


STATE_WORDS = {"interrupted": "begun", "planned": "to do"}


def _print_reasons(title: str, cells: Sequence[Cell]) -> None:
    if not cells:
        return
    print(f"\n{title}")
    seeds: Counter[tuple[str, str, str]] = Counter((cell.method, cell.pair, cell.reason or "") for cell in cells)
    for (method, pair, reason), count in seeds.items():
        print(f"  {method} on {pair}{f' ({count} seeds)' if count > 1 else ''}: {reason.splitlines()[0]}")
