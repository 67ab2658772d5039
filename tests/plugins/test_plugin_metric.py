"""Metrics of plugins: their names, what they may do, and the files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.plugins.metrics import METRICS, measure, register_metric
from kdbench.plugins.registry import catalog
from kdbench.store.rows import COLUMNS
from kdbench.userfiles import PluginError

pytestmark = pytest.mark.usefixtures("forget_plugins")

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


def write(folder: Path, text: str = PLUGIN) -> str:
    path = folder / "plugin.py"
    path.write_text(text)
    return str(path)


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
