"""``kdbench run``: teachers, then students, then the leaderboard and what failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.cli import console
from kdbench.cli.options import CELLS, FILES, MACHINE, TEACHERS, note_untuned, plan_of, verb
from kdbench.cli.plan import check_cost, declared_by
from kdbench.cli.progress import make_progress
from kdbench.cli.replay import command_given, replay_command
from kdbench.errors import KdbenchError, counted
from kdbench.launch.choose import (
    Machine,
    check_machine,
    choose_machine,
    cohorts_of,
    launcher_of,
    ready_data,
)
from kdbench.launch.execute import Summary, Todo, classify_cells, execute, prepare, summarize
from kdbench.launch.job import Launcher
from kdbench.launch.torchrun import ended_by_lost_device, launcher_of_environment, together
from kdbench.matrix.cells import Cell, Plan, teachers_of
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.declared import joined, read_declared, write_declared
from kdbench.store.folders import CellState, Store
from kdbench.store.older import taught_with
from kdbench.store.rows import load_results
from kdbench.teachers.readiness import check_accuracies, check_weights, drop_damaged

if TYPE_CHECKING:
    import pandas as pd


@verb(
    "run", *CELLS, *TEACHERS, "teacher_tolerance", "accept_teacher", *FILES, *MACHINE,
    "compile", "graphs", "cuda_streams", "deterministic", "cudnn_benchmark",
    "log", "stall", "retry_failed", "confirm", "max_hours", "yes",
)  # fmt: skip
def run(request: Request) -> int:
    """Train what is not done; print the leaderboard.

    Under torchrun, or in a Slurm step of several tasks, all processes train each cohort together.
    """
    return lead(request, lambda together: _run(request, together))


def lead(request: Request, work: Callable[[bool], int]) -> int:
    """Do what trains, alone or as the first of several processes, which ``work`` is told; return the exit status."""
    check_machine(request)
    environment = launcher_of_environment()
    try:
        if environment is None:
            with ended_by_lost_device():
                return work(False)
        return together(environment, request.device, lambda: work(True))
    except InterruptedRun:
        return 130


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while cells were trained. What was kept, and how to go on, has been said."""


@dataclass(frozen=True)
class Run:
    """What became of a request: ``done`` cells, and ``failed`` ones with the reason; ``seconds`` that it took."""

    plan: Plan
    done: tuple[Cell, ...]
    failed: tuple[tuple[Cell, str], ...]
    seconds: float

    def to_dataframe(self) -> pd.DataFrame:
        """The rows that ``load_results`` gives for the cells of this request."""
        rows = load_results(self.plan.request.out, self.plan.suite.name, self.plan.under.name)
        planned = {cell.folder for cell in (*self.plan.cells, *self.plan.skipped, *self.plan.broken)}
        return rows[rows["path"].isin(planned)].reset_index(drop=True)

    def __str__(self) -> str:
        return (
            f"{len(self.done)} done, {len(self.failed)} failed, {len(self.plan.skipped)} skipped, "
            f"in {self.seconds:.0f} s; results in {self.plan.request.out}"
        )

    __repr__ = __str__


def _run(request: Request, together: bool) -> int:
    ran = train(request, together)
    rows = ran.to_dataframe()
    if (rows["state"] == "done").any():
        from kdbench.cli.tables import print_board
        from kdbench.reporting.leaderboard import build_leaderboard

        protocol = ran.plan.suite.protocols[ran.plan.under.name]
        console.say()
        print_board(build_leaderboard(rows.assign(conclusive=protocol.conclusive), select=protocol.select))
    return tell(ran)


def train(request: Request, together: bool = False) -> Run:
    """Train what is not done of a request.

    Args:
        request: what to train, and where.
        together: whether several processes train each cohort.

    Raises:
        KdbenchError: if the request is wrong; nothing was written then.
        InterruptedRun: if it was interrupted while cells were trained.
    """
    from kdbench.engine.process import check_opencv

    store = Store(request.out)
    plan = plan_of(request)
    store.check()
    console.checking(counted(len(plan.cells), "cell"))
    plan = check_cells(plan)
    note_untuned(plan)
    check_opencv()
    final = ("done",) if request.retry_failed else ("done", "failed")
    states = store.scan(plan.cells)
    if any(state.state != "done" for state in states.values()):
        left = [cell for cell in plan.cells if states[cell.folder].state not in final]
        with console.download_bar() as bar:
            ready_data(plan, console.note, bar)
            check_weights(teachers_of(left), store, request, console.note, bar if request.download else None)
    store.check(writable=True)
    declare(plan, store.root)
    start = time.monotonic()
    todo = classify_cells(plan, store, console.note)
    if todo.train:
        try:
            summary = _train(plan, todo, store, states, choose_machine(request, plan, together))
        except KeyboardInterrupt:
            done = sum(store.cell(cell).state() == "done" for cell in plan.cells)
            console.say(
                f"\ninterrupted: {done} of {len(plan.cells)} cells are done and kept; continue with: {command_given()}"
            )
            raise InterruptedRun from None
    else:
        summary = summarize(plan, todo, store)
        failed = f", {len(summary.failed)} failed (--retry-failed trains them again)" if summary.failed else ""
        console.say(f"nothing to train: {counted(len(todo.done), 'cell')} done already{failed}")
    return Run(plan, tuple(summary.done), tuple(summary.failed), time.monotonic() - start)


def declare(plan: Plan, root: Path) -> None:
    """Record the hypotheses of ``--confirm`` beside the cells, before there are any of theirs.

    Raises:
        KdbenchError: if there are results of them, or a method is not planned.
    """
    where = plan.suite.name, plan.under.name
    added = declared_by(plan, root)
    if added:
        write_declared(root, *where, joined([*read_declared(root, *where), *added]))
        names = ", ".join(each.method for each in added)
        console.say(
            f"declared before the run: a gain of {names} over {added[0].against}; everything else is exploratory"
        )


def tell(ran: Run) -> int:
    """Say what became of a request, and why cells were skipped or failed; return the exit status."""
    request, store = ran.plan.request, Store(ran.plan.request.out)
    _note_weak_teachers(ran.plan, store)
    console.say(f"\n{ran}")
    reasons = Counter((f"{cell.method} on {cell.pair}", cell.reason or "") for cell in ran.plan.skipped)
    for (what, why), count in reasons.items():
        console.say(f"skipped: {what}{f' ({count} seeds)' if count > 1 else ''}: {why}")
    for cell, reason in ran.failed:
        console.say(
            f"\nfailed: {cell.key}\n  why:    {reason}\n  log:    {store.cell(cell).log}\n"
            f"  replay: {replay_command(cell, request)}"
        )
    problems = console.plugin_errors(ran.plan.catalog.errors)
    return 1 if ran.failed or problems else 0


def _train(plan: Plan, todo: Todo, store: Store, states: Mapping[str, CellState], machine: Machine) -> Summary:
    cohorts = cohorts_of(plan, todo.train, states, machine, console.progress)
    check_cost(plan, cohorts, store, states, machine)
    known = f", {len(todo.done)} done before" if todo.done else ""
    teachers = teachers_of(todo.train)
    console.say(
        f"{plan.suite.name}, protocol {plan.under.name}: {counted(len(todo.train), 'cell')} to train in "
        f"{counted(len(cohorts), 'cohort')} with {counted(len(teachers), 'teacher')}{known}; {machine}"
    )
    launcher = launcher_of(plan, machine)
    drop_damaged(teachers, store, console.note)
    loaded = [teacher for teacher in teachers if not teacher.trained_here]
    prepare_teachers(plan, [each for each in loaded if store.result_of_teacher(each) is None], store, launcher)
    check_accuracies(plan, loaded, store, console.say)
    _check_same_teachers(plan, todo, store, launcher)
    with make_progress(len(plan.cells), len(todo.done)) as progress:
        return execute(plan, todo, store, launcher, cohorts, progress)


def _check_same_teachers(plan: Plan, todo: Todo, store: Store, launcher: Launcher) -> None:
    """Refuse teachers whose weights differ from those behind the results of their pairs, unless the request accepts them.

    Teachers that are trained again are trained first, since only then their weights are known.

    Raises:
        KdbenchError: in one line.
    """
    untaught = {name for name, entry in plan.catalog.items() if not entry.uses_teacher}
    cells = [cell for cell in todo.train if cell.method not in untaught]
    known = taught_with(store, plan.suite.name, plan.under.name, {cell.pair for cell in cells}, untaught)
    taught = {(cell.pair, cell.teacher.hash): cell.teacher for cell in cells if (cell.pair, cell.teacher.hash) in known}
    teachers = list({teacher.hash: teacher for teacher in taught.values()}.values())
    prepare_teachers(plan, [each for each in teachers if store.result_of_teacher(each) is None], store, launcher)
    for (pair, _), teacher in taught.items():
        result = store.result_of_teacher(teacher)
        others = {key: n for key, n in known[pair, teacher.hash].items() if result is None or key != result.checksum}
        if result is None or not others:
            continue
        text = (
            f"teacher {teacher.name} has weights {result.checksum[:10]}, but behind {counted(sum(others.values()), 'result')} of {pair} "
            f"stand weights {', '.join(key[:10] for key in others)} of that name"
        )
        if not plan.request.accept_teacher:
            raise KdbenchError(f"{text}; --accept-teacher trains all the same, and tables tell the two apart")
        console.note(f"{text}; accepted by --accept-teacher")
        store.teacher_folder(teacher).say(f"{text}; accepted by --accept-teacher")


def prepare_teachers(plan: Plan, teachers: Sequence[TeacherPlan], store: Store, launcher: Launcher) -> None:
    """Train teachers, or load and measure them, before any student.

    Raises:
        KdbenchError: naming those that could not be made ready.
    """
    if not teachers:
        return
    what = "train" if teachers[0].trained_here else "load and measure"
    console.say(f"{plan.suite.name}, protocol {plan.under.name}: {counted(len(teachers), 'teacher')} to {what}")
    start = time.monotonic()
    with make_progress(0, 0) as progress:
        prepare(plan, teachers, store, launcher, progress)
    console.say(f"{counted(len(teachers), 'teacher')} ready in {time.monotonic() - start:.0f} s")


def _note_weak_teachers(plan: Plan, store: Store) -> None:
    for teacher in plan.teachers:
        result = store.result_of_teacher(teacher)
        if result and teacher.trained_here and result.top1 < teacher.expected_top1:
            console.say()
            console.note(
                f"teacher {teacher.name} has top-1 {result.top1:.1f} %, below the "
                f"{teacher.expected_top1:g} % that the suite expects of a trained teacher "
                f"(here {counted(teacher.recipe.epochs, 'epoch')})"
            )
