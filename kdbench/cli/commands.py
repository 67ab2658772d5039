"""What the verbs do that plan, train and check; ``reporting.py`` has those that read results.

Each function takes the parsed options and returns an exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.cli.listing import print_listing
from kdbench.engine.tuning import Tuning
from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.launch.choose import (
    check_backend,
    check_where,
    cohorts_of,
    data_folder,
    launcher_of,
    ready_data,
    sigterm_as_interrupt,
    suite_name,
    workers_of,
)
from kdbench.matrix.cells import Cell, Plan, choose_methods, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Choice, again, parse_set, replay_command
from kdbench.plugins.registry import MethodCatalog, catalog
from kdbench.store.folders import Store, load_results
from kdbench.suite.suite import load_suite
from kdbench.suite.types import MAX_SEED
from kdbench.teachers.verification import TOLERANCE


def list(options: argparse.Namespace) -> int:
    """``kdbench list``."""
    methods = catalog(options.plugins)
    print_listing(options.what, methods, options.suite, options.json)
    return say_plugin_errors(methods)


def plan(options: argparse.Namespace) -> int:
    """``kdbench plan``."""
    from kdbench.cli.limits import check_hours
    from kdbench.cli.planview import print_plan
    from kdbench.forecast.time import estimate

    store = Store(options.out)
    store.check()
    made, methods = plan_of(options)
    made = check_cells(made)
    todo = [cell for cell in made.cells if store.cell(cell).state() not in ("done", "failed")]
    workers = workers_of(options, made)
    if options.download:
        ready_data(options, made)
    cohorts = cohorts_of(made, todo, store, options, workers)
    cost = None
    if cohorts:
        cost = estimate(
            made,
            cohorts,
            store,
            workers,
            device=options.device,
            data=data_folder(options),
            probe=options.probe,
            progress=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
        )
    print_plan(made, store, cohorts, cost, all_cells=options.cells)
    _say_missing_weights(options, made, store)
    if cost is not None:
        check_hours(cost, options.max_hours)
    return say_plugin_errors(methods)


def run(options: argparse.Namespace) -> int:
    """``kdbench run``; under torchrun, or in a Slurm step of several tasks, together with the other processes."""
    from kdbench.launch.torchrun import launcher_of_environment, together

    environment = launcher_of_environment()
    if environment is None:
        return _run(options)
    options.on = "together"
    return together(environment, options.device, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from kdbench.cli.limits import check_cost
    from kdbench.cli.progress import make_progress
    from kdbench.cli.teachers import ready_teachers, ready_weights
    from kdbench.launch.execute import execute, sort_out, summarize
    from kdbench.teachers.readiness import teachers_of

    store = Store(options.out)
    check_where(options)
    made, methods = plan_of(options)
    store.check()
    made = check_cells(made)
    check_backend(options.device if options.on in ("local", "inprocess") else None)
    if any(store.cell(cell).state() != "done" for cell in made.cells):
        ready_data(options, made)
        ready_weights(options, made, store)
    store.check(writable=True)
    suite = suite_name(options)
    begun = time.monotonic()
    todo = sort_out(made, store, options.retry_failed, lambda text: print(f"note: {text}", flush=True))
    if todo.train:
        workers = workers_of(options, made)
        cohorts = cohorts_of(made, todo.train, store, options, workers)
        check_cost(made, cohorts, store, options, workers)
        print(_opening(made, todo.train, todo.done, cohorts, workers, options.on), flush=True)
        launcher = launcher_of(options, made, workers)
        ready_teachers(options, made, teachers_of(todo.train), store, launcher)
        progress = make_progress(len(made.cells), len(todo.done))
        try:
            with sigterm_as_interrupt():
                summary = execute(
                    made,
                    todo,
                    store,
                    launcher,
                    suite,
                    data=str(data_folder(options)) if options.data else None,
                    device=options.device,
                    weights=options.weights,
                    tuning=Tuning.of(options),
                    cohorts=cohorts,
                    stall=60 * options.stall,
                    on_jobs=progress.start,
                    on_event=progress.event,
                    on_tick=progress.tick,
                )
        except KeyboardInterrupt:
            progress.stop()
            done = sum(store.cell(cell).state() == "done" for cell in made.cells)
            print(
                f"\ninterrupted: {done} of {len(made.cells)} cells are done and kept; go on with: {again()}",
                flush=True,
            )
            return 130
        progress.stop()
    else:
        summary = summarize(made, todo, store)
        print(f"nothing to train: {len(todo.done)} cells are done already", flush=True)
    _closing(made, store)
    _say_weak_teachers(made, store)
    print(f"\n{len(summary.done) + len(summary.done_before)} done, {len(summary.failed) + len(made.broken)} failed, "
          f"{len(summary.skipped)} skipped, in {time.monotonic() - begun:.0f} s; results in {store.root}")  # fmt: skip
    _say_skipped(made.skipped)
    failures = [*summary.failed, *((cell, (cell.reason or "").splitlines()[0]) for cell in made.broken)]
    for cell, reason in failures:
        tolerance = None if options.teacher_tolerance == TOLERANCE else f"{options.teacher_tolerance:g}"
        replay = replay_command(
            cell, made.choice, options.out, suite, options.data, options.device, options.weights, tolerance
        )
        print(f"\nfailed: {cell.key}\n  why:    {reason}\n  log:    {store.cell(cell).log}\n  replay: {replay}")
    problems = say_plugin_errors(methods)
    return 1 if failures or problems else 0


def status(options: argparse.Namespace) -> int:
    """``kdbench status``."""
    from kdbench.cli.status import print_status, watch_status

    store = Store(options.out)
    store.check()
    made, methods = plan_of(options)
    if options.watch is None:
        print_status(made, store)
    else:
        watch_status(made, store, options.watch)
    return say_plugin_errors(methods)


def test(options: argparse.Namespace) -> int:
    """``kdbench test``."""
    methods = catalog(options.plugins)
    files = {Path(plugin) for plugin in options.plugins}
    own = [name for name, entry in methods.items() if entry.path in files]
    try:
        names = choose_methods(methods, options.methods or own or ([] if files else ["*"]))
    except UnknownNameError:
        say_plugin_errors(methods)
        raise
    failed = 0
    if names:
        from kdbench.conformance.show import run_checks

        failed = run_checks([methods[name] for name in names])
    return 1 if say_plugin_errors(methods) or failed else 0


def new_method(options: argparse.Namespace) -> int:
    """``kdbench new-method``."""
    from kdbench.plugins.template import check_name, next_steps, write_template

    check_name(options.name, catalog(options.plugins))
    path = Path(options.to or f"{options.name}.py")
    write_template(options.name, path)
    print(next_steps(options.name, path))
    return 0


def plan_of(options: argparse.Namespace) -> tuple[Plan, MethodCatalog]:
    """The plan of the user's choice, and all methods."""
    methods = catalog(
        tuple(os.path.abspath(plugin) if Path(plugin).is_file() else plugin for plugin in options.plugins)
    )
    suite = load_suite(options.suite)
    chosen = Choice(
        protocol=options.protocol,
        methods=words(options.methods),
        pairs=words(options.pairs),
        seeds=_seeds(options.seeds),
        split=options.split,
        set=parse_set(options.set),
        plugins=tuple(os.path.abspath(plugin) for plugin in options.plugins),
        limit=options.limit,
        train_teachers=words(options.train_teachers),
        fine_tune_teachers=words(options.fine_tune_teachers),
    )
    try:
        return make_plan(suite, chosen, methods), methods
    except UnknownNameError:
        say_plugin_errors(methods)
        raise


def words(text: str) -> tuple[str, ...]:
    """A list separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _seeds(text: str) -> tuple[int, ...]:
    given = words(text)
    wrong = next((word for word in given if not (word.isdecimal() and len(word) < 20 and int(word) <= MAX_SEED)), None)
    if wrong is not None:
        raise KdbenchError(f"--seeds: {wrong!r} is not a whole number from 0 to {MAX_SEED}")
    return tuple(dict.fromkeys(int(word) for word in given))


def _say_missing_weights(options: argparse.Namespace, made: Plan, store: Store) -> None:
    """Below a plan: what a run would refuse."""
    from kdbench.cli.teachers import ready_weights

    try:
        ready_weights(options, made, store)
    except KdbenchError as error:
        print("", f"before this can run: {error}", *(f"  {line}" for line in getattr(error, "lines", ())), sep="\n")


def _opening(
    made: Plan, train: Sequence[Cell], done: Sequence[Cell], cohorts: Sequence[Any], workers: int, on: str
) -> str:
    known = f", {len(done)} done before" if done else ""
    teachers = len({cell.teacher.hash for cell in train})
    where = {"slurm": "on Slurm", "ray": "on Ray"}.get(on, counted(workers, "worker"))
    return (
        f"{made.suite.name}, protocol {made.protocol}: {counted(len(train), 'cell')} to train in "
        f"{counted(len(cohorts), 'cohort')} behind {counted(teachers, 'teacher')}{known}; {where}"
    )


def _closing(made: Plan, store: Store) -> None:
    """Print the leaderboard of a plan, if anything of it is done."""
    from kdbench.reporting.leaderboard import build_leaderboard
    from kdbench.reporting.text.leaderboard import leaderboard_text

    frame = _only_planned(load_results(store.root, made.suite.name, made.protocol), made)
    if not (frame["state"] == "done").any():
        return
    board = build_leaderboard(frame, select=made.suite.protocols[made.protocol].select)
    print()
    if sys.stdout.isatty():
        print_board(board)
    else:
        print(leaderboard_text(board))


def print_board(board: Any) -> None:
    """A leaderboard on the terminal."""
    from rich.console import Console

    from kdbench.reporting.text.leaderboard import leaderboard_rich

    console = Console()
    console.print(board.message if board.message else leaderboard_rich(board, console.width))


def _only_planned(frame: Any, made: Plan) -> Any:
    """Rows of a plan's cells, current configurations only."""
    wanted = {cell.folder for cell in (*made.cells, *made.skipped, *made.broken)}
    return frame[frame["path"].isin(wanted)].reset_index(drop=True)


def _say_weak_teachers(made: Plan, store: Store) -> None:
    for teacher in made.teachers:
        result = store.result_of_teacher(teacher)
        if result and teacher.trained_here and result["metrics"]["last"]["top1"] < teacher.expected_top1:
            print(
                f"\nnote: teacher {teacher.name} has top-1 {result['metrics']['last']['top1']:.1f} %, below the "
                f"{teacher.expected_top1:g} % that the suite expects of a trained teacher (here {counted(teacher.recipe.epochs, 'epoch')})"
            )


def _say_skipped(cells: Sequence[Cell]) -> None:
    reasons: dict[tuple[str, str], int] = {}
    for cell in cells:
        key = (f"{cell.method} on {cell.pair}", cell.reason or "")
        reasons[key] = reasons.get(key, 0) + 1
    for (what, reason), count in reasons.items():
        print(f"skipped: {what}{f' ({count} seeds)' if count > 1 else ''}: {reason}")


def say_plugin_errors(methods: MethodCatalog) -> int:
    for error in methods.errors:
        print(f"kdbench: {error}\n{error.details}", file=sys.stderr)
    return 1 if methods.errors else 0


__all__ = ["again", "list", "new_method", "plan", "plan_of", "print_board", "run", "status", "test", "words"]
