"""docs/nets.csv says of each timm model what building it as teacher and as student gave."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "nets.py"))
NAMES = SCRIPT["NAMES"].read_text().split()
ROWS = list(csv.DictReader((DOCS / "nets.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_net_gives_timms_own_logits_embedding_and_stages(name: str) -> None:
    assert SCRIPT["row"](name) == next(row for row in ROWS if row["net"] == name)


def test_at_least_165_of_171_nets_are_equal_to_timms_own() -> None:
    assert [row["net"] for row in ROWS] == NAMES
    assert len(NAMES) == 171
    assert sum(row["outcome"] == "equal" for row in ROWS) >= 165
    assert all(row["outcome"] == "equal" or row["outcome"].startswith("refused: ") for row in ROWS)
