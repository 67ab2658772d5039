"""Hypotheses declared before their results: recorded once, refused afterwards, kept wherever results go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.matrix.cells import Cell
from kdbench.reporting.frame import collect
from kdbench.store.declared import Hypothesis, hypotheses_of, joined, read_declared, write_declared
from kdbench.store.files import DamagedFileError
from kdbench.store.folders import Store
from kdbench.store.merge import compare, write
from kdbench.store.problems import problems_of
from kdbench.store.result import write_record
from kdbench.store.rows import load_results
from kdbench.store.submission import make_submission, read_submission, write_submission
from tests.records import cell_result

BEFORE, AFTER = "2025-12-31T00:00:00Z", "2026-01-02T00:00:00Z"  # of what ``cell_result`` says
WHERE = ("tiny", "seeds")


def declared(method: str, when: str = BEFORE, split: str = "test", against: str = "kd") -> Hypothesis:
    return Hypothesis(method=method, against=against, split=split, declared=when)


def finish(store: Store, cell: Cell) -> None:
    store.check(writable=True)
    store.cell(cell).prepare(cell)
    write_record(store.cell(cell).result, cell_result(cell))


def test_a_hypothesis_is_declared_once_and_before_any_cell_of_its_method(store: Store, cells: tuple[Cell, ...]) -> None:
    one = "ofa"
    ask = {
        "root": store.root,
        "suite": WHERE[0],
        "protocol": WHERE[1],
        "split": "test",
        "planned": ["scratch", "kd", one],
    }
    (added,) = hypotheses_of(**ask, methods=[one, one], now=BEFORE)
    assert added == declared(one)
    write_declared(store.root, *WHERE, [added])
    finish(store, replace(cells[0], method=one))
    assert read_declared(store.root, *WHERE) == (added,)
    assert hypotheses_of(**ask, methods=[one]) == []  # the same run goes on
    (store.root / "tiny/seeds/declared.json").unlink()
    with pytest.raises(KdbenchError, match=f"--confirm {one}: 1 cell of it are in .* already"):
        hypotheses_of(**ask, methods=[one])
    assert hypotheses_of(**ask | {"split": "validation"}, methods=[one], now=BEFORE) == [
        declared(one, split="validation")
    ]
    with pytest.raises(UnknownNameError, match="unknown"):
        hypotheses_of(**ask, methods=["oafa"])
    with pytest.raises(KdbenchError, match="counted from"):
        hypotheses_of(**ask, methods=["kd"])
    with pytest.raises(KdbenchError, match="neither is planned"):
        hypotheses_of(**ask | {"root": store.root / "empty", "planned": [one]}, methods=[one])
    assert not hypotheses_of(**ask, methods=[])


def test_a_link_or_a_damaged_declaration_is_told_and_hides_no_cell(store: Store, cells: tuple[Cell, ...]) -> None:
    finish(store, cells[0])
    file = store.root / "tiny/seeds/declared.json"
    file.symlink_to("/etc/hostname")
    with pytest.raises(DamagedFileError, match="link"):
        read_declared(store.root, *WHERE)
    file.unlink()
    file.write_text("{}")
    frame = load_results(store.root)
    assert (len(frame), frame["declared"].tolist()) == (1, [""])
    assert frame.attrs["damaged"] == ["tiny/seeds/declared.json: its checksum does not match"]


def test_declarations_survive_csv_submission_and_merge(store: Store, cells: tuple[Cell, ...], tmp_path: Path) -> None:
    own, other = (replace(cells[0], method=method) for method in ("ofa", "dkd"))
    hypotheses = joined([declared(own.method), declared("never-run")])
    finish(store, own)
    write_declared(store.root, *WHERE, hypotheses)
    second = Store(tmp_path / "second")
    finish(second, other)
    write_declared(second.root, *WHERE, [declared(own.method, AFTER), declared(other.method, AFTER)])

    frame = load_results(store.root)
    assert collect(frame).declared == hypotheses
    frame.to_csv(tmp_path / "cells.csv", index=False)
    assert collect(load_results(tmp_path / "cells.csv")).declared == hypotheses

    submission, damaged = make_submission(store.root, *WHERE, "test")
    assert not damaged
    write_submission(tmp_path / "in.json", submission)
    assert read_submission(tmp_path / "in.json")[0].hypotheses == hypotheses
    assert collect(load_results(tmp_path / "in.json")).declared == hypotheses
    late = submission.model_copy(
        update={"hypotheses": (declared(own.method, AFTER), declared("x", split="validation"))}
    )
    places = [place for place, _ in problems_of(late, None) if place[0] == "hypotheses"]
    assert places == [("hypotheses", 0, "declared"), ("hypotheses", 1, "split")]
    assert not [place for place, _ in problems_of(submission, None) if place[0] == "hypotheses"]

    merge = compare([store.root, second.root])
    assert write(merge, tmp_path / "both") == []
    kept = read_declared(tmp_path / "both", *WHERE)
    assert kept == joined([*hypotheses, declared(other.method, AFTER)])
    results = collect(load_results(tmp_path / "both"))
    assert [each.method for each in results.late] == [other.method]  # its cell was there before
    assert {*results.declared} == {*hypotheses}


def test_a_row_of_csv_with_another_declaration_is_refused(
    store: Store, cells: tuple[Cell, ...], tmp_path: Path
) -> None:
    finish(store, cells[0])
    frame = load_results(store.root)
    frame["declared"] = json.dumps([{"method": "../x", "against": "kd", "split": "test", "declared": BEFORE}])
    frame.to_csv(tmp_path / "cells.csv", index=False)
    again = load_results(tmp_path / "cells.csv")
    assert again.empty
    assert "declared" in again.attrs["damaged"][0]
