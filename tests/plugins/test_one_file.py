"""One file outside the tree with a method, a metric and a hook: each takes part in a run without an edit elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = '''
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from kdbench import Method, register_method, register_metric


@register_method("halved")
class Halved(Method):
    """Half the supervised loss."""

    def forward(self, batch, student, teacher):
        return {"ce": 0.5 * batch.task_loss(student.logits)}


@register_metric("margin", title="Margin", higher_is_better=True, decimals=2)
def margin(logits, labels, teacher_logits):
    top = logits.softmax(dim=1).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).mean()


@HOOKS.register_module()
class Tells(Hook):
    observes = True

    def after_val_epoch(self, runner, metrics=None):
        runner.logger.info(f"hook: epoch {runner.epoch} margin {metrics['margin']:.4f}")
'''


@pytest.mark.xdist_group("one_file")
def test_a_method_a_metric_and_a_hook_in_one_file_reach_everything(
    kdbench: Callable[..., Any], write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    suite, plugin, out = write_suite(), tmp_path / "mine.py", tmp_path / "runs"
    plugin.write_text(FILE)
    ran = kdbench("run", suite, "--plugin", plugin, "--log", "tensorboard", "--out", out, "--workers", 1)
    assert ran.status == 0, ran.err
    folders = sorted(path.parent for path in out.glob("tiny/short/*/*/*/result.json"))
    assert {folder.parent.name for folder in folders} == {"scratch", "kd", "halved"}
    for folder in folders:
        with open(folder / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        result = json.loads((folder / "result.json").read_text())
        assert result["metrics"]["last"]["margin"] == pytest.approx(float(rows[-1]["margin"]))
        assert set(result["provenance"]["observers"]) == {"Tells"}
        told = [
            line.partition("hook: ")[2] for line in (folder / "log.txt").read_text().splitlines() if "hook: " in line
        ]
        assert told == [f"epoch {row['epoch']} margin {float(row['margin']):.4f}" for row in rows]
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        for tag, column in (("val/top1", "top1"), ("val/margin", "margin")):
            logged = [(event.step, event.value) for event in events.Scalars(tag)]
            assert logged == [(int(row["epoch"]), pytest.approx(float(row[column]))) for row in rows]
    cells = ("--plugin", plugin, "--out", out)
    table = list(csv.reader(io.StringIO(kdbench("table", suite, *cells, "--metric", "margin", "--format", "csv").out)))
    assert any("halved" in row for row in table)
    assert "Margin" in kdbench("leaderboard", suite, *cells, "--metric", "margin").out
    assert kdbench("report", suite, *cells, "--to", tmp_path / "page.html").status == 0
    assert ">margin</th>" in (tmp_path / "page.html").read_text()
