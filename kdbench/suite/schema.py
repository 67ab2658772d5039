"""The JSON Schema of a suite's file, and what the docstrings of its models say of each field."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.net import NetSpec, WeightsFile
from kdbench.suite.protocol import MethodsSpec, Protocol, Variant
from kdbench.suite.recipe import Augment, OptimizerSpec, Recipe, ResizedCrop, ScheduleSpec
from kdbench.suite.suite import Suite

#: All models of a suite's file, in reading order.
MODELS: tuple[type[BaseModel], ...] = (
    *(Suite, DatasetSpec, NetSpec, WeightsFile, Recipe, OptimizerSpec, ScheduleSpec, Augment, ResizedCrop),
    *(Protocol, MethodsSpec, Variant),
)


def summary(model: type[BaseModel]) -> str:
    """What the docstring of a model says before its ``Attributes:``."""
    return _docstring(model).partition("Attributes:\n")[0].strip().replace("``", "`")


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring of a model says of each field."""
    found: dict[str, str] = {}
    text = _docstring(model).partition("Attributes:\n")[2]
    for names, words in re.findall(r"^    ([a-z_0-9, ]+): (.*(?:\n        .*)*)", text, re.MULTILINE):
        found.update(dict.fromkeys(names.split(", "), " ".join(words.split()).replace("``", "`")))
    return found


def suite_schema() -> dict[str, Any]:
    """The JSON Schema of a suite's file, with the descriptions of its fields."""
    content = Suite.model_json_schema()
    for model in MODELS:
        part = content if model is Suite else content["$defs"][model.__name__]
        part = part["anyOf"][0] if "anyOf" in part else part
        part["description"] = summary(model)
        for name, text in descriptions(model).items():
            part["properties"][name]["description"] = text
    return content


def _docstring(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")
