"""``kdbench teachers``: where the weights of a suite's teachers come from, whether they are there, and what they reach."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdbench.cli.commands import plan_of, say_plugin_errors
from kdbench.errors import KdbenchError, counted
from kdbench.launch.choose import (
    check_backend,
    data_folder,
    launcher_of,
    ready_data,
    say_download,
    sigterm_as_interrupt,
    suite_name,
    workers_of,
)
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Choice, retrained_teachers
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.folders import Store
from kdbench.suite.suite import split_pair
from kdbench.teachers.readiness import (
    check_accuracies,
    check_weights,
    drop_damaged,
    origin_of,
    raise_all,
    teachers_of,
    verdict_of,
)
from kdbench.teachers.verification import TOLERANCE, Verdict
from kdbench.teachers.weights import Weights, fetch_weights, find_weights, weights_folder


def teachers(options: argparse.Namespace) -> int:
    """``kdbench teachers``."""
    store = Store(options.out)
    store.check()
    if options.train or options.fine_tune:
        options.train_teachers = ",".join(filter(None, (options.train_teachers, options.train)))
        options.fine_tune_teachers = ",".join(filter(None, (options.fine_tune_teachers, options.fine_tune)))
    made, methods = plan_of(options)
    status = 0
    if options.fetch:
        status = _fetch(made, folder_of(options))
    if options.train or options.fine_tune:
        _train(made, store, options)
    if options.verify:
        status = max(status, _verify(made, store, options))
    rows = [_row(teacher, store, folder_of(options)) for teacher in made.teachers]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_rows(made, rows)
    return max(status, say_plugin_errors(methods))


def folder_of(options: argparse.Namespace) -> Path | None:
    """The folder of the weights."""
    return weights_folder(options.weights, options.data)


# What kdbench run does before it trains


def ready_weights(options: argparse.Namespace, made: Plan, store: Store) -> None:
    """See that the weights of all teachers of what is left to train are there; fetch them if that was asked for.

    Raises:
        KdbenchError: if some are missing, or are not the ones that the suite means.
    """
    over = ("done",) if getattr(options, "retry_failed", False) else ("done", "failed")
    left = [cell for cell in made.cells if store.cell(cell).state() not in over]
    check_weights(
        teachers_of(left),
        store,
        folder_of(options),
        options.suite,
        _progress() if options.download else None,
        lambda text: print(f"note: {text}", flush=True),
    )


def ready_teachers(
    options: argparse.Namespace, made: Plan, wanted: Sequence[TeacherPlan], store: Store, launcher: Any
) -> None:
    """Load and measure the teachers that come with weights, and see that they reach what was published of them.

    Raises:
        KdbenchError: if one cannot be loaded, or is far from its published accuracy.
    """
    drop_damaged(wanted, store, lambda text: print(f"note: {text}", flush=True))
    loaded = [teacher for teacher in wanted if not teacher.trained_here]
    _prepare(
        options, made, [teacher for teacher in loaded if store.result_of_teacher(teacher) is None], store, launcher
    )
    check_accuracies(loaded, store, options.teacher_tolerance, lambda text: print(text, flush=True))


def _prepare(
    options: argparse.Namespace, made: Plan, wanted: Sequence[TeacherPlan], store: Store, launcher: Any
) -> None:
    from kdbench.cli.progress import make_progress
    from kdbench.launch.execute import prepare

    if not wanted:
        return
    what = "train" if wanted[0].trained_here else "load and measure"
    print(f"{made.suite.name}, protocol {made.protocol}: {counted(len(wanted), 'teacher')} to {what}", flush=True)
    progress = make_progress(0, 0)
    begun = time.monotonic()
    try:
        with sigterm_as_interrupt():
            problems = prepare(
                made,
                wanted,
                store,
                launcher,
                suite_name(options),
                data=str(data_folder(options)) if options.data else None,
                device=options.device,
                weights=options.weights,
                on_jobs=progress.start,
                on_event=progress.event,
                on_tick=progress.tick,
            )
    finally:
        progress.stop()
    raise_all(problems, "{} teachers cannot be prepared")
    print(f"{counted(len(wanted), 'teacher')} ready in {time.monotonic() - begun:.0f} s", flush=True)


# What the options of kdbench teachers do


def _fetch(made: Plan, folder: Path | None) -> int:
    """Fetch what is missing; one failure does not keep the others from being fetched."""
    failed = 0
    for teacher in _with_weights(made):
        try:
            weights = find_weights(teacher.name, teacher.net, folder)
            if weights.path is None:
                print(f"{teacher.name}: fetching {weights.origin} from {weights.where_to_get}", flush=True)
                print(f"{teacher.name}: {fetch_weights(weights, folder, _progress()).path}", flush=True)
        except KdbenchError as error:
            failed += 1
            print(f"kdbench: {error}", file=sys.stderr)
    return 1 if failed else 0


def _train(made: Plan, store: Store, options: argparse.Namespace) -> None:
    chosen = _trained_by_choice(made)
    check_backend(options.device)
    ready_data(options, made)
    check_weights(chosen, store, folder_of(options), options.suite, _progress() if options.download else None)
    store.check(writable=True)
    drop_damaged(chosen, store, lambda text: print(f"note: {text}", flush=True))
    todo = [teacher for teacher in chosen if store.result_of_teacher(teacher) is None]
    _prepare(options, made, todo, store, launcher_of(options, made, workers_of(options, made)))
    named = (("--train-teachers", made.choice.train_teachers), ("--fine-tune-teachers", made.choice.fine_tune_teachers))
    given = " ".join(f"{option} {','.join(names)}" for option, names in named if names)
    switched = _originals(made)
    if any(switched[teacher.name].hash != teacher.hash for teacher in chosen):
        print(f"they are used by: kdbench run {options.suite} {given}", flush=True)


def _trained_by_choice(made: Plan) -> list[TeacherPlan]:
    names = retrained_teachers(made.choice, [split_pair(pair)[0] for pair in made.suite.pairs], made.suite.name)
    chosen = [teacher for teacher in made.teachers if teacher.name in names]
    if not chosen:
        raise KdbenchError(
            f"protocol {made.protocol} of suite {made.suite.name} has none of the teachers {', '.join(names)}; "
            "choose --protocol or --pairs that have"
        )
    return chosen


def _originals(made: Plan) -> dict[str, TeacherPlan]:
    """The teachers as the suite has them."""
    choice: Choice = dataclasses.replace(made.choice, train_teachers=(), fine_tune_teachers=())
    return {teacher.name: teacher for teacher in make_plan(made.suite, choice, made.catalog).teachers}


def _verify(made: Plan, store: Store, options: argparse.Namespace) -> int:
    """Measure every teacher that there is again. Exit status 1 if one differs from its record or from what was published."""
    from kdbench.engine import prepare_teacher, train

    check_backend(options.device)
    ready_data(options, made)
    check_weights(
        made.teachers if options.download else _with_weights(made),
        store,
        folder_of(options),
        options.suite,
        _progress() if options.download else None,
    )
    store.check(writable=True)
    drop_damaged(made.teachers, store, lambda text: print(f"note: {text}", flush=True))
    new = [t for t in made.teachers if not t.trained_here and store.result_of_teacher(t) is None]
    _prepare(options, made, new, store, launcher_of(options, made, workers_of(options, made)))
    failed = 0
    fresh = {teacher.hash for teacher in new}
    device = train.setup(made.suite.cpu_threads, options.device)
    for teacher in made.teachers:
        result = store.result_of_teacher(teacher)
        if result is None:
            print(f"teacher {teacher.name}: not trained yet; kdbench run trains it", flush=True)
            continue
        recorded = result["metrics"]["last"]["top1"]
        if teacher.hash not in fresh:
            measured = prepare_teacher.remeasure(made, teacher, store, device, data_folder(options))["top1"]
            same = abs(measured - recorded) < 0.005
            failed += not same
            differs = "" if same else f", which differs from the {recorded:.2f} % of its record"
            print(f"teacher {teacher.name}: measured again, top-1 {measured:.2f} %{differs}", flush=True)
    try:
        tolerance = options.teacher_tolerance
        check_accuracies(made.teachers, store, tolerance, lambda text: print(text, flush=True))
    except KdbenchError as error:
        failed += 1
        print(f"kdbench: {error}", file=sys.stderr)
        for line in getattr(error, "lines", ()):
            print(f"  {line}", file=sys.stderr)
    return 1 if failed else 0


def _with_weights(made: Plan) -> list[TeacherPlan]:
    return [teacher for teacher in made.teachers if teacher.net.weights != "train"]


def _progress() -> Callable[[int, int], None]:
    return say_download if sys.stderr.isatty() else lambda done, size: None


# The listing


def _row(teacher: TeacherPlan, store: Store, folder: Path | None) -> dict[str, Any]:
    """One teacher as plain values."""
    result = store.result_of_teacher(teacher)
    weights: Weights | None = None
    problem = None
    if teacher.net.weights != "train":
        try:
            weights = find_weights(teacher.name, teacher.net, folder)
        except KdbenchError as error:
            problem = str(error)
    verdict: Verdict | None = verdict_of(teacher, store, TOLERANCE)
    return {
        "teacher": teacher.name,
        "net": teacher.net.timm,
        "weights": origin_of(teacher),
        "trained_here": teacher.trained_here,
        "file": str(weights.path) if weights and weights.path else None,
        "where_to_get": weights.where_to_get if weights else None,
        "problem": problem,
        "published_top1": None if teacher.trained_here else teacher.net.published_top1,
        "published_source": None if teacher.trained_here else teacher.net.published_source,
        "top1": result["metrics"]["last"]["top1"] if result else None,
        "agrees": verdict.agrees if verdict and verdict.compared else None,
        "checksum": result["checksum"] if result else None,
        "folder": teacher.folder if result else None,
    }


def _print_rows(made: Plan, rows: Sequence[dict[str, Any]]) -> None:
    from tabulate import tabulate

    print(f"suite {made.suite.name}, protocol {made.protocol}: {counted(len(rows), 'teacher')}")
    table = [
        [
            row["teacher"],
            row["net"],
            row["weights"],
            _file_state(row),
            _number(row["published_top1"]),
            _number(row["top1"]) + ("" if row["agrees"] is not False else " (far off)"),
            (row["checksum"] or "-")[:10],
        ]
        for row in rows
    ]
    headers = ["teacher", "net", "weights", "file", "published", "measured", "checksum"]
    print(tabulate(table, headers=headers, tablefmt="simple", disable_numparse=True))
    for row in rows:
        if row["problem"]:
            print(f"{row['teacher']}: {row['problem']}")
        elif _file_state(row) == "missing":
            print(f"{row['teacher']}: missing; it can be had from {row['where_to_get']}")
    if any(_file_state(row) == "missing" for row in rows):
        print("--fetch downloads what has an address; --train or --fine-tune makes a teacher here")


def _file_state(row: dict[str, Any]) -> str:
    if row["weights"] == "trained here":
        return "-"
    return row["file"] or ("not needed any more" if row["checksum"] else "missing")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
