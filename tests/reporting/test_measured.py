"""What is committed beside measured results is what the commands beside it make of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Said

MEASURED = Path(__file__).parents[2] / "results" / "measured"
COMMANDS = [
    (page.parent, line)
    for page in sorted(MEASURED.glob("*/README.md"))
    for line in page.read_text().splitlines()
    if line.startswith(("kdbench table ", "kdbench leaderboard ")) and line.endswith((".md", ".tex", ".csv"))
]


@pytest.mark.parametrize(
    ("folder", "command"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_tables_are_those_of_the_committed_cells(
    kdbench: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, command: str
) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(command)[1:]
    committed = folder / words[-1]
    said = kdbench(*words[:-1], tmp_path / committed.name)
    assert said.status == 0, said.out + said.err
    assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()
