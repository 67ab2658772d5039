"""Hyper-parameters that papers and their code give for single pairs of nets: ``methods/tuned.yaml``, used by ``--as-tuned``."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import yaml


class Tuned(NamedTuple):
    """Published values of a method for a pair of nets, by their names in the suites, and where they were read."""

    method: str
    dataset: str
    teacher: str
    student: str
    values: Mapping[str, Any]
    source: str


@functools.cache
def tuned_values() -> tuple[Tuned, ...]:
    """All that is known."""
    text = importlib.resources.files("kdbench.methods").joinpath("tuned.yaml").read_text(encoding="utf-8")
    return tuple(Tuned(**entry) for entry in yaml.safe_load(text))


def find_tuned(method: str, datasets: Collection[str], teacher: str, student: str) -> Tuned | None:
    """What was published for a method and a pair on any of ``datasets``; None where nothing is known."""
    known = (entry for entry in tuned_values() if entry.dataset in datasets)
    return next((entry for entry in known if (entry.method, *entry[2:4]) == (method, teacher, student)), None)
