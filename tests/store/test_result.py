"""The typed result: what it refuses, and its schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import kdbench
from kdbench.matrix.cells import Cell
from kdbench.store.files import DamagedFileError, encode_json
from kdbench.store.result import CellResult, Failure, TeacherResult, number, read_record, schema, scores, write_record
from tests.records import COST, cell_result, teacher_result


def test_committed_schema_is_current() -> None:
    """Made with ``python -m kdbench.store.result --schema > docs/result.schema.json``."""
    committed = Path(kdbench.__file__).parents[1] / "docs" / "result.schema.json"
    assert committed.read_text() == schema()


def test_records_are_read_back_as_they_were_written(tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    for record in (cell_result(cells[0]), teacher_result(cells[0].teacher), Failure(kind="crash", reason="why")):
        write_record(tmp_path / "x.json", record)
        assert read_record(tmp_path / "x.json", type(record)) == record


def test_what_is_not_a_number_becomes_null(tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    assert [number(value) for value in (1, math.nan, math.inf, -math.inf)] == [1.0, None, None, None]
    used = cell_result(cells[0]).teacher.model_copy(update={"metrics": scores({"top1": 1.0, "agreement": math.nan})})
    write_record(tmp_path / "x.json", cell_result(cells[0]).model_copy(update={"teacher": used}))
    assert json.loads((tmp_path / "x.json").read_text())["teacher"]["metrics"] == {"top1": 1.0, "agreement": None}


@pytest.mark.parametrize("change", [{"step_seconds": math.nan}, {"steps": "many"}, {"stpes": 1}])
def test_values_and_fields_that_do_not_belong_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        type(COST)(**{**COST.model_dump(), **change})


def test_other_kinds_and_versions_are_damaged(tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    path = tmp_path / "x.json"
    write_record(path, cell_result(cells[0]))
    with pytest.raises(DamagedFileError, match="is damaged"):
        read_record(path, TeacherResult)
    path.write_bytes(encode_json({**cell_result(cells[0]).model_dump(mode="json"), "version": 2}))
    with pytest.raises(DamagedFileError, match="version: Input should be 1"):
        read_record(path, CellResult)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "nowhere", CellResult)
