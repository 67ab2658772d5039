"""Hyper-parameters that papers and their code give for single pairs of nets: ``methods/tuned.yaml``.

``--as-tuned`` uses them, and a suite whose ``methods`` say ``as_tuned``.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml


class Tuned(NamedTuple):
    """Published values of a method for pairs of nets, by their names in the suites, and where they were read."""

    method: str
    dataset: str
    pairs: Sequence[str]
    values: Mapping[str, Any]
    source: str


@functools.cache
def tuned_values() -> tuple[Tuned, ...]:
    """All that is known."""
    text = importlib.resources.files("kdbench.methods").joinpath("tuned.yaml").read_text(encoding="utf-8")
    return tuple(Tuned(**entry) for entry in yaml.safe_load(text))


def find_tuned(method: str, datasets: Collection[str], pair: str) -> list[Tuned]:
    """What was published for a method and a pair on any of ``datasets``."""
    return [
        entry
        for entry in tuned_values()
        if entry.method == method and entry.dataset in datasets and pair in entry.pairs
    ]
