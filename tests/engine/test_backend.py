"""Machines that lack something, and mmengine's own habits that are worked round."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine.checkpoint import Position, common_start
from kdbench.engine.runner import CohortRunner

from .conftest import Lab


def test_a_missing_system_library_gives_one_line_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")\n'
    )
    out = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli.parser", "run", "--protocol", "smoke", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "libGL.so.1" in done.stderr
    assert "apt-get install libgl1" in done.stderr
    assert not out.exists()


def test_training_and_resuming_need_no_pkg_resources_and_no_pickled_objects(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "pkg_resources":
            raise ModuleNotFoundError("No module named 'pkg_resources'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    plan = lab.plan(["kd"])

    class Stop(BaseException):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        lab.train(plan, on_event=stop)
    lab.events.clear()
    store = lab.train(plan)
    assert [event["epoch"] for event in lab.events if event["event"] == "resumed"] == [1]
    assert store.cell(plan.cells[0]).state() == "done"


def test_the_cohort_runs_on_mmengines_runner() -> None:
    from mmengine.runner import Runner

    assert issubclass(CohortRunner, Runner)


@pytest.mark.parametrize(
    ("available", "groups"),
    [
        ({"a": {(4, 0), (5, 0)}, "b": {(4, 0)}}, {(4, 0): ["a", "b"]}),  # killed while saving: what all have
        ({"a": {(5, 0)}, "b": {(5, 0)}, "c": set()}, {(5, 0): ["a", "b"], (0, 0): ["c"]}),  # c's file was damaged
        ({"a": {(5, 0)}, "b": {(7, 3)}}, {(7, 3): ["b"], (5, 0): ["a"]}),  # nothing in common
        ({"a": {(5, 0), (5, 2)}, "b": {(5, 0), (5, 2)}}, {(5, 2): ["a", "b"]}),  # within an epoch
        ({"a": set(), "b": set()}, {(0, 0): ["a", "b"]}),
    ],
)
def test_interrupted_cells_go_on_together_where_they_can(
    available: dict[str, set[Position]], groups: dict[Position, list[str]]
) -> None:
    assert common_start(available) == groups
