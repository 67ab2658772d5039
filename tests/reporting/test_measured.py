"""What is committed beside measured results is what the commands beside it make of them."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Said

MEASURED = Path(__file__).parents[2] / "results" / "measured"
#: Of each folder what people read; the same in other formats by name.
COMMANDS = [
    pytest.param(
        page.parent,
        line,
        id=f"{page.parent.name}: {line}",
        marks=[] if line.endswith(".md") else [pytest.mark.slow],
    )
    for page in sorted(MEASURED.glob("*/README.md"))
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith(("kdbench table ", "kdbench leaderboard ")) and not line.endswith(".png")
]


@pytest.mark.parametrize(("folder", "command"), COMMANDS)
def test_tables_are_those_of_the_committed_cells(
    kdbench: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, command: str
) -> None:
    shutil.copy(folder / "cells.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words := shlex.split(command))  # which the files hold
    assert kdbench(*words[1:]).status == 0
    assert (tmp_path / words[-1]).read_bytes() == (folder / words[-1]).read_bytes()
