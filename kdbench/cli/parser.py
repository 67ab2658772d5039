"""The command line: verbs and their arguments. Nothing here imports torch; a verb that needs it does so itself."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kdbench import __version__
from kdbench.cli import values
from kdbench.errors import KdbenchError, nearest
from kdbench.teachers.verification import TOLERANCE

DESCRIPTION = """Benchmark suite for knowledge distillation between different architectures.

kdbench run with nothing else trains the suite "digits" on this machine, in minutes, and prints a leaderboard."""

EPILOG = "exit status: 0 all done; 1 some cells failed; 2 the request is wrong; 130 interrupted"

#: Verbs that are not in ``kdbench.cli.commands``.
MODULES = {
    **dict.fromkeys(("table", "leaderboard", "classes", "plots", "report"), "kdbench.cli.tables"),
    "teachers": "kdbench.cli.teachers",
}


class _Parser(argparse.ArgumentParser):
    """One line on an error, with the nearest valid name, and exit status 2."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            word = message.split(":", 1)[1].split()[0]
            options = [option for action in self._actions for option in action.option_strings]
            message = (
                f"unknown argument {word!r}; {nearest(word, options)}"
                if word.startswith("-")
                else f"unexpected argument {word!r}"
            )
        elif "invalid choice:" in message:
            head, _, rest = message.partition("invalid choice:")
            word = rest.split("(choose from")[0].strip().strip("'")
            name = head.removeprefix("argument ").strip().rstrip(":")
            named = (
                action for action in self._actions if name in (*action.option_strings, action.dest, action.metavar)
            )
            valid = [str(choice) for action in named for choice in action.choices or ()]
            message = f"unknown {name} {word!r}; {nearest(word, valid)}"
        self.exit(2, f"kdbench: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        subparser = _subparsers(parser).get(options.verb or "", parser)
        subparser.error(f"unrecognized arguments: {' '.join(rest)}")
    if not options.verb:
        parser.print_help()
        return 0
    module = importlib.import_module(MODULES.get(options.verb, "kdbench.cli.commands"))
    try:
        return int(getattr(module, options.verb.replace("-", "_"))(options))
    except KdbenchError as error:
        print(f"kdbench: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
        for line in getattr(error, "lines", ()):
            print(f"  {line}", file=sys.stderr)
        details = getattr(error, "details", "")
        if details and os.environ.get("KDBENCH_DEBUG"):
            print(details, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kdbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"kdbench: {error.strerror}{where}; what was written before is kept", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="kdbench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kdbench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)

    listing = _verb(verbs, "list", "what there is: methods, pairs, suites, nets, data sets")
    listing.add_argument("what", nargs="?", choices=("methods", "pairs", "suites", "nets", "datasets"), default=None)
    listing.add_argument("--suite", default=None, metavar="SUITE", help="whose pairs to list (default: of all suites)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _plugins(listing)

    plan = _verb(verbs, "plan", "cells, their state, what will be trained together, and what it costs; trains nothing")
    _choice(plan)
    _out(plan)
    _where(plan)
    plan.add_argument("--no-probe", dest="probe", action="store_false", help="estimate without timing a few steps")
    _hours(plan)
    plan.add_argument("--cells", action="store_true", help="list every cell")

    run = _verb(verbs, "run", "train the cells that are not done, then print the leaderboard")
    _choice(run)
    _out(run)
    _where(run)
    _hours(run)
    _tolerance(run)
    _tuning(run)
    run.add_argument("--retry-failed", action="store_true", help="train failed cells again")
    run.add_argument("--yes", action="store_true", help="do not ask before more than a day of computing")
    run.add_argument(
        "--stall", type=values.minutes, default=30.0, metavar="MINUTES",
        help="end and restart a worker that makes no step for so long (default: 30; 0: never)",
    )  # fmt: skip

    status = _verb(verbs, "status", "done, running (where), failed (why), to do, stale")
    _choice(status)
    _out(status)
    status.add_argument(
        "--watch", nargs="?", type=values.seconds, const=5.0, default=None, metavar="SECONDS",
        help="show it again every so often until nothing is left (default: 5)",
    )  # fmt: skip

    teachers = _verb(
        verbs, "teachers", "where the teachers' weights come from, whether they are there, what they reach"
    )
    _choice(teachers)
    _out(teachers)
    _where(teachers)
    _tolerance(teachers)
    act = teachers.add_argument_group("act (names or globs, separated by commas; no NAME means all)")
    act.add_argument("--fetch", action="store_true", help="download the weights that are missing")
    act.add_argument(
        "--train", nargs="?", const="all", default="", metavar="NAME,...",
        help="train teachers here from scratch, under the suite's recipe",
    )  # fmt: skip
    act.add_argument(
        "--fine-tune", nargs="?", const="all", default="", metavar="NAME,...",
        help="train teachers here from timm's pretrained weights, with a new classifier",
    )  # fmt: skip
    act.add_argument("--verify", action="store_true", help="measure all teachers again")
    teachers.add_argument("--json", action="store_true", help="as JSON")

    table = _verb(verbs, "table", "pairs by methods, for a paper")
    _choice(table)
    _out(table)
    table.add_argument(
        "--format", choices=("text", "markdown", "latex", "csv", "html"), default="text", help="default: text"
    )
    table.add_argument(
        "--layout", choices=("pairs", "methods"), default="pairs", help="what the rows are (default: pairs)"
    )
    table.add_argument(
        "--select", choices=("last", "best"),
        help="the last epoch's figure, or the best test epoch's, which is optimistic (default: the protocol's, mostly last)",
    )  # fmt: skip
    table.add_argument("--metric", default="top1", help="default: top1")
    table.add_argument(
        "--against-published", action="store_true", help="our figures beside those of papers, with their sources"
    )
    table.add_argument("--to", metavar="FILE", help="write to a file")

    leaderboard = _verb(verbs, "leaderboard", "methods ranked, with intervals, wins and harms, cost")
    _choice(leaderboard)
    _out(leaderboard)
    leaderboard.add_argument("--format", choices=("text", "markdown"), default="text", help="default: text")
    leaderboard.add_argument("--select", choices=("last", "best"), help="default: the protocol's, mostly last")
    leaderboard.add_argument("--metric", default="top1", help="default: top1")
    leaderboard.add_argument(
        "--tie-band",
        type=values.points,
        default=None,
        metavar="X",
        help="differences within it are ties (default: 0.2 points, 0.01 nats)",
    )
    leaderboard.add_argument("--to", metavar="FILE", help="write to a file; .png, .svg and .pdf draw a picture")

    classes = _verb(verbs, "classes", "accuracy by class or superclass, and which classes a method gains or loses")
    _choice(classes)
    _out(classes)
    classes.add_argument("--by", choices=("class", "superclass"), default="class", help="default: class")
    classes.add_argument(
        "--show", choices=("accuracy", "gain"), default="accuracy",
        help="accuracy in percent (default), or gain over KD in points",
    )  # fmt: skip
    classes.add_argument(
        "--worst",
        type=values.classes,
        default=None,
        metavar="N",
        help="only the N classes that are lowest, lowest first",
    )
    classes.add_argument(
        "--format", choices=("text", "markdown", "latex", "csv", "html"), default="text",
        help="default: text; csv holds every pair",
    )  # fmt: skip
    classes.add_argument("--to", metavar="FILE", help="write to a file")

    plots = _verb(verbs, "plots", "figures for a paper, with their captions")
    _choice(plots)
    _out(plots)
    plots.add_argument("--to", metavar="FOLDER", required=True, help="where to write them")
    plots.add_argument(
        "--format", default="png,svg,pdf", metavar="A,B", help="some of png, svg, pdf (default: png,svg,pdf)"
    )
    plots.add_argument(
        "--width", choices=("full", "column"), default="full",
        help="7 inches (default), or 3.3 inches for one column of two",
    )  # fmt: skip
    plots.add_argument("--select", choices=("last", "best"), help="default: the protocol's, mostly last")
    plots.add_argument("--metric", default="top1", help="default: top1")

    report = _verb(verbs, "report", "one HTML page: summary, tables, plots, and every cell to open")
    _choice(report)
    _out(report)
    report.add_argument("--to", default="report.html", metavar="FILE", help="default: report.html")
    report.add_argument("--select", choices=("last", "best"), help="default: the protocol's, mostly last")

    test = _verb(verbs, "test", "check methods against the contract, on every kind of pair")
    test.add_argument(
        "methods", nargs="*", metavar="METHOD", help="names or globs (default: those of --plugin, or else all methods)"
    )
    _plugins(test)

    new = _verb(verbs, "new-method", "write a working method to start from")
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and _")
    new.add_argument("--to", metavar="FILE", help="where to write it (default: NAME.py)")
    _plugins(new)
    return parser


def _verb(verbs: argparse._SubParsersAction[_Parser], name: str, text: str) -> _Parser:
    return verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG, allow_abbrev=False
    )


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        nargs="?",
        default="digits",
        metavar="SUITE",
        help="a suite, or the path of its YAML file (default: digits)",
    )
    group = parser.add_argument_group("choice (names or globs, separated by commas)")
    group.add_argument(
        "--protocol", default="", metavar="NAME", help="how much of the suite (default: the suite's own)"
    )
    group.add_argument("--methods", default="", metavar="A,B", help="default: the suite's own")
    group.add_argument("--pairs", default="", metavar="T--S,...", help="default: the protocol's own")
    group.add_argument("--seeds", default="", metavar="0,1,2", help="default: the protocol's own")
    group.add_argument(
        "--split", default="test", choices=("test", "validation"),
        help="what students are measured on; use validation to search hyper-parameters (default: test)",
    )  # fmt: skip
    group.add_argument(
        "--limit",
        type=values.images,
        default=None,
        metavar="N",
        help="use only N images of each split, evenly spread: for trying out (other results than without it)",
    )
    group.add_argument(
        "--set",
        dest="set",
        action="append",
        default=[],
        metavar="METHOD.NAME=VALUE",
        help="a hyper-parameter; may be repeated",
    )
    group.add_argument(
        "--train-teachers",
        default="",
        metavar="NAME,...",
        help="train these teachers here from scratch instead of taking the suite's weights, or all",
    )
    group.add_argument(
        "--fine-tune-teachers",
        default="",
        metavar="NAME,...",
        help="train these teachers here from timm's pretrained weights, with a new classifier, or all",
    )
    _plugins(group)


def _plugins(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a method of your own; may be repeated",
    )


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=values.folder,
        default=os.environ.get("KDBENCH_OUT") or "runs",
        metavar="DIR",
        help="run directory (default: $KDBENCH_OUT or runs)",
    )


def _where(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where")
    group.add_argument(
        "--data",
        default=os.environ.get("KDBENCH_DATA"),
        metavar="DIR",
        help="where data sets lie (default: $KDBENCH_DATA)",
    )
    group.add_argument(
        "--weights",
        type=values.folder,
        default=os.environ.get("KDBENCH_WEIGHTS") or None,
        metavar="DIR",
        help="where teachers' weights lie (default: $KDBENCH_WEIGHTS, or weights/ in --data)",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="fetch the suite's data set, and weights of its teachers, that are not there",
    )
    group.add_argument(
        "--on", choices=("local", "slurm", "ray", "inprocess"), default="local",
        help="processes of this machine (default), Slurm, Ray, or this process",
    )  # fmt: skip
    group.add_argument(
        "--slurm", default="", metavar="NAME=VALUE,...", help="for sbatch: partition=gpu,time=4:00:00,gres=gpu:1"
    )
    group.add_argument(
        "--ray-address", default=None, metavar="HOST:PORT", help="of a running cluster (default: start one here)"
    )
    group.add_argument(
        "--workers",
        type=values.count,
        default=None,
        metavar="N",
        help="processes at a time (default: one per GPU, or cores by threads)",
    )
    group.add_argument("--device", default=None, metavar="NAME", help="cpu, cuda (default: cuda if there is one)")
    group.add_argument(
        "--memory", type=values.gibibytes, default=None, metavar="GIB",
        help="of the device, for each worker: larger cohorts are split (default: what is free)",
    )  # fmt: skip
    group.add_argument(
        "--solo", action="store_true", help="train every cell in a cohort of its own (same numbers, more time)"
    )


def _tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed (results may differ in their last bits, and say what was used)")
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the nets with torch.compile; what does not compile runs as it is",
    )
    group.add_argument("--channels-last", action="store_true", help="weights of CNNs in channels-last order")
    group.add_argument(
        "--cache-teacher", type=values.gigabytes, default=0.0, metavar="GB",
        help="keep logits and embeddings of teachers, for every batch, in so many GB below --out, for cells trained later",
    )  # fmt: skip
    group.add_argument(
        "--no-graphs", dest="graphs", action="store_false",
        help="on a GPU, launch every kernel of a step instead of replaying CUDA graphs (same numbers, more time)",
    )  # fmt: skip


def _tolerance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher-tolerance", type=values.points, default=TOLERANCE, metavar="POINTS",
        help="how far the accuracy of a teacher that comes with weights may be from the published one (default: 1)",
    )  # fmt: skip


def _hours(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-hours", type=values.hours, default=None, metavar="H",
        help="refuse a plan that is estimated to take more hours of computing",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
