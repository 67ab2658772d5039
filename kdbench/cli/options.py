"""The options that make a ``Request``, each declared once, and how a verb takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import click

from kdbench.cli import console, values
from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.matrix.cells import SPLITS, Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.matrix.settings import is_tuned
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.suite.suite import load_suite, suite_files

EPILOG = "Exit status: 0 done; 1 something failed; 2 the request is wrong; 130 interrupted."
FIELDS = {field.name: field for field in dataclasses.fields(Request)}


class Option(click.Option):
    """An option below a heading of the help. Its default is the request's."""

    def __init__(self, heading: str, *declarations: str, **settings: Any) -> None:
        field = FIELDS[declarations[-1].removeprefix("--").replace("-", "_")]
        if not settings.get("multiple"):
            settings["default"] = field.default
        super().__init__(declarations, **settings)
        self.heading = heading


class Verb(click.Command):
    """A command whose help shows its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                headings.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def verb(name: str, *fields: str) -> Callable[[Callable[..., int]], Verb]:
    """Make a verb of a function that takes a ``Request`` of these fields, and its own options; its docstring is the help."""

    def declare(function: Callable[..., int]) -> Verb:
        @functools.wraps(function)
        def call(**given: Any) -> int:
            return function(Request(**{field: given.pop(field) for field in fields}), **given)

        parameters = [PARAMETERS[field] for field in fields]
        return click.command(name, cls=Verb, params=parameters, epilog=EPILOG, options_metavar="[OPTIONS]")(call)

    return declare


def completed(valid: Callable[[], Iterable[str]]) -> Callable[[Any, Any, str], list[str]]:
    """Complete the last of several names in the shell."""

    def complete(context: Any, parameter: Any, incomplete: str) -> list[str]:
        before, comma, word = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in valid() if name.startswith(word)]

    return complete


_CELLS = "Cells (names or globs, separated by commas)"
_PLUGINS = "Plugins"
_TEACHERS = "Teachers (names or globs, separated by commas, or all)"
_FILES, _MACHINE, _TRAINING, _REST = "Files", "Machine", "Training", "Options"

PARAMETERS: dict[str, click.Parameter] = {parameter.name: parameter for parameter in (
    click.Argument(["suite"], default="digits", help="A suite, or the path of its YAML file (default: digits).",
                   shell_complete=completed(lambda: suite_files())),
    Option(_CELLS, "--protocol", metavar="NAME", help="How much of the suite is run (default: the suite's own)."),
    Option(_CELLS, "--methods", type=values.NAMES, metavar="A,B",
           help="Methods to take (default: the suite's own; tables: all that ran).",
           shell_complete=completed(lambda: catalog())),
    Option(_CELLS, "--pairs", type=values.NAMES, metavar="T--S,...",
           help="Pairs to take (default: the protocol's own; tables: all that ran)."),
    Option(_CELLS, "--seeds", type=values.SEEDS, metavar="0,1,2",
           help="Seeds to take (default: the protocol's own; tables: all that ran)."),
    Option(_CELLS, "--split", type=values.OneOf(SPLITS),
           metavar="NAME",
           help="Evaluate students on test (default) or validation."),
    Option(_CELLS, "--limit", type=values.IMAGES, metavar="N",
           help="Use only N images of each split: other results, sooner."),
    Option(_CELLS, "--set", multiple=True, metavar="METHOD.KEY=VALUE",
           help="Set a hyper-parameter of a method and its variants, or of a variant.",
           callback=lambda context, parameter, given: values.parse_set(given)),
    Option(_CELLS, "--variant", "variants", multiple=True, metavar="NAME=METHOD,...",
           help="Add a method with other values, as a row (w1=ofa,ofa_weight=1).",
           callback=lambda context, parameter, given: values.parse_variants(given)),
    Option(_CELLS, "--settings", type=values.PATH, metavar="FILE", help="Use the hyper-parameters that kdbench tune wrote (best.yaml)."),
    Option(_CELLS, "--as-tuned", is_flag=True, help="Use hyper-parameters published for single pairs."),
    Option(_PLUGINS, "--plugin", "plugins", multiple=True, metavar="FILE", help="Your own methods, metrics or nets; may be repeated."),
    Option(_PLUGINS, "--hook", "hooks", multiple=True, metavar="FILE", help="Your own mmengine hooks; may be repeated."),
    Option(_TEACHERS, "--train-teachers", type=values.NAMES, metavar="NAME,...",
           help="Train these from scratch, even where the suite has weights."),
    Option(_TEACHERS, "--fine-tune-teachers", type=values.NAMES, metavar="NAME,...",
           help="Fine-tune these from timm's weights, with a new classifier."),
    Option(_TEACHERS, "--teacher-tolerance", type=values.POINTS, metavar="POINTS",
           help="Largest deviation from the published accuracy (default: 1)."),
    Option(_TEACHERS, "--accept-teacher", is_flag=True,
           help="Train even if weights differ from those behind earlier results."),
    Option(_FILES, "--out", type=values.PATH, envvar="KDBENCH_OUT", metavar="DIR",
           help="Run directory; to read, also a CSV or submission (default: $KDBENCH_OUT or runs)."),
    Option(_FILES, "--data", type=values.PATH, envvar="KDBENCH_DATA", metavar="DIR",
           help="Folder of the data sets (default: $KDBENCH_DATA)."),
    Option(_FILES, "--weights", type=values.PATH, envvar="KDBENCH_WEIGHTS", metavar="DIR",
           help="Teachers' weights (default: $KDBENCH_WEIGHTS, or weights/ in --data)."),
    Option(_FILES, "--download", is_flag=True, help="Download the data set and weights where they are missing."),
    Option(_MACHINE, "--on", type=values.OneOf(("local", "slurm", "ray", "inprocess")),
           metavar="NAME", help="Where to train: local (default), slurm, ray ($RAY_ADDRESS) or inprocess."),
    Option(_MACHINE, "--slurm", metavar="NAME=VALUE,...", help="Options of sbatch: partition=gpu,time=4:00:00,gres=gpu:1."),
    Option(_MACHINE, "--workers", type=values.PROCESSES, metavar="N",
           help="Jobs at a time (default: by cores; on GPUs see docs/running.md)."),
    Option(_MACHINE, "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: all GPUs that torch sees, if any)."),
    Option(_MACHINE, "--memory", type=values.GIBIBYTES, metavar="GIB",
           help="Memory per worker; larger cohorts are split (default: what is free)."),
    Option(_MACHINE, "--loaders", type=values.LOADERS, metavar="N",
           help="Image decoders per worker (default: one per core, at most 8)."),
    Option(_MACHINE, "--solo", is_flag=True, help="Train every cell in a cohort of its own (same numbers, more time)."),
    Option(_TRAINING, "--compile", is_flag=True, help="Compile nets with torch.compile (the last bits of results differ)."),
    Option(_TRAINING, "--no-graphs", "graphs", is_flag=True, flag_value=False,
           help="Train without CUDA graphs (same numbers, more time)."),
    Option(_TRAINING, "--cuda-streams", type=values.STREAMS, metavar="N",
           help="CUDA graphs of a cohort that run side by side on a GPU (default: 1; not yet tried)."),
    Option(_TRAINING, "--deterministic", is_flag=True,
           help="Use deterministic kernels only; methods that need others fail."),
    Option(_TRAINING, "--cudnn-benchmark", is_flag=True,
           help="Let cuDNN choose algorithms by time (last bits differ between runs)."),
    Option(_TRAINING, "--log", type=values.NAMES, metavar="NAME,...", help="Trackers: tensorboard, wandb, mlflow."),
    Option(_TRAINING, "--stall", type=values.MINUTES, metavar="MINUTES",
           help="Restart a worker that takes no step for this long (default: 30; 0: never)."),
    Option(_TRAINING, "--retry-failed", is_flag=True, help="Train failed cells again."),
    Option(_REST, "--confirm", type=values.NAMES, metavar="A,B",
           help="Declare, before there are results, which methods' gains are to be tested."),
    Option(_REST, "--max-hours", type=values.HOURS, metavar="H",
           help="Refuse a plan estimated at more hours of computing."),
    Option(_REST, "--yes", is_flag=True, help="Do not ask before more than a day of computing; with prune: delete."),
)}  # fmt: skip

CELLS = (
    *("suite", "protocol", "methods", "pairs", "seeds", "split", "limit"),
    *("set", "variants", "settings", "as_tuned", "plugins", "hooks"),
)
TEACHERS = ("train_teachers", "fine_tune_teachers")
FILES = ("out", "data", "weights", "download")
MACHINE = ("on", "slurm", "workers", "device", "memory", "loaders", "solo")


def plan_of(request: Request) -> Plan:
    """The plan of a request."""
    suite = load_suite(request.suite)
    methods = catalog(request.plugins, suite.net_files)
    try:
        return make_plan(suite, request, methods)
    except UnknownNameError:
        console.plugin_errors(methods.errors)
        raise


def note_untuned(plan: Plan) -> None:
    """Name the pairs of ``--as-tuned`` for which nothing was published."""
    untuned: dict[str, dict[str, None]] = {}
    for cell in plan.cells if plan.request.as_tuned else ():
        if cell.settings and not is_tuned(cell.settings):
            untuned.setdefault(cell.pair, {})[cell.method] = None
    for pair, names in untuned.items():
        console.note(f"{pair}: no published values of {', '.join(names)}; the suite's own are used")


def plan_on_disk(plan: Plan, store: Store) -> Plan:
    """The plan with teachers trained or fine-tuned here, where the run directory has only such cells of a teacher."""

    def started(made: Plan, teacher: str) -> bool:
        return any(store.look(cell).state != "planned" for cell in made.cells if cell.teacher.name == teacher)

    retrained: dict[str, Any] = {}
    for name in dict.fromkeys(teacher.name for teacher in plan.teachers):
        if not any(store.root.glob(f"teachers/{name}-*")) or started(plan, name):
            continue
        for field in TEACHERS:
            with contextlib.suppress(KdbenchError):  # not every net can be fine-tuned
                changed: dict[str, Any] = {field: (name,)}
                if started(make_plan(plan.suite, replace(plan.request, **changed), plan.catalog), name):
                    retrained[field] = (*retrained.get(field, ()), name)
                    break
    return make_plan(plan.suite, replace(plan.request, **retrained), plan.catalog) if retrained else plan
