"""Splitting cohorts so that every worker has something to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kdbench.forecast.fit import balance
from kdbench.matrix.cells import Cohort, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.suite.suite import load_suite


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    plan = make_plan(load_suite("digits"), Request(pairs=("resnet-l--vit-s",)), catalog())
    (found,) = plan.cohorts()
    return found


def sizes(cohorts: list[Cohort]) -> list[int]:
    return [len(cohort.cells) for cohort in cohorts]


@pytest.mark.parametrize(
    ("cells", "workers", "expected"),
    [
        ([6, 6, 6], 2, [6, 6, 3, 3]),
        ([6], 1, [6]),
        ([6], 2, [3, 3]),
        ([5], 2, [5]),
        ([6, 2], 2, [2, 3, 3]),
        ([6, 6, 6, 6], 2, [6, 6, 6, 6]),
    ],
)
def test_cohorts_are_split_until_the_workers_are_busy(
    cohort: Cohort, cells: list[int], workers: int, expected: list[int]
) -> None:
    cohorts: list[Any] = [
        dataclasses.replace(cohort, seed=seed, cells=cohort.cells[:count]) for seed, count in enumerate(cells)
    ]
    parts = balance(cohorts, workers)
    assert sizes(parts) == expected
    assert len({part.name for part in parts}) == len(parts)
    before = sorted((whole.seed, cell.folder) for whole in cohorts for cell in whole.cells)
    assert sorted((part.seed, cell.folder) for part in parts for cell in part.cells) == before
