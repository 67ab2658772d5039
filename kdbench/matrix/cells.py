"""Suites to cells, cells to cohorts. Works without torch; ``wiring.py`` then builds what was planned."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.matrix.identity import CONFIG_VERSION, canonical, config_hash, given
from kdbench.matrix.request import Choice, retrained_teachers
from kdbench.matrix.teachers import TeacherPlan, net_family, plan_teacher, with_drop_path
from kdbench.plugins.registry import MethodCatalog
from kdbench.suite.datasets import find_dataset
from kdbench.suite.net import FAMILIES, NetSpec
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import PAIR_SEPARATOR, Protocol, Suite, split_pair

if TYPE_CHECKING:
    from kdbench.data.images import Dataset

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Cell:
    """One trained student: suite x protocol x pair x method x seed, with everything that its result depends on."""

    suite: str
    protocol: str
    split: str
    teacher: TeacherPlan
    student: str
    student_net: NetSpec
    method: str
    seed: int
    recipe_name: str
    recipe: Recipe
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    reason: str | None = None

    @property
    def pair(self) -> str:
        return f"{self.teacher.name}{PAIR_SEPARATOR}{self.student}"

    @cached_property
    def hash(self) -> str:
        return config_hash(self.config)

    @property
    def folder(self) -> str:
        """Its folder below the run directory."""
        return f"{self.suite}/{self.protocol}/{self.pair}/{self.method}/seed{self.seed}-{self.hash}"

    @property
    def key(self) -> str:
        """A short name that is unique within a plan."""
        return f"{self.pair}/{self.method}/seed{self.seed}"

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        return self.config["method"]["hyperparameters"]


@dataclass(frozen=True)
class Cohort:
    """Cells that are trained in lockstep on the same batches with one teacher."""

    teacher: TeacherPlan
    recipe_name: str
    seed: int
    cells: tuple[Cell, ...]
    part: str = ""
    #: Bytes that it is likely to take on its device; 0 where that was not estimated.
    memory: int = 0

    @property
    def name(self) -> str:
        students = sorted({cell.student for cell in self.cells})
        parts = (
            f"{self.teacher.name}{PAIR_SEPARATOR}{'+'.join(students)}",
            self.recipe_name,
            f"seed {self.seed}",
            self.part,
        )
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """The cells of a choice. ``skipped`` cells are impossible, ``broken`` ones belong to a plugin that cannot be imported."""

    suite: Suite
    protocol: str
    choice: Choice
    catalog: MethodCatalog
    cells: tuple[Cell, ...]
    skipped: tuple[Cell, ...] = ()
    broken: tuple[Cell, ...] = ()

    @property
    def images_per_class(self) -> int | None:
        """How many images of every class students train on; None for all."""
        return self.suite.images_per_class(self.protocol)

    @property
    def teacher_images_per_class(self) -> int | None:
        """The same of teachers."""
        return self.suite.images_per_class(self.protocol, teacher=True)

    @property
    def measured_images_per_class(self) -> int | None:
        """How many images of every class both are measured on; None for all."""
        return self.suite.protocols[self.protocol].measured_images_per_class

    @property
    def num_classes(self) -> int:
        """Width of every net's logits."""
        return self.suite.dataset.width

    @property
    def teachers(self) -> list[TeacherPlan]:
        """Every teacher once, in the order of the cells."""
        return list({cell.teacher.hash: cell.teacher for cell in self.cells}.values())

    def cohorts(self, solo: bool = False, cells: Sequence[Cell] | None = None) -> list[Cohort]:
        """Group cells that may share their batches and their teacher; with ``solo`` every cell stands alone."""
        groups: dict[Any, list[Cell]] = {}
        for cell in self.cells if cells is None else cells:
            group = (cell.teacher.hash, cell.recipe_name, cell.seed, *((cell.folder,) if solo else ()))
            groups.setdefault(group, []).append(cell)
        return [
            Cohort(members[0].teacher, members[0].recipe_name, members[0].seed, tuple(members))
            for members in groups.values()
        ]


def make_plan(suite: Suite, choice: Choice, catalog: MethodCatalog) -> Plan:
    """List the cells of a choice, in the order pair, seed, method. Nothing is built: see ``wiring.check_cells``.

    Raises:
        KdbenchError: for an unknown name or a hyper-parameter of the wrong name or type.
    """
    protocol_name = choice.protocol or suite.default_protocol
    if protocol_name not in suite.protocols:
        raise UnknownNameError("protocol", protocol_name, suite.protocols, f"suite {suite.name}")
    if choice.split not in SPLITS:
        raise UnknownNameError("split", choice.split, SPLITS)
    protocol = suite.protocols[protocol_name]
    from_plugins = [
        name for name, entry in catalog.items() if entry.path in {Path(plugin) for plugin in choice.plugins}
    ]
    methods = choose_methods(catalog, choice.methods or (*suite.methods.default, *from_plugins))
    for name in (*suite.methods.set, *protocol.set, *choice.set):
        catalog.find(name)
    hyperparameters = {
        (name, family): _hyperparameters(suite, protocol, choice, catalog, name, family)
        for name in dict.fromkeys((*methods, *choice.set))
        for family in FAMILIES
    }
    retrained = retrained_teachers(choice, [split_pair(pair)[0] for pair in suite.pairs], suite.name)
    cells: list[Cell] = []
    for pair in suite.choose_pairs(protocol_name, choice.pairs):
        teacher_name, student_name = split_pair(pair)
        student = _plan_student(suite, protocol_name, student_name)
        seen_through = student.net if protocol.teacher_preprocessing == "student" else None
        teacher = plan_teacher(
            suite,
            protocol_name,
            teacher_name,
            choice.split,
            choice.limit,
            seen_through,
            retrained.get(teacher_name),
        )
        for seed in choice.seeds or protocol.seeds:
            for method in methods:
                cells.append(
                    _plan_cell(
                        suite,
                        protocol_name,
                        choice,
                        catalog,
                        teacher,
                        student,
                        method,
                        hyperparameters[method, student.family],
                        seed,
                    )
                )
    _check_sizes(suite, protocol_name, choice, cells)
    return Plan(suite, protocol_name, choice, catalog, tuple(cells))


def _hyperparameters(
    suite: Suite, protocol: Protocol, choice: Choice, catalog: MethodCatalog, method: str, family: str
) -> dict[str, Any]:
    """Of a method with students of one family. What the command line sets for KD is KD's alone: other rows stay as they are."""
    datasets = [name for name in (suite.dataset.presets, suite.dataset.name) if name]

    def sets(name: str) -> tuple[Mapping[str, Any], ...]:
        return suite.methods.set.get(name, {}), protocol.set.get(name, {})

    kd = catalog["kd"].resolve(datasets, *sets("kd"), family=family)
    return catalog[method].resolve(datasets, *sets(method), choice.set.get(method, {}), family=family, kd=kd)


def _check_sizes(suite: Suite, protocol: str, choice: Choice, cells: Sequence[Cell]) -> None:
    """Refuse more images per class, or larger batches, than the training split holds."""
    dataset = find_dataset(suite.dataset.name)
    available = dataset.train_per_class
    if available and choice.split == "validation":
        available -= dataset.held_out_per_class
    own = suite.protocols[protocol]
    limits = {
        "dataset.images_per_class": suite.dataset.images_per_class,
        f"protocols.{protocol}.images_per_class": own.images_per_class,
        f"protocols.{protocol}.teacher_images_per_class": own.teacher_images_per_class,
    }
    for name, limit in limits.items():
        if limit and available and limit > available:
            raise KdbenchError(
                f"suite {suite.name}: {name} = {limit}, but the smallest class of {dataset.name} has {available}"
            )
    images, teachers = (
        suite.dataset.training_images(choice.split, suite.images_per_class(protocol, teacher), choice.limit)
        for teacher in (False, True)
    )
    trained = {("student", cell.recipe_name): (cell.recipe, images) for cell in cells}
    trained |= {
        ("teacher", cell.teacher.recipe_name): (cell.teacher.recipe, teachers)
        for cell in cells
        if cell.teacher.trained_here
    }
    for (kind, name), (recipe, size) in trained.items():
        if size is not None and recipe.batch_size > size:
            raise KdbenchError(
                f"suite {suite.name}: batch_size = {recipe.batch_size} of recipe {name} is larger than the {size} images "
                f"that a {kind} trains on"
            )


def choose_methods(catalog: MethodCatalog, patterns: Sequence[str]) -> list[str]:
    """Methods that match names or globs, in the given order.

    Raises:
        UnknownNameError: for a name or a glob that matches none.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = [name for name in catalog if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise UnknownNameError("method", pattern, catalog)
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def open_dataset(plan: Plan, folder: Path | None, split: str) -> Dataset:
    """The data set of a plan, ready to train on when ``split`` is measured."""
    from kdbench.datasets.load import load_dataset

    dataset = load_dataset(plan.suite.dataset, folder).for_split(split)
    return dataset if plan.choice.limit is None else dataset.limited(plan.choice.limit)


@dataclass(frozen=True)
class _Student:
    """What all cells of a pair share of their student; worked out once, for a suite may have ten thousand cells."""

    name: str
    net: NetSpec
    net_config: Mapping[str, Any]
    family: str
    recipe_name: str
    recipe: Recipe
    recipe_config: Mapping[str, Any]


def _plan_student(suite: Suite, protocol: str, name: str) -> _Student:
    net = suite.net(name)
    family = net_family(net, name)
    recipe_name = suite.recipe_name(name, family)
    recipe = suite.recipe(recipe_name, protocol)
    # Weights are a teacher's: as a student every net starts from scratch.
    net = with_drop_path(net.model_copy(update={"weights": "train"}), recipe)
    return _Student(name, net, net.identity(), family, recipe_name, recipe, recipe.identity())


def _plan_cell(
    suite: Suite,
    protocol: str,
    choice: Choice,
    catalog: MethodCatalog,
    teacher: TeacherPlan,
    student: _Student,
    method: str,
    hyperparameters: Mapping[str, Any],
    seed: int,
) -> Cell:
    entry = catalog[method]
    dataset = find_dataset(suite.dataset.name)
    limits = {
        "images_per_class": suite.images_per_class(protocol),
        **given({"measured_images_per_class": suite.protocols[protocol].measured_images_per_class}),
        **given({"limit": choice.limit}),
        **suite.dataset.identity(),
    }
    config = {
        "config_version": CONFIG_VERSION,
        "kind": "cell",
        "suite": suite.name,
        "protocol": {"name": protocol, "version": suite.protocols[protocol].version},
        "split": choice.split,
        "dataset": {"version": dataset.version, "name": dataset.name, **limits},
        "teacher": {"name": teacher.name, "hash": teacher.hash},
        "student": {"name": student.name, "net": student.net_config},
        "recipe": {"name": student.recipe_name, **student.recipe_config},
        "method": {
            "name": method,
            "version": entry.version,
            "hyperparameters": dict(hyperparameters),
            **({} if entry.builtin else {"source": entry.source_hash()}),
        },
        "seed": seed,
        "cpu_threads": suite.cpu_threads,
    }
    facts = {
        "dataset_title": dataset.title,
        "teacher_display": teacher.net.display or teacher.name,
        "student_display": student.net.display or student.name,
        "teacher_family": teacher.family,
        "student_family": student.family,
        "method_display": entry.display,
        "method_family": entry.family,
        "fidelity": entry.fidelity,
        "carries_kd": bool(entry.carries_kd),
        "plugin": None if entry.builtin else str(Path(entry.path).name),
    }
    return Cell(
        suite.name, protocol, choice.split, teacher, student.name, student.net, method, seed, student.recipe_name,
        student.recipe, config, facts,
    )  # fmt: skip


def folders_over_seeds(cell: Cell, seeds: Sequence[int]) -> list[str]:
    """The folders of a cell under other seeds, as ``make_plan`` would give them: all that a seed changes is itself."""
    before, after = canonical({**cell.config, "seed": _ANY_SEED}).split(json.dumps(_ANY_SEED))
    shared = hashlib.sha256(before.encode())
    base = f"{cell.suite}/{cell.protocol}/{cell.pair}/{cell.method}"
    folders = []
    for seed in seeds:
        digest = shared.copy()
        digest.update(f"{seed}{after}".encode())
        folders.append(f"{base}/seed{seed}-{digest.hexdigest()[:10]}")
    return folders


#: Stands for a seed; no configuration holds it.
_ANY_SEED = "\x00any seed\x00"
