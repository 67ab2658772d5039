"""``kdbench teachers``: where the weights of a suite's teachers come from, whether they are there, and what they reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from kdbench.cli import console
from kdbench.cli.options import CELLS, FILES, TEACHERS, plan_of, verb
from kdbench.cli.run import prepare_teachers
from kdbench.cli.values import NAMES, PATH
from kdbench.errors import KdbenchError, counted
from kdbench.launch.choose import check_machine, choose_machine, launcher_of, ready_data
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request, retrained_teachers
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.folders import Store
from kdbench.teachers.readiness import check_accuracies, check_weights, drop_damaged, origin_of, verdict_of
from kdbench.teachers.weights import Weights, fetch_weights, find_weights


@verb("teachers", *CELLS, *TEACHERS, "teacher_tolerance", *FILES, "on", "slurm", "workers", "device")
@click.option("--fetch", is_flag=True, help="Download the weights that are missing.")
@click.option(
    "--train", is_flag=False, flag_value="all", type=NAMES, default="", metavar="[NAME,...]",
    help="Train teachers now, as --train-teachers (default: all).",
)  # fmt: skip
@click.option(
    "--fine-tune", is_flag=False, flag_value="all", type=NAMES, default="", metavar="[NAME,...]",
    help="Fine-tune teachers now, as --fine-tune-teachers (default: all).",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Evaluate all teachers again.")
@click.option(
    "--convert",
    nargs=2,
    type=PATH,
    default=None,
    metavar="IN OUT",
    help="Write the tensors of a file that cannot be loaded without running code.",
)
@click.option("--trust", is_flag=True, help="Allow --convert to run the code inside IN, in a process of its own.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def teachers(
    request: Request,
    fetch: bool,
    train: tuple[str, ...],
    fine_tune: tuple[str, ...],
    verify: bool,
    convert: tuple[str, str] | None,
    trust: bool,
    as_json: bool,
) -> int:
    """Show, fetch, train, verify or convert teachers."""
    check_machine(request)
    if convert is not None:
        return _convert(Path(convert[0]), Path(convert[1]), trust)
    if trust:
        raise KdbenchError("--trust is for --convert IN OUT")
    store = Store(request.out)
    store.check()
    request = replace(
        request,
        train_teachers=(*request.train_teachers, *train),
        fine_tune_teachers=(*request.fine_tune_teachers, *fine_tune),
    )
    plan = plan_of(request)
    status = 0
    if fetch:
        status = _fetch(plan)
    if train or fine_tune:
        _train(plan, store)
    if verify:
        status = max(status, _verify(plan, store))
    rows = [_row(teacher, store, request) for teacher in plan.teachers]
    console.say(json.dumps(rows, indent=1) if as_json else _rows_text(plan, rows))
    return max(status, console.plugin_errors(plan.catalog.errors))


def _convert(source: Path, target: Path, trust: bool) -> int:
    from kdbench.teachers.convert import convert

    if not trust:
        raise KdbenchError(
            f"--convert runs the code that is inside {source}; add --trust if you trust those who made the file"
        )
    console.say(convert(source, target))
    return 0


def _fetch(plan: Plan) -> int:
    """Fetch what is missing; one failure does not keep the others from being fetched."""
    status, folder = 0, plan.request.weights_folder
    for teacher in _with_weights(plan):
        try:
            weights = find_weights(teacher.name, teacher.net, folder)
            if weights.path is None:
                console.say(f"{teacher.name}: fetching {weights.origin} from {weights.where_to_get}")
                with console.download_bar() as bar:
                    console.say(f"{teacher.name}: {fetch_weights(weights, folder, bar).path}")
        except KdbenchError as problem:
            status = 1
            console.error(problem)
    return status


def _ready(plan: Plan, teachers: Sequence[TeacherPlan], store: Store) -> None:
    """Check data and weights, before anything is written; forget what is damaged."""
    from kdbench.engine.process import check_opencv

    request = plan.request
    check_opencv()
    with console.download_bar() as bar:
        ready_data(plan, console.note, bar)
        check_weights(teachers, store, request, console.note, bar if request.download else None)
    store.check(writable=True)
    drop_damaged(teachers, store, console.note)


def _train(plan: Plan, store: Store) -> None:
    names = retrained_teachers(plan.request, plan.suite.teachers, plan.suite.name)
    chosen = [teacher for teacher in plan.teachers if teacher.name in names]
    if not chosen:
        raise KdbenchError(
            f"protocol {plan.under.name} of suite {plan.suite.name} has none of the teachers {', '.join(names)}; "
            "choose --protocol or --pairs that have"
        )
    _ready(plan, chosen, store)
    left = [teacher for teacher in chosen if store.result_of_teacher(teacher) is None]
    prepare_teachers(plan, left, store, launcher_of(plan, choose_machine(plan.request, plan)))
    original = replace(plan.request, train_teachers=(), fine_tune_teachers=())
    hashes = {teacher.hash for teacher in make_plan(plan.suite, original, plan.catalog).teachers}
    if any(teacher.hash not in hashes for teacher in chosen):
        named = (
            ("--train-teachers", plan.request.train_teachers),
            ("--fine-tune-teachers", plan.request.fine_tune_teachers),
        )
        given = " ".join(f"{option} {','.join(names)}" for option, names in named if names)
        console.say(f"they are used by: kdbench run {plan.request.suite} {given}")


def _verify(plan: Plan, store: Store) -> int:
    """Measure every prepared teacher again. Exit status 1 if one differs from its record or its published accuracy."""
    from kdbench.engine import prepare_teacher, train

    request = plan.request
    _ready(plan, plan.teachers if request.download else _with_weights(plan), store)
    new = [each for each in plan.teachers if not each.trained_here and store.result_of_teacher(each) is None]
    prepare_teachers(plan, new, store, launcher_of(plan, choose_machine(request, plan)))
    status = 0
    device = train.setup(plan.suite.cpu_threads, request.device)
    for teacher in plan.teachers:
        result = store.result_of_teacher(teacher)
        if result is None:
            console.say(f"teacher {teacher.name}: not trained yet; kdbench run trains it")
        elif teacher not in new:
            recorded = result.top1
            measured = prepare_teacher.remeasure(plan, teacher, store, device)["top1"]
            same = abs(measured - recorded) < 0.005
            status = status if same else 1
            differs = "" if same else f", which differs from the {recorded:.2f} % of its record"
            console.say(f"teacher {teacher.name}: measured again, top-1 {measured:.2f} %{differs}")
    try:
        check_accuracies(plan, plan.teachers, store, console.say)
    except KdbenchError as problem:
        console.error(problem)
        return 1
    return status


def _with_weights(plan: Plan) -> list[TeacherPlan]:
    return [teacher for teacher in plan.teachers if teacher.net.weights != "train"]


def _row(teacher: TeacherPlan, store: Store, request: Request) -> dict[str, Any]:
    """One teacher as plain values."""
    result = store.result_of_teacher(teacher)
    weights: Weights | None = None
    problem = None
    if teacher.net.weights != "train":
        try:
            weights = find_weights(teacher.name, teacher.net, request.weights_folder)
        except KdbenchError as error:
            problem = str(error)
    verdict = verdict_of(teacher, store)
    return {
        "teacher": teacher.name,
        "net": teacher.net.model,
        "weights": origin_of(teacher),
        "trained_here": teacher.trained_here,
        "file": str(weights.path) if weights and weights.path else None,
        "where_to_get": weights.where_to_get if weights else None,
        "problem": problem,
        "published_top1": None if teacher.trained_here else teacher.net.published_top1,
        "published_source": None if teacher.trained_here else teacher.net.published_source,
        "top1": result.top1 if result else None,
        "agrees": verdict.agrees if verdict and verdict.compared else None,
        "checksum": result.checksum if result else None,
        "folder": teacher.folder if result else None,
    }


def _rows_text(plan: Plan, rows: Sequence[dict[str, Any]]) -> str:
    table = [
        {
            "teacher": row["teacher"],
            "net": row["net"],
            "weights": row["weights"],
            "file": _file_state(row),
            "published": _number(row["published_top1"]),
            "measured": _number(row["top1"]) + ("" if row["agrees"] is not False else " (deviates)"),
            "checksum": (row["checksum"] or "-")[:10],
        }
        for row in rows
    ]
    lines = [
        f"suite {plan.suite.name}, protocol {plan.under.name}: {counted(len(rows), 'teacher')}",
        tabulate(table, headers="keys", tablefmt="simple", disable_numparse=True),
    ]
    missing = [row for row in rows if _file_state(row) == "missing"]
    lines += [f"{row['teacher']}: {row['problem']}" for row in rows if row["problem"]]
    lines += [
        f"{row['teacher']}: missing; available from {row['where_to_get']}" for row in missing if not row["problem"]
    ]
    if missing:
        lines.append("--fetch downloads what has an address; --train or --fine-tune makes a teacher here")
    return "\n".join(lines)


def _file_state(row: dict[str, Any]) -> str:
    if row["weights"] == "trained here":
        return "-"
    return row["file"] or ("not needed any more" if row["checksum"] else "missing")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
