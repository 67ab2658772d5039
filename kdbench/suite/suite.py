"""Suite files: one data set, its pairs, recipes and protocols; and a protocol resolved."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from kdbench.errors import KdbenchError, UnknownNameError, is_near
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.datasets import find_dataset
from kdbench.suite.net import FAMILIES, SOURCES, Family, NetSpec, zoo_net
from kdbench.suite.problems import Contradiction, at, find, first_problem
from kdbench.suite.protocol import MethodsSpec, Protocol, ResolvedProtocol, Variant
from kdbench.suite.recipe import Recipe
from kdbench.suite.typedyaml import read_typed
from kdbench.suite.types import NAME_PATTERN, Count, Name, NonNegative, Seed, Strict
from kdbench.suite.zoo import ZOO

PAIR_SEPARATOR = "--"


class Suite(Strict):
    """One data set, its pairs, its recipes and its protocols.

    Attributes:
        name: name of the suite; random seeds are derived from it.
        title: title in tables and pages.
        dataset: see there.
        nets: nets by name; the zoo's and timm's models need no entry.
        pairs: ``teacher--student``, by names of nets.
        recipes: recipes by name.
        student_recipe: name of the recipe for students of each family.
        teacher_recipe: name of the recipe for teachers of each family.
        net_recipe: name of the recipe for nets that are trained unlike their family, as teacher or student.
        protocols: protocols by name.
        default_protocol: protocol that runs by default.
        methods: see there.
        variants: methods with other hyper-parameters, as rows of their own.
        hooks: files with mmengine hooks, relative to the suite's; they run only if the command line names them too.
        cpu_threads: CPU threads of every training; their number changes the last bits of sums.
        teacher_seed: seed of teachers that are trained here.
        teacher_at_least: smallest top-1 (%) on the evaluated split that a trained teacher is expected to reach.
    """

    name: Name
    title: str
    dataset: DatasetSpec
    nets: dict[Name, NetSpec] = {}
    pairs: Annotated[tuple[str, ...], Field(min_length=1)]
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    student_recipe: dict[Family, str]
    teacher_recipe: dict[Family, str]
    net_recipe: dict[Name, str] = {}
    protocols: Annotated[dict[Name, Protocol], Field(min_length=1)]
    default_protocol: str
    methods: MethodsSpec
    variants: dict[Name, Variant] = {}
    hooks: tuple[str, ...] = ()
    cpu_threads: Count = 1
    teacher_seed: Seed = 0
    teacher_at_least: NonNegative = 0.0

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        self._check_teachers()
        for position, pair in enumerate(self.pairs):
            with at("pairs", position):
                if pair in self.pairs[:position]:
                    raise KdbenchError(f"pair {pair!r} is listed twice")
                for net in split_pair(pair):
                    self.net(net)
                if self.net(split_pair(pair)[1]).ensemble:
                    raise KdbenchError(f"pair {pair!r}: an ensemble is no student")
        for kind, chosen in (("student_recipe", self.student_recipe), ("teacher_recipe", self.teacher_recipe)):
            missing = [family for family in FAMILIES if family not in chosen]
            if missing:
                raise Contradiction(f"no recipe for {', '.join(missing)}", kind)
            for family, recipe in chosen.items():
                with at(kind, family):
                    find("recipe", recipe, self.recipes)
        for net, recipe in self.net_recipe.items():
            with at("net_recipe", net):
                self.net(net)
                find("recipe", recipe, self.recipes)
        for name in self.variants:
            if name in self.methods.set:
                raise Contradiction(f"{name} is a variant; write this in variants.{name}.set", "methods", "set", name)
        with at("default_protocol"):
            find("protocol", self.default_protocol, self.protocols)
        for name, protocol in self.protocols.items():
            for position, pattern in enumerate(protocol.pairs):
                with at("protocols", name, "pairs", position):
                    self.choose_pairs([pattern])
            for recipe in protocol.recipes:
                with at("protocols", name, "recipes", recipe):
                    find("recipe", recipe, self.recipes)
            self.under(name)
        return self

    @property
    def net_files(self) -> frozenset[Path]:
        """The Python files that make nets of the suite, resolved."""
        return frozenset(net.python_file.resolve() for net in self.nets.values() if net.python)

    def _check_teachers(self) -> None:
        """Refuse nets that are taught by themselves, or made of themselves, by whatever way."""
        for name, net in self.nets.items():
            if isinstance(net.ensemble, dict):
                raise Contradiction("write the names of nets", "nets", name, "ensemble")
            for teacher in net.teachers:
                if teacher not in self.nets:
                    with at("nets", name, "ensemble" if teacher in net.ensemble else "taught_by"):
                        self.net(teacher)
        try:
            TopologicalSorter({name: net.teachers for name, net in self.nets.items()}).prepare()
        except CycleError as error:
            name, teacher, *rest = reversed(error.args[1])
            key = "ensemble" if teacher in self.nets[name].ensemble else "taught_by"
            chain = " <- ".join((name, teacher, *rest))
            raise Contradiction(f"{chain}: a net cannot be its own teacher", "nets", name, key) from None

    def net(self, name: str) -> NetSpec:
        """The net called ``name``: of the suite, of the zoo, or timm's own model of that name."""
        if name in self.nets:
            net = self.nets[name]
            if net.ensemble:
                members = {member: self.net(member).model_dump(mode="json") for member in net.ensemble}
                return net.model_copy(update={"ensemble": members})
            if net.python and net.size is None and (size := self.image_size):
                return net.model_copy(update={"input_size": (size, size)})
            return net
        if name in ZOO:
            return zoo_net(name)
        source, colon, _ = name.partition(":")
        if colon and source in SOURCES:
            raise KdbenchError(f"{name} needs a name of its own, under nets: (nets: {{mine: {name!r}}})")
        own = {*self.nets, *ZOO}
        if importlib.util.find_spec("timm") is None:
            raise UnknownNameError("net", name, own)
        import timm

        if re.match(NAME_PATTERN, name) and timm.is_model(name.split(".")[0]):  # the name becomes that of a folder
            return NetSpec(timm=name, weights="train")
        every = {*own, *timm.list_models()}
        raise UnknownNameError("net", name, every if is_near(name, every) else own)

    @property
    def teachers(self) -> list[str]:
        """The names of the pairs' teachers, each after those that it needs."""
        found: dict[str, None] = {}

        def add(name: str) -> None:
            for each in self.net(name).teachers:
                add(each)
            found.setdefault(name)

        for pair in self.pairs:
            add(split_pair(pair)[0])
        return list(found)

    @property
    def image_size(self) -> int | None:
        """Side (px) of the images of a batch; None where it is not known."""
        return self.dataset.image_size or find_dataset(self.dataset.name).image_size

    def recipe_name(self, net: str, family: Family, teacher: bool = False) -> str:
        """The name of the recipe that trains a net."""
        return self.net_recipe.get(net) or (self.teacher_recipe if teacher else self.student_recipe)[family]

    def under(self, protocol: str) -> ResolvedProtocol:
        """What holds under a protocol.

        Raises:
            UnknownNameError: for a name that is none of the suite's protocols.
            Contradiction: for a recipe that the protocol makes impossible.
        """
        if protocol not in self.protocols:
            raise UnknownNameError("protocol", protocol, self.protocols, f"suite {self.name}")
        own = self.protocols[protocol]
        of_students = {*self.student_recipe.values(), *self.net_recipe.values()}
        of_teachers = {*self.teacher_recipe.values(), *self.net_recipe.values()}
        return ResolvedProtocol(
            name=protocol,
            version=own.version,
            pairs=tuple(self.choose_pairs(own.pairs)),
            seeds=own.seeds,
            select=own.select,
            recipes=self._recipes(of_students, protocol, "recipe", own.recipe),
            teacher_recipes=self._recipes(of_teachers, protocol, "teacher", own.teacher),
            images_per_class=own.images_per_class or self.dataset.images_per_class,
            teacher_images_per_class=own.teacher_images_per_class,
            measured_images_per_class=own.measured_images_per_class,
            teacher_weights=own.teacher_weights,
            teacher_preprocessing=own.teacher_preprocessing,
        )

    def _recipes(
        self, names: Collection[str], protocol: str, key: str, changes: Mapping[str, Any]
    ) -> dict[str, Recipe]:
        """Recipes with ``changes``, which stand at ``key`` of the protocol, and with those that the protocol makes by name."""
        found = {}
        for name in sorted(names):
            own = self.protocols[protocol].recipes.get(name, {})
            content = merge(merge(self.recipes[name].model_dump(), changes), own)
            try:
                found[name] = Recipe.model_validate(content)
            except ValidationError as error:
                location, problem = first_problem(error, Recipe, content)
                where = ("recipes", name) if _names(own, location) else (key,)
                raise Contradiction(problem, "protocols", protocol, *where, *location) from None
            if found[name].pipeline != "exact" and find_dataset(self.dataset.name).streams:
                raise Contradiction(
                    f"the images of {self.dataset.name} are files, decoded when they are needed: set pipeline: exact",
                    "recipes", name, "pipeline",
                )  # fmt: skip
        return found

    def choose_pairs(self, patterns: Sequence[str]) -> list[str]:
        """Pairs that match globs, in the order of the suite.

        Raises:
            UnknownNameError: for a pattern that matches nothing.
        """
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(pair, pattern) for pair in self.pairs):
                raise UnknownNameError("pair", pattern, self.pairs, f"suite {self.name}")
        return [pair for pair in self.pairs if any(fnmatch.fnmatchcase(pair, pattern) for pattern in patterns)]


def split_pair(pair: str) -> tuple[str, str]:
    """``"teacher--student"`` to its two nets.

    Raises:
        KdbenchError: if it has another form.
    """
    teacher, separator, student = pair.partition(PAIR_SEPARATOR)
    if not (separator and teacher and student) or PAIR_SEPARATOR in student:
        raise KdbenchError(f"pair {pair!r} is not of the form teacher{PAIR_SEPARATOR}student")
    return teacher, student


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, nested mappings merged."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _names(changes: Mapping[str, Any], location: Sequence[Any]) -> bool:
    """Whether nested changes hold the field at ``location``."""
    value: Any = changes
    for key in location:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def suite_files() -> dict[str, Path]:
    """The packaged suites: name -> file."""
    return {path.stem: path for path in sorted(packaged("pairs").glob("*.yaml"))}


def packaged(name: str) -> Path:
    """The folder ``pairs`` or ``methods``, which the package holds though it stands beside it in the repository.

    Raises:
        KdbenchError: if it is not installed.
    """
    spec = importlib.util.find_spec(f"kdbench.{name}")
    if spec is None or not spec.submodule_search_locations:
        raise KdbenchError(
            f"kdbench is not installed completely: the package kdbench.{name} is missing (pip install -e .)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def load_suite(name: str) -> Suite:
    """Load a packaged suite by name, or any suite by the path of its YAML file.

    Raises:
        UnknownNameError: for a name that is no suite.
        SuiteError: for a file that does not parse or is not valid, with its line.
    """
    files = suite_files()
    if name in files:
        return read_suite(files[name])
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise KdbenchError(f"suite file {name}: no such file")
        return read_suite(Path(name))
    raise UnknownNameError("suite", name, files)


def read_suite(path: Path) -> Suite:
    """Read one suite file; see ``load_suite``."""
    suite = read_typed(path, Suite, "a suite")
    return suite.model_copy(
        update={
            "hooks": tuple(str(path.parent / file) for file in suite.hooks),
            "nets": {name: net.beside(path.parent) for name, net in suite.nets.items()},
        }
    )
