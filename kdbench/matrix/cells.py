"""Suites to cells, cells to cohorts."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.matrix.identity import CONFIG_VERSION, config_hash
from kdbench.matrix.request import Request, retrained_teachers
from kdbench.matrix.settings import disclosed, found_of, settings_of
from kdbench.matrix.teachers import TeacherPlan, dataset_config, plan_teacher, with_drop_path, with_family
from kdbench.plugins.entry import Setting
from kdbench.plugins.hooks import HookEntry, find_hooks
from kdbench.plugins.registry import MethodCatalog
from kdbench.suite.datasets import find_dataset
from kdbench.suite.net import NetSpec, name_files
from kdbench.suite.protocol import ResolvedProtocol, Variant
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import PAIR_SEPARATOR, Suite, split_pair

if TYPE_CHECKING:
    from kdbench.data.images import Dataset

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Cell:
    """One trained student: suite x protocol x pair x method x seed.

    Attributes:
        method: the name of its row: of a method, or of a variant.
        config: everything else that its result depends on; ``hash`` is that of it.
        settings: its hyper-parameters, and where each comes from.
        facts: what tables show of it.
        reason: why it cannot run.
    """

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
    hash: str
    facts: Mapping[str, Any]
    settings: Mapping[str, Setting]
    reason: str | None = None

    @property
    def pair(self) -> str:
        return f"{self.teacher.name}{PAIR_SEPARATOR}{self.student}"

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


def teachers_of(these: Iterable[Cell | Cohort]) -> list[TeacherPlan]:
    """The teachers of cells or cohorts in their order, each once, and after those that it depends on."""
    return list({each.hash: each for one in these for each in one.teacher.chain}.values())


@dataclass(frozen=True, repr=False)
class Plan:
    """The cells of a request. ``skipped`` cells are impossible, ``broken`` ones belong to a plugin that cannot be imported."""

    suite: Suite
    under: ResolvedProtocol
    request: Request
    catalog: MethodCatalog  # with variants
    cells: tuple[Cell, ...]
    hooks: tuple[HookEntry, ...] = ()
    skipped: tuple[Cell, ...] = ()
    broken: tuple[Cell, ...] = ()

    def __repr__(self) -> str:
        """In a line: a plan holds every method."""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        counts = f"{counted(len(self.cells), 'cell')} in {counted(len(self.cohorts()), 'cohort')}{skipped}"
        return f"suite {self.suite.name}, protocol {self.under.name}: {counts}"

    @property
    def num_classes(self) -> int:
        """Width of every net's logits."""
        return self.suite.dataset.width

    @property
    def teachers(self) -> list[TeacherPlan]:
        """The teachers of all cells."""
        return teachers_of(self.cells)

    def dataset(self, split: str) -> Dataset:
        """The data set to train on when nets are measured on ``split``, within the request's limit.

        Raises:
            KdbenchError: if it is not there, or not whole.
        """
        from kdbench.datasets.load import load_dataset  # torch

        loaded = load_dataset(self.suite.dataset, self.request.data_folder)
        return replace(loaded.for_split(split), limit=self.request.limit)

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


def make_plan(suite: Suite, request: Request, catalog: MethodCatalog) -> Plan:
    """List the cells of a request, in the order pair, seed, method. Nothing is built: see ``check_cells``.

    Raises:
        KdbenchError: for an unknown name or a hyper-parameter of the wrong name or type.
    """
    protocol = suite.under(request.protocol or suite.default_protocol)
    name_files(request.plugins)
    if request.split not in SPLITS:
        raise UnknownNameError("split", request.split, SPLITS)
    named = [(name, Variant.model_validate(content)) for name, content in request.variants.items()]
    catalog = catalog.with_variants([*suite.variants.items(), *named])
    hooks = find_hooks(suite.hooks, request.hooks, request.plugins, suite.name)
    retrained = retrained_teachers(request, suite.teachers, suite.name)
    cells: list[Cell] = []
    for pair in suite.choose_pairs(request.pairs) if request.pairs else protocol.pairs:
        teacher_name, student_name = split_pair(pair)
        student = suite.net(student_name)
        teacher = plan_teacher(
            suite,
            protocol,
            teacher_name,
            request.split,
            request.limit,
            student if protocol.teacher_preprocessing == "student" else None,
            retrained,
        )
        of_pair = _cells_of_pair(suite, protocol, request, catalog, teacher, student_name, hooks)
        cells += [replace(cell, seed=seed) for seed in request.seeds or protocol.seeds for cell in of_pair]
    _check_sizes(suite, protocol, request, cells)
    return Plan(suite, protocol, request, catalog, tuple(cells), tuple(hooks))


@dataclass(frozen=True)
class _Configured:
    """A method with its hyper-parameters: its part of a cell's configuration, and what tables show."""

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    settings: Mapping[str, Setting]


def _configure_methods(
    suite: Suite, protocol: ResolvedProtocol, request: Request, catalog: MethodCatalog, family: str, pair: str
) -> dict[str, _Configured]:
    """The chosen methods in the order of the request, for a pair whose student is of ``family``."""
    plugins = {Path(plugin) for plugin in request.plugins}
    added = [name for name, entry in catalog.items() if entry.path in plugins and not entry.variant_of]
    chosen = choose_methods(
        catalog, request.methods or (*suite.methods.default, *suite.variants, *added, *request.variants)
    )
    found = found_of(suite, request)
    named = (*suite.methods.set, *suite.variants, *suite.protocols[protocol.name].set)
    named += (*request.variants, *request.set, *(found.settings if found else ()))
    configured: dict[str, _Configured] = {}
    for name in dict.fromkeys((*chosen, *named)):
        entry = catalog.find(name)
        settings = settings_of(entry, catalog, suite, protocol.name, request, pair, family)
        weight = settings.get(entry.carries_kd.get("kd_weight", ""))
        facts = {
            "method_display": entry.display,
            "method_family": entry.family,
            "fidelity": entry.fidelity,
            "carries_kd": bool(entry.carries_kd) and (weight is None or weight.value > 0),
            "plugin": None if entry.builtin else Path(entry.path).name,
            "variant_of": entry.variant_of,
            "settings": disclosed(
                settings, found.origin(protocol.name) if found and found.space.get(entry.method) else ""
            ),
        }
        config = {
            "name": entry.method,
            "version": entry.version,
            "source": None if entry.builtin else entry.source_hash(),
            "hyperparameters": entry.identity(settings),
        }
        configured[name] = _Configured(config, facts, settings)
    return {name: configured[name] for name in chosen}


def _cells_of_pair(
    suite: Suite,
    protocol: ResolvedProtocol,
    request: Request,
    catalog: MethodCatalog,
    teacher: TeacherPlan,
    student: str,
    hooks: Sequence[HookEntry],
) -> list[Cell]:
    """The cells of a pair for any one seed, which is no part of their configuration."""
    # Weights are a teacher's: as a student every net starts from scratch.
    net = with_family(suite.net(student).model_copy(update={"weights": "train", "taught_by": ""}), student)
    family = net.family
    assert family is not None
    recipe_name = suite.recipe_name(student, family)
    recipe = protocol.recipes[recipe_name]
    net = with_drop_path(net, recipe)
    config = {
        "config_version": CONFIG_VERSION,
        "kind": "cell",
        "suite": suite.name,
        "protocol": {"name": protocol.name, "version": protocol.version},
        "split": request.split,
        "dataset": dataset_config(suite, protocol, request.limit, protocol.images_per_class),
        "teacher": {"name": teacher.name, "hash": teacher.hash},
        "student": {"name": student, "net": net.identity()},
        "recipe": {"name": recipe_name, **recipe.identity()},
        "hooks": [[hook.name, hook.source] for hook in hooks if not hook.observes],
        "cpu_threads": suite.cpu_threads,
    }
    facts = {
        "dataset_title": find_dataset(suite.dataset.name).title,
        "teacher_display": teacher.net.display or teacher.name,
        "student_display": net.display or student,
        "teacher_family": teacher.net.family,
        "student_family": family,
    }
    cells = []
    pair = f"{teacher.name}{PAIR_SEPARATOR}{student}"
    for name, method in _configure_methods(suite, protocol, request, catalog, family, pair).items():
        own = {**config, "method": method.config}
        cells.append(
            Cell(
                suite.name, protocol.name, request.split, teacher, student, net, name, 0, recipe_name, recipe,
                own, config_hash(own), {**facts, **method.facts}, method.settings,
            )
        )  # fmt: skip
    return cells


def _check_sizes(suite: Suite, protocol: ResolvedProtocol, request: Request, cells: Sequence[Cell]) -> None:
    """Refuse more images per class, or larger batches, than the training split holds."""
    dataset = find_dataset(suite.dataset.name)
    available = dataset.train_per_class
    if available and request.split == "validation":
        available -= dataset.held_out_per_class
    own = suite.protocols[protocol.name].images_per_class
    limits = {
        "dataset.images_per_class": suite.dataset.images_per_class,
        f"protocols.{protocol.name}.images_per_class": own,
        f"protocols.{protocol.name}.teacher_images_per_class": protocol.teacher_images_per_class,
    }
    for name, limit in limits.items():
        if limit and available and limit > available:
            raise KdbenchError(
                f"suite {suite.name}: {name} = {limit}, but the smallest class of {dataset.name} has {available}"
            )
    images, teachers = (
        suite.dataset.training_images(request.split, limit, request.limit)
        for limit in (protocol.images_per_class, protocol.teacher_images_per_class)
    )
    check_batches(suite, cells, images, teachers)


def check_batches(suite: Suite, cells: Sequence[Cell], images: int | None, teachers: int | None) -> None:
    """Refuse batches that are larger than the numbers of images that students and teachers train on; None: not known.

    Raises:
        KdbenchError: naming the recipe.
    """
    trained = {("student", cell.recipe_name): (cell.recipe, images) for cell in cells}
    trained |= {
        ("teacher", each.recipe_name): (each.recipe, teachers) for each in teachers_of(cells) if each.trained_here
    }
    for (kind, name), (recipe, size) in trained.items():
        if size is not None and recipe.batch_size > size:
            raise KdbenchError(
                f"suite {suite.name}: batch_size = {recipe.batch_size} of recipe {name} is larger than the "
                f"{counted(size, 'image')} that a {kind} trains on"
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
