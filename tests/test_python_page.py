"""The examples of docs/python.md run, one after the other, from an empty folder."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest

import kdbench
from kdbench import api
from kdbench.matrix.request import Request

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_example_of_the_page_runs_in_an_empty_folder(tmp_path: Path) -> None:
    code = "\n".join(BLOCKS) + (
        "\nassert len(ran.done) == 2 and not ran.failed"
        "\nassert latex.startswith('%') and '\\\\begin{table' in latex"
        "\nassert set(figures['method']) == {'scratch', 'kd'} and figures['mean'].between(0, 100).all()"
        "\nassert len(search.to_dataframe()) == 2 and set(search.best) == {'kd'}"
        "\nassert board._repr_html_().count('<table') == 1 and 'KD' in board.text"
        "\nassert set(kdbench.load_results()['method']) == {'scratch', 'kd', 'kd-hot', 'kd-trial1'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unknown method 'kdd'; did you mean 'kd'?" in done.stdout
    assert re.search(r"^\[\d+:\d\d\]  cells 2/2", done.stdout, re.MULTILINE), "no plain lines of progress"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "best.yaml"}


def test_functions_take_every_field_of_a_request() -> None:
    assert {*typing.get_type_hints(api.Options)} == {field.name for field in fields(Request)} - {"suite"}


@pytest.mark.parametrize("name", ["plan", "run", "tune", "table", "leaderboard", "load_results"])
def test_public_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(kdbench, name)
    assert name in kdbench.__all__
    assert inspect.getdoc(function)
    assert function.__annotations__["return"]


def test_tables_take_the_choices_of_an_author_as_the_command_line_does() -> None:
    cells = PAGE.parents[1] / "results" / "measured" / "cifar100-tiny-cpu" / "cells.csv"
    view = kdbench.table(
        "cifar100-tiny",
        out=cells,
        methods=["kd", "dist", "rsd", "lfcc"],
        ours="lfcc",
        baseline="dist",
        order=["rsd"],
        rename={"kd": "Vanilla"},
        decimals=0,
    )
    (table,) = view.parts
    titles = [header.title for header in table.columns]
    assert titles == ["Teacher", "RSD", "Vanilla", "DIST", "LFCC", "over best other"]
    assert "--rename kd=Vanilla --ours lfcc --baseline dist --order rsd --decimals 0" in table.command
    with pytest.raises(kdbench.KdbenchError, match="unknown method 'kdd'"):
        kdbench.table("cifar100-tiny", out=cells, order=["kdd"])
