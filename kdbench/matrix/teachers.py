"""The teachers of a plan: which net, where its weights come from, and what these depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from kdbench.errors import KdbenchError
from kdbench.matrix.identity import CONFIG_VERSION, config_hash
from kdbench.suite.datasets import find_dataset
from kdbench.suite.net import NetSpec, TrainedHere
from kdbench.suite.problems import first_problem
from kdbench.suite.protocol import ResolvedProtocol
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher: a net, and where its weights come from. ``hash`` covers everything that they depend on."""

    name: str
    net: NetSpec
    recipe: Recipe
    recipe_name: str
    seed: int
    config: Mapping[str, Any]
    expected_top1: float = 0.0
    #: The evaluated split, where it decides which images the teacher is trained on; else "test".
    split: str = "test"
    #: Those that must be ready before it: the members of an ensemble, the teacher of an assistant.
    teachers: tuple[TeacherPlan, ...] = ()
    #: Whether it is shown the preprocessing of a student instead of its own.
    seen_through: bool = False

    @property
    def trained_here(self) -> bool:
        """Whether it is trained on the suite's data; else it comes with weights."""
        return self.net.trained_here

    @property
    def chain(self) -> list[TeacherPlan]:
        """All that it depends on, in the order in which they can be prepared, and itself."""
        return [*(each for teacher in self.teachers for each in teacher.chain), self]

    @cached_property
    def hash(self) -> str:
        return config_hash(self.config)

    @property
    def folder(self) -> str:
        """Its folder below the run directory."""
        return f"teachers/{self.name}-{self.hash}"


def plan_teacher(
    suite: Suite,
    protocol: ResolvedProtocol,
    name: str,
    split: str = "test",
    limit: int | None = None,
    seen_through: NetSpec | None = None,
    retrained: Mapping[str, TrainedHere] | None = None,
) -> TeacherPlan:
    """The teacher ``name`` of cells that are measured on ``split``.

    A teacher that comes with weights may be given the preprocessing of a student (``seen_through``), as released code does,
    or be trained here instead (``retrained``, by name).

    Raises:
        KdbenchError: if it is to be fine-tuned and timm has no weights for it.
    """
    net = suite.net(name)
    teachers = tuple(
        plan_teacher(suite, protocol, each, split, limit, seen_through, retrained) for each in net.teachers
    )
    how: TrainedHere | None = "train" if protocol.teacher_weights == "train" else None
    if (how := (retrained or {}).get(name, how)) is not None and not net.ensemble:
        try:
            net = net.with_weights(how)
        except ValidationError as error:
            raise KdbenchError(f"teacher {name}: {first_problem(error, NetSpec, net.model_dump())[1]}") from None
    if net.trained_here:
        seen_through = None
    if seen_through is not None:
        from kdbench.nets.models import preprocessing_of  # a student's may stand in its own configuration

        with contextlib.suppress(
            KdbenchError
        ):  # of a student that cannot be built, whose pairs ``check_cells`` takes out
            net = net.model_copy(update=preprocessing_of(seen_through))
    if net.ensemble:  # of its nets as they are planned
        members = {teacher.name: teacher.net.model_dump(mode="json") for teacher in teachers}
        net = net.model_copy(update={"ensemble": members, "family": net.family or teachers[0].net.family})
    net = with_family(net, name)
    assert net.family is not None
    recipe_name = suite.recipe_name(name, net.family, teacher=True)
    recipe = protocol.teacher_recipes[recipe_name]
    if net.weights == "train" and not net.ensemble:
        net = with_drop_path(net, recipe)
    dataset = find_dataset(suite.dataset.name)
    # A teacher must not have seen what its students are measured on.
    split = split if dataset.holds_out and net.trained_here else "test"
    trained = net.trained_here and not net.ensemble
    config = {
        "config_version": CONFIG_VERSION,
        "kind": "teacher",
        "name": name,
        "split": split,
        "dataset": dataset_config(suite, protocol, limit, protocol.teacher_images_per_class if trained else None),
        "net": net.identity(),
        "recipe": recipe.identity() if trained else None,
        "seed": suite.teacher_seed if trained else None,
        "cpu_threads": suite.cpu_threads,
    }
    if teachers:
        config["teachers"] = [{"name": teacher.name, "hash": teacher.hash} for teacher in teachers]
    if net.taught_by:
        config["method"] = _kd_of(suite, protocol, net.family or "")
    return TeacherPlan(
        name,
        net,
        recipe,
        recipe_name,
        suite.teacher_seed,
        config,
        suite.teacher_at_least,
        split,
        teachers,
        bool(seen_through),
    )


def _kd_of(suite: Suite, protocol: ResolvedProtocol, family: str) -> dict[str, Any]:
    """The method that trains an assistant of ``family``: ``kd`` as the suite sets it."""
    from kdbench.plugins.registry import catalog  # reads every method

    entry, of_protocol = catalog()["kd"], suite.protocols[protocol.name].set
    presets = [name for name in (suite.dataset.presets, suite.dataset.name) if name]
    settings = entry.resolve(presets, suite.methods.set.get("kd", {}), of_protocol.get("kd", {}), family=family)
    return {"name": "kd", "version": entry.version, "hyperparameters": settings}


def dataset_config(
    suite: Suite, protocol: ResolvedProtocol, limit: int | None, images_per_class: int | None
) -> dict[str, Any]:
    """What an identity says of the data: the data set, and which of its images are used."""
    dataset = find_dataset(suite.dataset.name)
    return {
        "name": dataset.name,
        "version": dataset.version,
        "images_per_class": images_per_class,
        "measured_images_per_class": protocol.measured_images_per_class,
        "limit": limit,
        **suite.dataset.identity(),
    }


def with_drop_path(net: NetSpec, recipe: Recipe) -> NetSpec:
    """A net with the stochastic depth that its recipe asks for."""
    if recipe.drop_path is None:
        return net
    return net.model_copy(update={"args": {**net.args, "drop_path_rate": recipe.drop_path}})


def with_family(net: NetSpec, name: str) -> NetSpec:
    """A net with its family: as declared, else as its class or its modules tell (which imports torch).

    One that cannot be built counts as a CNN until ``check_cells`` takes it out.
    """
    if net.family is not None:
        return net
    from kdbench.nets.tapped import describe

    try:
        return net.model_copy(update={"family": describe(net, 10, name).family})
    except KdbenchError:
        return net.model_copy(update={"family": "cnn"})
