"""What the verbs do that plan, train and check; ``reporting.py`` has those that read results.

Each function takes the parsed options and returns an exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.choice import Choice, again, parse_set, replay_command
from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.listing import print_listing
from kdbench.plan import Cell, Cohort, Plan, choose_methods, make_plan
from kdbench.registry import MethodCatalog, catalog
from kdbench.store import Store, load_results
from kdbench.suite import load_suite
from kdbench.tuning import Tuning
from kdbench.typing import MAX_SEED
from kdbench.verification import TOLERANCE
from kdbench.wiring import check_cells

#: Of so many cells each net and method takes a while to be looked at, which is said.
MANY_CELLS = 100


def list(options: argparse.Namespace) -> int:
    """``kdbench list``."""
    methods = catalog(options.plugins)
    print_listing(options.what, methods, options.suite, options.json)
    return _say_plugin_errors(methods)


def plan(options: argparse.Namespace) -> int:
    """``kdbench plan``."""
    from kdbench.estimate import estimate
    from kdbench.limits import check_hours
    from kdbench.planview import print_plan

    store = Store(options.out)
    store.check()
    made, methods = plan_of(options)
    made = check_cells(made)
    todo = [cell for cell in made.cells if store.cell(cell).state() not in ("done", "failed")]
    workers = _workers(options, made)
    if options.download:
        _ready_data(options, made)
    cohorts = _cohorts(made, todo, store, options, workers)
    cost = None
    if cohorts:
        cost = estimate(
            made,
            cohorts,
            store,
            workers,
            device=options.device,
            data=_data(options),
            probe=options.probe,
            progress=lambda text: print(f"{text} ...", file=sys.stderr, flush=True) if sys.stderr.isatty() else None,
        )
    print_plan(made, store, cohorts, cost, all_cells=options.cells)
    _say_missing_weights(options, made, store)
    if cost is not None:
        check_hours(cost, options.max_hours)
    return _say_plugin_errors(methods)


def run(options: argparse.Namespace) -> int:
    """``kdbench run``; under torchrun, or in a Slurm step of several tasks, together with the other processes."""
    from kdbench.launch.together import launcher_of_environment, together

    environment = launcher_of_environment()
    if environment is None:
        return _run(options)
    options.on = "together"
    return together(environment, options.device, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from kdbench.launch.execute import execute, sort_out, summarize
    from kdbench.limits import check_cost
    from kdbench.progress import make_progress
    from kdbench.readiness import teachers_of
    from kdbench.teachers import ready_teachers, ready_weights

    store = Store(options.out)
    _check_where(options)
    made, methods = plan_of(options)
    store.check()
    made = check_cells(made)
    _check_backend(options.device if options.on in ("local", "inprocess") else None)
    if any(store.cell(cell).state() != "done" for cell in made.cells):
        _ready_data(options, made)
        ready_weights(options, made, store)
    store.check(writable=True)
    suite_name = _suite_name(options)
    begun = time.monotonic()
    todo = sort_out(made, store, options.retry_failed, lambda text: print(f"note: {text}", flush=True))
    if todo.train:
        workers = _workers(options, made)
        cohorts = _cohorts(made, todo.train, store, options, workers)
        check_cost(made, cohorts, store, options, workers)
        print(_opening(made, todo.train, todo.done, cohorts, workers, options.on), flush=True)
        launcher = _launcher(options, made, workers)
        ready_teachers(options, made, teachers_of(todo.train), store, launcher)
        progress = make_progress(len(made.cells), len(todo.done))
        try:
            with _sigterm_as_interrupt():
                summary = execute(
                    made,
                    todo,
                    store,
                    launcher,
                    suite_name,
                    data=str(_data(options)) if options.data else None,
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
            cell, made.choice, options.out, suite_name, options.data, options.device, options.weights, tolerance
        )
        print(f"\nfailed: {cell.key}\n  why:    {reason}\n  log:    {store.cell(cell).log}\n  replay: {replay}")
    problems = _say_plugin_errors(methods)
    return 1 if failures or problems else 0


def status(options: argparse.Namespace) -> int:
    """``kdbench status``."""
    from kdbench.statusview import print_status, watch_status

    store = Store(options.out)
    store.check()
    made, methods = plan_of(options)
    if options.watch is None:
        print_status(made, store)
    else:
        watch_status(made, store, options.watch)
    return _say_plugin_errors(methods)


def test(options: argparse.Namespace) -> int:
    """``kdbench test``."""
    methods = catalog(options.plugins)
    files = {Path(plugin) for plugin in options.plugins}
    own = [name for name, entry in methods.items() if entry.path in files]
    try:
        names = choose_methods(methods, options.methods or own or ([] if files else ["*"]))
    except UnknownNameError:
        _say_plugin_errors(methods)
        raise
    failed = 0
    if names:
        from kdbench.conformance.show import run_checks

        failed = run_checks([methods[name] for name in names])
    return 1 if _say_plugin_errors(methods) or failed else 0


def new_method(options: argparse.Namespace) -> int:
    """``kdbench new-method``."""
    from kdbench.template import check_name, next_steps, write_template

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
        _say_plugin_errors(methods)
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


def _data(options: argparse.Namespace) -> Path | None:
    return Path(options.data) if options.data else None


def _ready_data(options: argparse.Namespace, made: Plan) -> None:
    """Fetch the data set of a plan if that was asked for, and see that it is there before anything runs."""
    from kdbench.data.catalog import check_dataset, download_dataset

    wanted, folder = made.suite.dataset, _data(options)
    if options.download:
        download_dataset(wanted, folder, _say_download if sys.stderr.isatty() else None)
    for note in check_dataset(wanted, folder):
        print(f"kdbench: note: {note}", file=sys.stderr)


def _say_download(done: int, size: int) -> None:
    end = "\n" if done >= size else ""
    print(f"\rdownloading: {done / 1e6:.0f} of {size / 1e6:.0f} MB", end=end, file=sys.stderr, flush=True)


def _say_missing_weights(options: argparse.Namespace, made: Plan, store: Store) -> None:
    """Below a plan: what a run would refuse."""
    from kdbench.teachers import ready_weights

    try:
        ready_weights(options, made, store)
    except KdbenchError as error:
        print("", f"before this can run: {error}", *(f"  {line}" for line in getattr(error, "lines", ())), sep="\n")


def _suite_name(options: argparse.Namespace) -> str:
    return os.path.abspath(options.suite) if Path(options.suite).is_file() else str(options.suite)


def _check_backend(name: str | None) -> None:
    """Refuse a machine that cannot train before anything is written."""
    from kdbench.engine.backend import check_opencv

    check_opencv()
    if name is None:
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KdbenchError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _workers(options: argparse.Namespace, made: Plan) -> int:
    if options.on == "together":
        return 1
    if options.workers:
        return int(options.workers)
    gpus = _gpus(options)
    if options.on == "slurm":
        return 1  # Slurm knows how many; cohorts stay whole
    return gpus or max(1, (os.cpu_count() or 1) // made.suite.cpu_threads)


def _cohorts(
    made: Plan, cells: Sequence[Cell], store: Store, options: argparse.Namespace, workers: int
) -> Sequence[Cohort]:
    """What is trained together: as many cells as fit into memory, and enough cohorts for all workers."""
    from kdbench.launch.balance import balance
    from kdbench.room import available, estimate_memory, fit

    if not cells:
        return []
    cohorts = made.cohorts(True, cells) if options.solo else balance(made.cohorts(False, cells), workers)

    def estimated(parts: Sequence[Cohort]) -> Any:
        return estimate_memory(made, parts, store, options.device, _data(options))

    elsewhere = options.on in ("slurm", "ray")  # what their machines have is not known here
    if options.memory:
        limit = options.memory * 2**30
    else:
        limit = float("inf") if elsewhere else available(options.device, workers)
    if len(cells) > MANY_CELLS:
        print(f"working out what {counted(len(cells), 'cell')} take of memory ...", file=sys.stderr, flush=True)
    return fit(estimated(cohorts), limit, estimated)


def _gpus(options: argparse.Namespace) -> int:
    if options.device not in (None, "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def _check_where(options: argparse.Namespace) -> None:
    """Refuse options of engines that are not used, and engines that are not installed, before anything is written."""
    from kdbench.launch.remote import need_installed
    from kdbench.launch.slurm import parse_options

    for option, given, engine in (("--slurm", options.slurm, "slurm"), ("--ray-address", options.ray_address, "ray")):
        if given and options.on != engine:
            raise KdbenchError(f"{option} {given} is for --on {engine}, not for --on {options.on}")
    parse_options(options.slurm)
    if options.on in ("slurm", "ray"):
        need_installed({"slurm": "submitit", "ray": "ray"}[options.on], options.on)


def _launcher(options: argparse.Namespace, made: Plan, workers: int) -> Any:
    if options.on == "together":
        from kdbench.launch.together import TogetherLauncher

        return TogetherLauncher()
    if options.on == "inprocess":
        from kdbench.launch.inprocess import InProcessLauncher

        return InProcessLauncher()
    if options.on == "slurm":
        from kdbench.launch.slurm import SlurmLauncher, parse_options

        return SlurmLauncher(Path(options.out), options.workers, parse_options(options.slurm))
    if options.on == "ray":
        from kdbench.launch.rays import RayLauncher

        cpu = options.device not in (None, "cuda")
        return RayLauncher(options.ray_address, options.workers, cpu, made.suite.cpu_threads)
    from kdbench.launch.local import LocalLauncher

    return LocalLauncher(workers, _gpus(options))


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


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Any:
    """End in order on SIGTERM too: stop the workers, keep what is done."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _closing(made: Plan, store: Store) -> None:
    """Print the leaderboard of a plan, if anything of it is done."""
    from kdbench.report.leaderboard import build_leaderboard
    from kdbench.report.leaderboard_render import leaderboard_text

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

    from kdbench.report.leaderboard_render import leaderboard_rich

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


def _say_plugin_errors(methods: MethodCatalog) -> int:
    for error in methods.errors:
        print(f"kdbench: {error}\n{error.details}", file=sys.stderr)
    return 1 if methods.errors else 0


__all__ = ["again", "list", "new_method", "plan", "plan_of", "print_board", "run", "status", "test", "words"]
