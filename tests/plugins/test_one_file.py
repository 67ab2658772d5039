"""One file outside the tree with a method, a metric and a hook: each takes part in a run without an edit elsewhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.store.rows import load_results

pytestmark = pytest.mark.usefixtures("forget_plugins")

FILE = '''
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from kdbench import Method, register_method, register_metric


@register_method("halved")
class Halved(Method):
    """Half the supervised loss."""

    def forward(self, batch, student, teacher):
        return {"ce": 0.5 * batch.task_loss(student.logits)}


@register_metric("margin", title="Mean margin", unit="logits", higher_is_better=False, decimals=2)
def margin(logits, labels, teacher_logits):
    best = logits.topk(2, dim=1).values
    logits.zero_()  # a copy: nothing else sees it
    return (best[:, 0] - best[:, 1]).mean()


@HOOKS.register_module()
class Tells(Hook):
    observes = True

    def after_val_epoch(self, runner, metrics=None):
        runner.logger.info(f"hook: epoch {runner.epoch} margin {metrics['margin']:.4f}")
'''


@pytest.mark.slow
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
    frame = load_results(out).set_index("method")
    # The readers know neither the plugin nor torch.
    table = kdbench("table", suite, "--methods", "kd", "--metric", "margin", "--out", out)
    assert "Mean margin (logits, lower is better)" in table.out
    assert f"{frame.loc['kd', 'margin']:.2f}" in table.out
    rows = kdbench("table", suite, "--metric", "margin", "--format", "csv", "--out", out).out
    means = {row["method"]: float(row["mean"]) for row in csv.DictReader(rows.splitlines())}
    assert means["halved"] == pytest.approx(frame.loc["halved", "margin"])
    board = kdbench("leaderboard", suite, "--metric", "margin", "--out", out).out
    assert f"{frame.loc['kd', 'margin'] - frame.loc['halved', 'margin']:+.3f}" in board
    assert kdbench("report", suite, "--out", out, "--to", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text()
    assert "margin (logits)" in page
    assert f"{frame.loc['halved', 'margin']:.3f}" in page
    unknown = kdbench("table", suite, "--metric", "margn", "--out", out)
    assert (unknown.status, unknown.err) == (2, "kdbench: unknown metric 'margn'; did you mean 'margin'?\n")
