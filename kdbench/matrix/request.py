"""What the user wants of a suite, read from the command line and written back to it."""

from __future__ import annotations

import fnmatch
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import yaml

from kdbench.errors import KdbenchError, UnknownNameError

if TYPE_CHECKING:
    from kdbench.matrix.cells import Cell

#: How a teacher is trained on the suite's data: from scratch, or from the pretrained weights that timm knows.
TrainedHere = Literal["train", "finetune"]


@dataclass(frozen=True)
class Choice:
    """What the user wants of a suite; empty means the protocol's own choice."""

    protocol: str = ""
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    split: str = "test"
    set: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    limit: int | None = None
    #: Teachers (names, globs, ``all``) that are trained here from scratch, or from timm's weights, whatever the suite says.
    train_teachers: tuple[str, ...] = ()
    fine_tune_teachers: tuple[str, ...] = ()


def replay_command(
    cell: Cell,
    choice: Choice,
    out: str,
    suite_name: str = "",
    data: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    tolerance: str | None = None,
) -> str:
    """The shell command that trains one cell again, alone; ``suite_name`` where the suite is a file of its own."""
    words = ["kdbench", "run", suite_name or cell.suite]
    words += ["--protocol", cell.protocol, "--pairs", cell.pair, "--methods", cell.method, "--seeds", str(cell.seed)]
    if cell.split != "test":
        words += ["--split", cell.split]
    if choice.limit is not None:
        words += ["--limit", str(choice.limit)]
    for option, names in (
        ("--train-teachers", choice.train_teachers),
        ("--fine-tune-teachers", choice.fine_tune_teachers),
    ):
        words += [option, ",".join(names)] if names else []
    for plugin in choice.plugins:
        words += ["--plugin", plugin]
    for name, value in choice.set.get(cell.method, {}).items():
        words += ["--set", f"{cell.method}.{name}={json.dumps(value)}"]
    for option, given in (
        ("--data", data),
        ("--device", device),
        ("--weights", weights),
        ("--teacher-tolerance", tolerance),
    ):
        words += [option, given] if given else []
    return shlex.join([*words, "--out", out, "--solo", "--retry-failed"])


def again() -> str:
    """The command that was given."""
    return shlex.join(["kdbench", *sys.argv[1:]])


def retrained_teachers(choice: Choice, teachers: Sequence[str], suite: str) -> dict[str, TrainedHere]:
    """Teachers of a suite that the choice wants to be trained here, and how.

    Raises:
        KdbenchError: for a name or a glob that is none of ``teachers``, or a teacher that is named twice.
    """
    names = list(dict.fromkeys(teachers))
    chosen: dict[str, TrainedHere] = {}
    wanted: dict[TrainedHere, tuple[str, ...]] = {
        "train": choice.train_teachers,
        "finetune": choice.fine_tune_teachers,
    }
    for how, patterns in wanted.items():
        for pattern in patterns:
            matches = names if pattern == "all" else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            if not matches:
                raise UnknownNameError("teacher", pattern, names, f"suite {suite}")
            for name in matches:
                if chosen.setdefault(name, how) != how:
                    raise KdbenchError(
                        f"teacher {name} is in both --train-teachers and --fine-tune-teachers; choose one of them"
                    )
    return chosen


def parse_set(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["ofa.eps=1.5"]`` to ``{"ofa": {"eps": 1.5}}``; values are YAML.

    Raises:
        KdbenchError: for another form.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, separator, value = assignment.partition("=")
        method, dot, name = target.strip().partition(".")
        if not (separator and dot and method and name):
            raise KdbenchError(f"--set {assignment!r} is not of the form METHOD.NAME=VALUE")
        try:
            parsed.setdefault(method, {})[name] = _number_or(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise KdbenchError(f"--set {assignment!r}: the value does not parse as YAML") from None
    return parsed


def _number_or(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as a string.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
