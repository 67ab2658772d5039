"""One plugin file with a method, a metric and a hook: its metric reaches the result and everything that is made of results."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import HOOKS

from kdbench.errors import KdbenchError
from kdbench.plugins.entry import METHODS, PluginError
from kdbench.plugins.metrics import METRICS, measure, register_metric
from kdbench.plugins.registry import catalog
from kdbench.store.rows import COLUMNS, load_results

PLUGIN = '''
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from kdbench import Method, register_method, register_metric


@register_method("mine")
class Mine(Method):
    """A method of the tests."""

    def forward(self, batch, student, teacher):
        return {"ce": batch.task_loss(student.logits)}


@register_metric("margin", title="Mean margin", unit="logits", higher_is_better=False, decimals=2)
def margin(logits, labels, teacher_logits):
    """Largest logit minus the second one."""
    best = logits.topk(2, dim=1).values
    logits.zero_()  # a copy: nothing else sees it
    return (best[:, 0] - best[:, 1]).mean()


@HOOKS.register_module()
class Counts(Hook):
    """A hook of the tests."""

    observes = True
'''


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    before = {**METRICS}
    yield
    METRICS.clear()
    METRICS.update(before)
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        del METHODS[name]
    for module in [module for module in sys.modules if module.startswith("kdbench_plugin_")]:
        del sys.modules[module]
    HOOKS.module_dict.pop("Counts", None)


def write(folder: Path, text: str = PLUGIN) -> str:
    path = folder / "plugin.py"
    path.write_text(text)
    return str(path)


def test_metric_of_a_plugin_reaches_result_table_leaderboard_and_page(
    kdbench: Callable[..., Any], write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    plugin, runs = write(tmp_path), tmp_path / "runs"
    ran = kdbench("run", write_suite(), "--methods", "kd,mine", "--plugin", plugin, "--out", runs, "--workers", "1")
    assert ran.status == 0, ran.err
    metrics = {}
    for path in runs.glob("tiny/short/cnn--vit/*/*/result.json"):
        content = json.loads(path.read_text())
        metrics[path.parts[-3]] = content["metrics"]["last"]["margin"]
        assert content["plugin_metrics"]["margin"]["title"] == "Mean margin"
        with open(path.with_name("history.csv")) as file:
            assert float(list(csv.DictReader(file))[-1]["margin"]) == metrics[path.parts[-3]] > 0
    assert set(metrics) == {"kd", "mine"}
    frame = load_results(runs).set_index("method")
    assert frame["margin"].to_dict() == metrics
    # The readers know neither the plugin nor torch.
    table = kdbench("table", tmp_path / "tiny.yaml", "--methods", "kd", "--metric", "margin", "--out", runs)
    assert "Mean margin (logits, lower is better)" in table.out
    assert f"{metrics['kd']:.2f}" in table.out
    rows = kdbench("table", tmp_path / "tiny.yaml", "--metric", "margin", "--format", "csv", "--out", runs).out
    found = {row["method"]: row for row in csv.DictReader(rows.splitlines())}
    assert float(found["mine"]["mean"]) == pytest.approx(metrics["mine"])
    board = kdbench("leaderboard", tmp_path / "tiny.yaml", "--metric", "margin", "--out", runs).out
    assert f"{metrics['kd'] - metrics['mine']:+.3f}" in board
    kdbench("report", tmp_path / "tiny.yaml", "--out", runs, "--to", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "margin (logits)" in page
    assert f"{metrics['mine']:.3f}" in page
    unknown = kdbench("table", tmp_path / "tiny.yaml", "--metric", "margn", "--out", runs)
    assert (unknown.status, unknown.err) == (2, "kdbench: unknown metric 'margn'; did you mean 'margin'?\n")


def test_metric_that_raises_or_gives_no_number_leaves_the_others_alone() -> None:
    import torch

    @register_metric("broken")
    def broken(logits: Any, labels: Any, teacher_logits: Any) -> Any:
        labels.zero_()
        return 1 / 0

    @register_metric("vector")
    def vector(logits: Any, labels: Any, teacher_logits: Any) -> Any:
        return logits

    @register_metric("endless")
    def endless(logits: Any, labels: Any, teacher_logits: Any) -> float:
        return float("inf")

    logits, labels, said = torch.eye(3), torch.arange(3), list[str]()
    found = measure(logits, labels, logits, said.append)
    assert (found["top1"], found["agreement"]) == (100.0, 100.0)
    assert labels.tolist() == [0, 1, 2]
    assert [found[name] != found[name] for name in ("broken", "vector", "endless")] == [True] * 3
    assert said[0] == "metric broken has no value: ZeroDivisionError: division by zero"
    assert [text.split(":")[0] for text in said] == ["metric broken has no value", "metric vector has no value"]


@pytest.mark.parametrize("name", [*COLUMNS, "epoch", "lr", "value", "best_mine", "loss_mine", "Mine", "a-b", ""])
def test_names_that_are_columns_of_results_are_refused(name: str) -> None:
    if name in METRICS:
        name = "top-1"
    with pytest.raises(KdbenchError, match="metric"):
        register_metric(name)


def test_name_of_a_metric_is_taken_by_one_module_only() -> None:
    with pytest.raises(KdbenchError, match="metric 'top1' is registered twice"):
        register_metric("top1")(lambda logits, labels, teacher_logits: 0.0)


def test_file_with_a_metric_or_a_hook_alone_is_a_plugin(tmp_path: Path) -> None:
    start, _, rest = PLUGIN.partition('@register_method("mine")')
    metric, hook = rest[rest.index("@register_metric") :].split("@HOOKS")
    found = catalog([write(tmp_path, start + metric)])
    assert list(found.metrics.values()) == [tmp_path / "plugin.py"]
    assert all(entry.builtin for entry in found.values())
    assert not catalog([write(tmp_path, f"{start}@HOOKS{hook}")]).metrics


def test_plugin_with_a_metric_that_does_not_import_is_refused_with_its_traceback(tmp_path: Path) -> None:
    found = catalog([write(tmp_path, f"{PLUGIN}\nraise RuntimeError('boom')\n")])
    with pytest.raises(PluginError, match="RuntimeError: boom") as caught:
        found.load_metrics()
    assert "raise RuntimeError('boom')" in caught.value.details
