"""Protocols, how much of a suite is run, and the methods that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.suite.problems import Contradiction
from kdbench.suite.recipe import Recipe
from kdbench.suite.types import Count, Name, Seed, Strict


class Protocol(Strict):
    """How much of a suite is run.

    Attributes:
        description: a sentence, for listings.
        version: raised whenever a change of the protocol changes results; part of every result's identity.
        seeds: seeds of the students.
        pairs: globs of the suite's pairs.
        recipe: fields overridden in every recipe of students.
        teacher: fields overridden in every recipe of teachers.
        recipes: fields overridden in single recipes, by name, of students and teachers.
        set: hyper-parameters of methods and variants; they override the suite's.
        images_per_class: training images of each class for students, instead of the suite's.
        teacher_images_per_class: training images of each class for teachers.
        measured_images_per_class: images of each class on which both are evaluated.
        conclusive: whether methods train long enough for a meaningful ranking; captions say if not.
        select: which epoch's figure tables show by default: the last, or the best on the test split, as much released code
            reports.
        teacher_weights: whether teachers have their nets' ``weights``, or are all trained here (for a quick try).
        teacher_preprocessing: whether a teacher that comes with weights sees its own preprocessing or, as in much released code,
            the student's.
    """

    description: str
    version: Count = 1
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    pairs: tuple[str, ...] = ("*",)
    recipe: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    recipes: dict[Name, dict[str, Any]] = {}
    set: dict[str, dict[str, Any]] = {}
    images_per_class: Count | None = None
    teacher_images_per_class: Count | None = None
    conclusive: bool = True
    select: Literal["last", "best"] = "last"
    teacher_weights: Literal["own", "train"] = "own"
    teacher_preprocessing: Literal["own", "student"] = "own"
    measured_images_per_class: Count | None = None

    @model_validator(mode="after")
    def _seeds_differ(self) -> Protocol:
        if len(set(self.seeds)) != len(self.seeds):
            raise Contradiction("a seed is listed twice", "seeds")
        return self


class MethodsSpec(Strict):
    """The methods that run by default, and hyper-parameters that differ from a method's own defaults.

    Attributes:
        default: names of methods.
        set: hyper-parameters by method.
        as_tuned: whether every method takes the values that were published for the pair, as with ``--as-tuned``.
    """

    default: Annotated[tuple[str, ...], Field(min_length=1)]
    set: dict[str, dict[str, Any]] = {}
    as_tuned: bool = False


class Variant(Strict):
    """A method under other hyper-parameters, as a row of its own.

    Attributes:
        method: the name of the method.
        set: its hyper-parameters.
        display: its name in tables.
    """

    method: str
    set: dict[str, Any] = {}
    display: str = ""


@dataclass(frozen=True)
class ResolvedProtocol:
    """A protocol with all that it changes in its suite worked out.

    Attributes:
        pairs: the protocol's own choice, ``teacher--student``.
        recipes, teacher_recipes: by name, of students and of teachers.
        images_per_class, teacher_images_per_class: what students and teachers train on; None for all images.
        measured_images_per_class: what both are measured on.
    """

    name: str
    version: int
    pairs: tuple[str, ...]
    seeds: tuple[int, ...]
    select: Literal["last", "best"]
    recipes: Mapping[str, Recipe]
    teacher_recipes: Mapping[str, Recipe]
    images_per_class: int | None
    teacher_images_per_class: int | None
    measured_images_per_class: int | None
    teacher_weights: Literal["own", "train"]
    teacher_preprocessing: Literal["own", "student"]
