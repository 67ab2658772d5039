"""Which cells of a plan can run: every net and method is built on the ``meta`` device before anything trains."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdbench.errors import HyperparameterError, KdbenchError, ListedError, UnknownNameError, UnsupportedPairError
from kdbench.matrix.cells import Cell, Plan
from kdbench.plugins.entry import MethodEntry
from kdbench.suite.recipe import Recipe
from kdbench.userfiles import PluginError

if TYPE_CHECKING:
    from kdbench.method import Method, NetInfo

#: What ``--log`` takes: each is a package, and an extra of kdbench.
TRACKERS = ("tensorboard", "wandb", "mlflow")


def check_cells(plan: Plan) -> Plan:
    """Build every net and method of a plan on the ``meta`` device, and separate the cells that cannot run.

    A net that cannot be used takes its own pairs out of the plan, a method that needs what a net cannot give the pair's cell.
    Plugins that cannot be imported or built join the ``errors`` of the plan's catalog.

    Raises:
        KdbenchError: for wrong wiring: hyper-parameters out of range, nets that cannot be built or tapped where no pair is left.
            For a hook that cannot be imported, and a tracker that is unknown or not installed.
    """
    _check_trackers(plan.request.log)
    for hook in plan.hooks:
        try:
            hook.load()
        except PluginError as error:
            raise ListedError(str(error), error.details.splitlines()) from None
    from kdbench.nets.models import NetError
    from kdbench.nets.tapped import describe

    refused: NetError | None = None
    plan.catalog.load_metrics()
    num_classes = plan.num_classes
    _check_optimizers([*(cell.recipe for cell in plan.cells), *(teacher.recipe for teacher in plan.teachers)])
    possible: list[Cell] = []
    skipped: list[Cell] = []
    broken: list[Cell] = []
    verdicts: dict[Any, tuple[list[Cell], str | None]] = {}
    for cell in plan.cells:
        key = (cell.teacher.name, cell.student, cell.method)
        if key not in verdicts:
            try:
                *_, teacher = (describe(each.net, num_classes, each.name) for each in cell.teacher.chain)
                student = describe(cell.student_net, num_classes, cell.student)
                reason = _refusal(cell, plan.catalog[cell.method], student, teacher, num_classes)
                verdicts[key] = (possible if reason is None else skipped, reason)
            except NetError as error:
                refused = refused or error
                verdicts[key] = (skipped, f"{error}\n{error.details}".rstrip())
            except PluginError as error:
                verdicts[key] = (broken, f"{error}\n{error.details}")
                if str(error) not in map(str, plan.catalog.errors):
                    plan.catalog.errors.append(error)
        where, reason = verdicts[key]
        where.append(replace(cell, reason=reason))
    if refused is not None and not possible and not broken:
        raise ListedError(str(refused), refused.details.splitlines())
    return replace(plan, cells=tuple(possible), skipped=tuple(skipped), broken=tuple(broken))


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS, "--log")
        if importlib.util.find_spec(name) is None:
            raise KdbenchError(f"--log {name}: the package {name} is not installed; pip install 'kdbench[{name}]'")


def _check_optimizers(recipes: Sequence[Recipe]) -> None:
    from timm.optim import list_optimizers

    known = list_optimizers()
    for name in dict.fromkeys(recipe.optimizer.name for recipe in recipes):
        if name.lower().removeprefix("lookahead_") not in known:
            raise UnknownNameError("optimizer", name, known, "timm")


def lacking(cls: type[Method], student: NetInfo, teacher: NetInfo) -> str | None:
    """What a method needs that a net cannot give, with the reason; None if there is nothing."""
    for need in sorted({*cls.needs, *cls.predict_needs}):
        for net in (student, teacher) if cls.uses_teacher else (student,):
            if need in net.lacks:
                return f"it needs {need}; {net.lacks[need]}"
    return None


def _refusal(cell: Cell, entry: MethodEntry, student: NetInfo, teacher: NetInfo, num_classes: int) -> str | None:
    """Why a method cannot run on a pair, or None; wrong wiring raises."""
    import torch

    from kdbench.method import NEEDS, Task
    from kdbench.nets.meta import without_data

    cls: Any = entry.load()
    unknown = sorted({*cls.needs, *cls.predict_needs} - NEEDS)
    if unknown:
        raise UnknownNameError(f"tap in the needs of method {cell.method}:", unknown[0], NEEDS)
    try:
        reason = lacking(cls, student, teacher) or cls.supports(student, teacher)
        if reason is not None:
            return str(reason)
        with torch.random.fork_rng(devices=[]), without_data():
            labels = torch.zeros(1024, dtype=torch.int64)
            cls(
                student,
                teacher,
                Task(num_classes, 1024, labels, cell.config["dataset"]["name"]),
                **cell.hyperparameters,
            )
    except UnsupportedPairError as error:
        return str(error)
    except HyperparameterError as error:
        raise HyperparameterError(f"method {cell.method}: {error}") from None
    except KdbenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"method {cell.method} cannot be built for {cell.pair}: {type(error).__name__}: {error}",
            traceback.format_exc(),
        ) from error
    return None
