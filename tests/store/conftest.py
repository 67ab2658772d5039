"""A run directory and the cells of a small plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.matrix.cells import Cell, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from tests.conftest import tiny_suite


@pytest.fixture(scope="session")
def cells() -> tuple[Cell, ...]:
    """Twelve cells: three pairs, two methods, two seeds."""
    return make_plan(tiny_suite(), Request(protocol="seeds"), catalog()).cells


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "runs")
    made.check(writable=True)
    return made
