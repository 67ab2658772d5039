"""The checks of what a method declares and of how it is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from kdbench.conformance.bench import CLASSES, PAIRS, SAMPLES, Pair, Trial, net_info
from kdbench.conformance.findings import Wrong, one_line
from kdbench.errors import UnsupportedPairError
from kdbench.matrix.check import lacking
from kdbench.method import NEEDS, Method, Task
from kdbench.plugins.entry import MethodEntry
from kdbench.suite.datasets import DATASETS
from kdbench.suite.suite import suite_files

_PRESETS = tuple(dict.fromkeys((*DATASETS, *suite_files())))


def declaration(entry: MethodEntry, cls: type[Method], pairs: Sequence[Pair] = PAIRS) -> Iterator[Wrong]:
    """What the file declares, against what the class has; presets are tried on the first of ``pairs`` that the method admits."""
    wrong = partial(Wrong, "declaration")
    if not issubclass(cls, Method):
        yield wrong(f"{cls.__name__} is no subclass of Method; write class {cls.__name__}(Method)")
        return
    for attribute in ("needs", "predict_needs"):
        unknown = sorted(set(getattr(cls, attribute)) - NEEDS)
        if unknown:
            yield wrong(f"{attribute} names {unknown[0]!r}; only {', '.join(sorted(NEEDS))} can be tapped")
    for name in ("family", "fidelity", "version", "uses_teacher"):
        if getattr(cls, name) != getattr(entry, name):
            yield wrong(
                f"{name} is {getattr(cls, name)!r} but was read as {getattr(entry, name)!r}; write it as a literal"
            )
    if frozenset(cls.needs) != entry.needs:
        yield wrong("needs differs from what is written in the class; write it as a literal and leave it alone")
    if entry.version < 1:
        yield wrong(f"version = {entry.version!r}; write a whole number of 1 or more")
    if not entry.paper:
        yield wrong("the class has no docstring; begin it with the paper (authors, title, venue, year)")
    for name, parameter in entry.hyperparameters.items():
        try:
            parameter.check(parameter.default, entry.name)
        except Exception:
            yield wrong(
                f"the default of {name}, {parameter.default!r}, is no {parameter.annotation}; correct one of them"
            )
    for key in entry.presets:
        dataset, _, family = key.partition(":")
        if dataset not in _PRESETS:
            yield wrong(f"presets names the data set {dataset!r}; known are {', '.join(_PRESETS)}")
        try:
            possible = (pair for pair in pairs if reason_against(cls, pair) is None)
            Trial(cls, next(possible), entry.resolve(dataset, family=family))
        except (UnsupportedPairError, Wrong, StopIteration):
            pass  # not the preset's fault; other checks say it
        except Exception as error:
            yield wrong(f"the preset {key!r} cannot be built ({one_line(error)}); correct its names and values")


def reason_against(cls: type[Method], pair: Pair) -> str | None:
    """What a pair lacks, or what ``supports`` says against it.

    Raises:
        Wrong: if it raises or returns something else than a sentence.
    """
    infos = net_info(pair.student, False), net_info(pair.teacher, True)
    try:
        reason: Any = lacking(cls, *infos) or cls.supports(*infos)
    except Exception as error:
        raise Wrong(
            "build", f"supports() raised {one_line(error)}; return a reason, or None when the pair runs", error
        ) from error
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise Wrong(
            "build", f"supports() returned {reason!r}; return a sentence that says why the pair is impossible, or None"
        )
    return reason


def built(cls: type[Method], pair: Pair) -> Trial:
    """Build a method for a pair, with memory and without.

    Raises:
        Wrong: if one of them fails.
        UnsupportedPairError: if the method refuses the pair.
    """
    infos = net_info(pair.student, False), net_info(pair.teacher, True)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shadow = cls(*infos, Task(CLASSES, SAMPLES, torch.zeros(SAMPLES, dtype=torch.int64), "conformance"))
    except UnsupportedPairError:
        raise
    except Exception as error:
        raise Wrong(
            "build",
            f"__init__ raised {one_line(error)} where a plan is checked (device meta); size modules from NetInfo and "
            "StageInfo, and read no value of a tensor there",
            error,
        ) from error
    try:
        trial = Trial(cls, pair)
    except Exception as error:
        raise Wrong(
            "build", f"__init__ raised {one_line(error)}; build it from NetInfo, StageInfo and Task alone", error
        ) from error
    if not isinstance(getattr(trial.method, "task", None), Task):
        raise Wrong("build", "the method has no task; begin __init__ with super().__init__(student, teacher, task)")
    if shapes_of(shadow) != shapes_of(trial.method):
        raise Wrong(
            "build", "its parameters differ between the devices meta and cpu; create the same ones whatever the device"
        )
    return trial


def shapes_of(method: torch.nn.Module) -> dict[str, Any]:
    """Names and shapes of parameters and buffers."""
    return {name: tuple(value.shape) for name, value in (*method.named_parameters(), *method.named_buffers())}
