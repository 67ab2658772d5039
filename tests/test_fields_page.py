"""docs/fields.md and the JSON Schema of suites are what the models say, and every suite names the schema."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from kdbench.suite.schema import MODELS, descriptions, suite_schema
from kdbench.suite.suite import suite_files

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "fields.py"))
STALE = "is stale: run python docs/fields.py"


def test_the_page_and_the_schema_are_what_the_models_say() -> None:
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](), f"docs/fields.md {STALE}"
    assert json.loads(SCRIPT["SCHEMA"].read_text()) == suite_schema(), f"docs/suite.schema.json {STALE}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described_and_nothing_else(model: type) -> None:
    assert descriptions(model).keys() == model.model_fields.keys()  # type: ignore[attr-defined]
    assert all(descriptions(model).values())


def test_every_suite_begins_with_the_line_that_editors_read() -> None:
    for path in suite_files().values():
        line = path.read_text().splitlines()[0]
        assert line == "# yaml-language-server: $schema=../docs/suite.schema.json", path


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from kdbench.cli.parser import main

    assert main(["list", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == suite_schema()
