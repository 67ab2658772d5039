"""docs/nets.csv says of each timm model what building it as teacher and as student gave."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "nets.py"))
NAMES = SCRIPT["NAMES"].read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_net_gives_timms_own_logits_embedding_and_stages(name: str) -> None:
    table = {row["net"]: row for row in csv.DictReader((DOCS / "nets.csv").open())}
    assert SCRIPT["row"](name) == table[name]


def test_at_least_165_of_171_nets_are_equal_to_timms_own() -> None:
    rows = list(csv.DictReader((DOCS / "nets.csv").open()))
    assert [row["net"] for row in rows] == NAMES
    assert len(NAMES) == 171
    assert sum(row["outcome"] == "equal" for row in rows) >= 165
    assert all(row["outcome"] == "equal" or row["outcome"].startswith("refused: ") for row in rows)
