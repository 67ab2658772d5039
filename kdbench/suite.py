"""Suites: ``pairs/*.yaml`` as typed, self-checking objects. Works without torch."""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdbench.data.catalog import find_dataset
from kdbench.errors import KdbenchError, UnknownNameError, nearest
from kdbench.nets.spec import FAMILIES, Family, NetSpec
from kdbench.nets.zoo import ZOO

PAIR_SEPARATOR = "--"

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]


class SuiteError(KdbenchError):
    """A suite file that does not parse or contradicts itself; names the file and the line."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augment(_Strict):
    """Augmentation of training images: zero padding before a random crop (px), horizontal flip, mixup's Beta parameter."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    mixup: NonNegative = 0.0


class OptimizerSpec(_Strict):
    """An optimiser of timm by name (``sgd`` is with Nesterov momentum, ``momentum`` without)."""

    name: str
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.9
    betas: tuple[NonNegative, NonNegative] | None = None
    honour_no_weight_decay: bool = True


class ScheduleSpec(_Strict):
    """A schedule of timm. ``per`` says how often the learning rate moves; warm-up is part of ``epochs``."""

    name: Literal["cosine", "step", "multistep", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    decay_epochs: NonNegative = 30
    decay_rate: Positive = 0.1
    milestones: tuple[int, ...] = ()
    per: Literal["epoch", "step"] = "epoch"


class Recipe(_Strict):
    """How a kind of student, or a teacher, is trained. ``batch_size`` is global."""

    epochs: Count
    batch_size: Count
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    augment: Augment = Augment()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _warmup_fits(self) -> Recipe:
        if self.schedule.name != "constant" and self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs = {self.schedule.warmup_epochs} leaves no epoch of epochs = {self.epochs} for the schedule"
            )
        return self


class DatasetSpec(_Strict):
    """The data of a suite. ``images_per_class`` limits what students train on; teachers see the whole training split."""

    name: str
    images_per_class: Count | None = None


class Protocol(_Strict):
    """How much of a suite is run. ``recipe`` and ``teacher`` change fields of every recipe of students and of teachers."""

    description: str
    version: Count = 1
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    pairs: tuple[str, ...] = ("*",)
    recipe: dict[str, Any] = {}
    teacher: dict[str, Any] = {}


class MethodsSpec(_Strict):
    """The methods that run by default, and hyper-parameters that differ from a method's own defaults."""

    default: Annotated[tuple[str, ...], Field(min_length=1)]
    set: dict[str, dict[str, Any]] = {}


class Suite(_Strict):
    """One data set, its pairs, its recipes and its protocols."""

    name: Name
    title: str
    dataset: DatasetSpec
    nets: dict[Name, NetSpec] = {}
    pairs: Annotated[tuple[str, ...], Field(min_length=1)]
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    student_recipe: dict[Family, str]
    teacher_recipe: dict[Family, str]
    protocols: Annotated[dict[Name, Protocol], Field(min_length=1)]
    default_protocol: str
    methods: MethodsSpec
    cpu_threads: Count = 1
    teacher_seed: Annotated[int, Field(ge=0)] = 0
    #: Smallest top-1 (%) on the evaluated split that a trained teacher is expected to reach.
    teacher_at_least: NonNegative = 0.0

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        find_dataset(self.dataset.name)
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError("pairs: a pair is listed twice")
        for pair in self.pairs:
            for net in split_pair(pair):
                self.net(net)
        for kind, chosen in (("student_recipe", self.student_recipe), ("teacher_recipe", self.teacher_recipe)):
            missing = [family for family in FAMILIES if family not in chosen]
            if missing:
                raise ValueError(f"{kind}: no recipe for {', '.join(missing)}")
            for recipe in chosen.values():
                if recipe not in self.recipes:
                    raise ValueError(f"{kind}: unknown recipe {recipe!r}; {nearest(recipe, self.recipes)}")
        if self.default_protocol not in self.protocols:
            raise ValueError(f"default_protocol: unknown protocol {self.default_protocol!r}; {nearest(self.default_protocol, self.protocols)}")
        for name, protocol in self.protocols.items():
            for pattern in protocol.pairs:
                if not any(fnmatch.fnmatchcase(pair, pattern) for pair in self.pairs):
                    raise ValueError(f"protocols.{name}.pairs: {pattern!r} matches no pair")
            for recipe in {*self.student_recipe.values()}:
                self.recipe(recipe, name)
            for recipe in {*self.teacher_recipe.values()}:
                self.recipe(recipe, name, teacher=True)
        return self

    def net(self, name: str) -> NetSpec:
        """The net called ``name``: of the suite, of the zoo, or timm's own model of that name."""
        if name in self.nets:
            return self.nets[name]
        if name in ZOO:
            return ZOO[name]
        if importlib.util.find_spec("timm") is not None and _timm_has(name):
            return NetSpec(timm=name, weights="train")
        raise UnknownNameError("net", name, {*self.nets, *ZOO})

    def recipe(self, name: str, protocol: str, teacher: bool = False) -> Recipe:
        """The recipe ``name`` as a protocol changes it."""
        chosen = self.protocols[protocol]
        changes = chosen.teacher if teacher else chosen.recipe
        where = f"protocols.{protocol}.{'teacher' if teacher else 'recipe'}"
        try:
            return Recipe.model_validate(merge(self.recipes[name].model_dump(), changes))
        except ValidationError as error:
            raise ValueError(f"{where}: {_first_problem(error, Recipe)[1]}") from None

    def choose_pairs(self, protocol: str, patterns: Sequence[str] = ()) -> list[str]:
        """Pairs of a protocol; ``patterns`` (globs over all pairs of the suite) replace the protocol's own choice.

        Raises:
            UnknownNameError: for a pattern that matches nothing.
        """
        wanted = list(patterns) or list(self.protocols[protocol].pairs)
        for pattern in wanted:
            if not any(fnmatch.fnmatchcase(pair, pattern) for pair in self.pairs):
                raise UnknownNameError("pair", pattern, self.pairs, f"suite {self.name}")
        return [pair for pair in self.pairs if any(fnmatch.fnmatchcase(pair, pattern) for pattern in wanted)]


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


def suite_files() -> dict[str, Path]:
    """The packaged suites: name -> file."""
    spec = importlib.util.find_spec("kdbench.pairs")
    if spec is None or not spec.submodule_search_locations:
        raise KdbenchError("kdbench is not installed completely: the package kdbench.pairs is missing (pip install -e .)")
    return {path.stem: path for folder in spec.submodule_search_locations for path in sorted(Path(folder).glob("*.yaml"))}


def load_suite(name: str) -> Suite:
    """Load a packaged suite by name, or any suite by the path of its YAML file.

    Raises:
        UnknownNameError: for a name that is no suite.
        SuiteError: for a file that does not parse or is not valid, with its line.
    """
    packaged = suite_files()
    if name in packaged:
        return read_suite(packaged[name])
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise KdbenchError(f"suite file {name}: no such file")
        return read_suite(Path(name))
    raise UnknownNameError("suite", name, packaged)


def read_suite(path: Path) -> Suite:
    """Read one suite file; see ``load_suite``."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SuiteError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise SuiteError(f"{path}: nested too deeply") from None
    if not isinstance(content, dict):
        raise SuiteError(f"{path}, line 1: a suite is a mapping with the keys {', '.join(Suite.model_fields)}")
    try:
        return Suite.model_validate(content)
    except KdbenchError as error:
        raise SuiteError(f"{path}: {error}") from None
    except ValidationError as error:
        location, problem = _first_problem(error, Suite)
        raise SuiteError(f"{path}, line {_line_of(tree, location)}: {problem}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key_node.value!r} is given twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def _first_problem(error: ValidationError, root: type[BaseModel]) -> tuple[tuple[Any, ...], str]:
    """Location and one line of the first problem of a validation, with the nearest valid key for an unknown one."""
    problem = error.errors(include_url=False)[0]
    location = tuple(problem["loc"])
    where = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        return location, f"unknown key {where!r}; {nearest(str(location[-1]), _valid_keys(root, location[:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "missing":
        return location[:-1], f"{where} is missing"
    given = f" (found {problem['input']!r})" if not isinstance(problem["input"], (dict, list, BaseModel)) else ""
    return location, f"{where}: {message}{given}" if where else message


def _valid_keys(root: type[BaseModel], location: Sequence[Any]) -> list[str]:
    model: Any = root
    for key in location:
        fields = getattr(model, "model_fields", None)
        annotation = fields[key].annotation if fields and key in fields else model
        model = next((part for part in _models_in(annotation)), model)
    return list(getattr(model, "model_fields", {}))


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _line_of(node: yaml.Node | None, location: Sequence[Any]) -> int:
    """Line (from 1) of the deepest part of ``location`` that the file holds."""
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _timm_has(name: str) -> bool:
    import timm

    return bool(timm.is_model(name.split(".")[0]))
