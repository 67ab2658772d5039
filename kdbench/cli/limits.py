"""What a run may cost: it is estimated and refused, or asked for, before a long one begins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.forecast.time import Estimate, estimate
from kdbench.matrix.cells import Cohort, Plan
from kdbench.matrix.request import again
from kdbench.store.folders import Store

#: Hours of computing that are begun without asking.
LONG_RUN_HOURS = 24.0
#: How far a guess from parameter counts may be too low: below a limit by this factor, no step is timed.
GUESS_MARGIN = 20.0


def check_hours(cost: Estimate, limit: float | None) -> None:
    """Refuse what is estimated to cost more than ``--max-hours``.

    Raises:
        KdbenchError: with the estimate.
    """
    if limit is not None and cost.compute_seconds > limit * 3600:
        raise KdbenchError(f"the plan is estimated to take {_hours(cost)}, more than --max-hours {limit:g}")


def check_cost(plan: Plan, cohorts: Sequence[Cohort], store: Store, options: argparse.Namespace, workers: int) -> None:
    """Refuse a run beyond ``--max-hours``, and ask before one of more than a day.

    What is small by a wide margin is not timed, so that a short run begins at once.

    Raises:
        KdbenchError: if it costs too much, or nobody can be asked, or the answer is no.
    """
    if options.yes and options.max_hours is None:
        return
    limit = min(LONG_RUN_HOURS if not options.yes else float("inf"), options.max_hours or float("inf"))
    if options.max_hours == 0:
        limit = 0.0
    data = Path(options.data) if options.data else None
    cost = estimate(plan, cohorts, store, workers, device=options.device, data=data, probe=False)
    guessed = sum(job.seconds * (GUESS_MARGIN if job.source == "guessed" else 2.0) for job in cost.jobs)
    if guessed < limit * 3600:
        return
    if options.on in ("local", "inprocess"):  # elsewhere, steps timed here tell nothing
        cost = estimate(plan, cohorts, store, workers, device=options.device, data=data, progress=_say)
    check_hours(cost, options.max_hours)
    if options.yes or cost.compute_seconds <= LONG_RUN_HOURS * 3600:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise KdbenchError(f"the plan is estimated to take {_hours(cost)}; if that is meant: {again()} --yes")
    answer = input(f"The plan is estimated to take {_hours(cost)}. Begin? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise KdbenchError("nothing was begun")


def _hours(cost: Estimate) -> str:
    guessed = any(job.source == "guessed" for job in cost.jobs)
    return (
        f"{cost.compute_seconds / 3600:,.1f} hours of computing ({cost.wall_seconds / 3600:,.1f} with {cost.workers} "
        f"at a time{'; partly guessed, not timed' if guessed else ''})"
    )


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
