"""Hooks of users: they see each cell as if it were trained alone, and fail it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError, ListedError, StopRequested
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.suite.suite import Suite
from tests.engine.conftest import ONE_EPOCH, TINY, Lab
from tests.few import few

HOOK = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class {name}(Hook):
    observes = {observes}

{body}
"""

Write = Callable[..., str]

#: Changes what is trained, by chance, with something to remember: it shrinks the classifier more at every step.
SHRINK = """
def before_run(self, runner):
    self.steps = 0
def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
    self.steps += 1
    with torch.no_grad():
        runner.model.student.net.get_parameter("head.weight").mul_(1 - 0.01 * self.steps * torch.rand(()))
def before_save_checkpoint(self, runner, checkpoint):
    checkpoint["shrink"] = self.steps
def after_load_checkpoint(self, runner, checkpoint):
    self.steps = checkpoint["shrink"]
"""
RAISE = """
def {point}(self, runner, *args, **details):
    if {when}:
        raise ValueError("enough")
"""


@pytest.fixture
def write_hook(tmp_path: Path) -> Write:
    """Write a file with one hook, whose methods are ``body``, and return its path."""

    def write(body: str, name: str = "Mine", observes: bool = False) -> str:
        path = tmp_path / f"{name.lower()}_hook.py"
        lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
        path.write_text(HOOK.format(name=name, observes=observes, body=lines))
        return str(path)

    return write


def results(lab: Lab, store: Store, plan: Any) -> list[Any]:
    return [lab.result(store, plan, cell.method)["metrics"] for cell in plan.cells]


def test_a_hook_is_called_at_mmengines_points_and_sees_its_cell(lab: Lab, write_hook: Write) -> None:
    points = ("before_run", "before_train", "before_train_epoch", "before_train_iter", "after_train_iter",
              "after_train_epoch", "before_val_epoch", "after_val_epoch", "after_train", "after_run")  # fmt: skip
    body = "\n".join(
        f"def {point}(self, runner, *args, **details):\n"
        f"    runner.logger.info(f'{point} {{runner.epoch}} {{runner.iter}} {{len(details)}}')"
        for point in points
    )
    body += "\ndef before_val(self, runner):\n    runner.logger.info(f'{runner.method} {sorted(runner.losses)}')"
    body += (
        "\ndef after_val(self, runner):\n    runner.logger.info(str(runner.metrics['top1'] == runner.metrics['top1']))"
    )
    plan = lab.plan(["scratch", "kd"], recipe={"epochs": 2, "batch_size": 40}, hooks=(write_hook(body, observes=True),))
    store = lab.train(plan)
    log = [line.split(" ", 2)[2] for line in store.cell(plan.cells[1]).log.read_text().splitlines()]
    told = [line for line in log if not line.startswith(("epoch", "done"))]
    epoch = [
        "before_train_epoch {0} {1} 0",
        "before_train_iter {0} {1} 2",
        "after_train_iter {0} {1} 3",
        "before_train_iter {0} {2} 2",
        "after_train_iter {0} {2} 3",
        "after_train_epoch {0} {3} 0",
        "kd ['ce', 'kd']",
        "before_val_epoch {4} {3} 0",
        "after_val_epoch {4} {3} 1",
        "True",
    ]
    assert told == [
        "before_run 0 0 0",
        "before_train 0 0 0",
        *(line.format(0, 0, 1, 2, 1) for line in epoch),
        *(line.format(1, 2, 3, 4, 2) for line in epoch),
        "after_train 2 4 0",
        "after_run 2 4 0",
    ]


@pytest.mark.parametrize("point", few(["after_train_iter", "after_val_epoch", "before_run", "after_run"]))
def test_a_hook_that_raises_fails_its_cell_alone(lab: Lab, write_hook: Write, point: str) -> None:
    hook = write_hook(RAISE.format(point=point, when="runner.method == 'kd'"), observes=True)
    plan = lab.plan(["scratch", "kd", "fitnet"], recipe=ONE_EPOCH, hooks=(hook,))
    store = lab.train(plan, "with")
    states = {cell.method: store.cell(cell).state() for cell in plan.cells}
    assert states == {"scratch": "done", "kd": "failed", "fitnet": "done"}
    failed = next(cell for cell in plan.cells if cell.method == "kd")
    assert store.cell(failed).failure().reason == f"hook Mine raised in {point}: ValueError: enough"
    alone = lab.plan(["scratch", "fitnet"], recipe=ONE_EPOCH)
    without = lab.train(alone, "without")
    for method in ("scratch", "fitnet"):
        assert lab.result(store, plan, method)["metrics"] == lab.result(without, alone, method)["metrics"]


def test_a_hook_that_raises_for_every_cell_of_a_cohort_leaves_other_cohorts_alone(lab: Lab, write_hook: Write) -> None:
    hook = write_hook(RAISE.format(point="before_run", when="runner.cell.endswith('seed1')"))
    plan = lab.plan(["scratch", "kd"], seeds=(0, 1), recipe=ONE_EPOCH, hooks=(hook,))
    store = lab.train(plan)
    states = {(cell.seed, cell.method): store.cell(cell).state() for cell in plan.cells}
    assert states == {(0, "scratch"): "done", (0, "kd"): "done", (1, "scratch"): "failed", (1, "kd"): "failed"}


@pytest.mark.slow
def test_a_hook_gives_the_same_numbers_alone_in_a_cohort_and_after_an_interruption(lab: Lab, write_hook: Write) -> None:
    plan = lab.plan(["scratch", "kd"], hooks=(write_hook(SHRINK),))
    together = lab.train(plan, "together")
    assert results(lab, lab.train(plan, "apart", solo=True), plan) == results(lab, together, plan)
    with pytest.raises(StopRequested):
        lab.train(
            plan,
            "broken",
            on_event=lambda event: (event["event"], event.get("epoch"), event.get("step")) == ("step", 1, 2),
        )
    assert results(lab, lab.train(plan, "broken"), plan) == results(lab, together, plan)
    plain = lab.plan(["scratch", "kd"])
    assert results(lab, lab.train(plain, "together"), plain) != results(lab, together, plan)


def test_what_an_observer_draws_changes_nothing_and_it_stands_in_the_provenance(lab: Lab, write_hook: Write) -> None:
    body = "def after_train_iter(self, runner, **details):\n    torch.rand(3)"
    plain, observed = lab.plan(["kd"]), lab.plan(["kd"], hooks=(write_hook(body, observes=True),))
    assert observed.cells[0].hash == plain.cells[0].hash
    without, watched = lab.train(plain, "without"), lab.train(observed, "with")
    assert results(lab, watched, observed) == results(lab, without, plain)
    assert lab.result(watched, observed, "kd")["provenance"]["observers"] == {"Mine": observed.hooks[0].source}


def test_a_hook_is_part_of_the_identity_by_its_source_and_that_of_the_modules_beside_it(
    lab: Lab, write_hook: Write, tmp_path: Path
) -> None:
    def identity(*hooks: str) -> str:
        choice = Request(methods=("kd",), pairs=("cnn--vit",), hooks=hooks)
        return make_plan(Suite.model_validate(TINY), choice, catalog()).cells[0].hash

    hook = write_hook(SHRINK)
    seen = {identity(), identity(hook)}
    hook = write_hook(SHRINK.replace("0.01", "0.02"))
    seen.add(identity(hook))
    (tmp_path / "helper.py").write_text("RATE = 1\n")
    Path(hook).write_text("from helper import RATE\n" + Path(hook).read_text())
    seen.add(identity(hook))
    (tmp_path / "helper.py").write_text("RATE = 2\n")
    seen.add(identity(hook))
    assert len(seen) == 5
    assert identity(write_hook("pass", "Watcher", observes=True)) == identity()


def test_a_hook_that_a_suite_names_runs_only_when_it_is_named_too(lab: Lab, write_hook: Write) -> None:
    hook = write_hook("pass")
    suite = Suite.model_validate({**TINY, "hooks": [hook]})
    with pytest.raises(
        KdbenchError, match=rf"^suite tiny names the hook .*; .* only when you name it too: --hook {hook}$"
    ):
        make_plan(suite, Request(), catalog())
    for named in ({"hooks": (hook,)}, {"plugins": (hook,)}):
        assert [entry.name for entry in make_plan(suite, Request(**named), catalog()).hooks] == ["Mine"]


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (HOOK.format(name="Mine", observes=True, body="    pass\nimport nothing_of_this_name"),
         "raised when it was imported: ModuleNotFoundError: No module named 'nothing_of_this_name'",
         "    import nothing_of_this_name"),
        (HOOK.format(name="Mine", observes=True, body="    pass").replace("(Hook)", ""),
         "Mine is not a subclass of mmengine.hooks.Hook", None),
    ],
)  # fmt: skip
def test_a_hook_that_cannot_be_imported_is_named_with_its_traceback(
    lab: Lab, tmp_path: Path, content: str, message: str, line: str | None
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(ListedError) as raised:
        lab.plan(["kd"], hooks=(str(path),))
    assert str(path) in str(raised.value)
    assert str(raised.value).endswith(message)
    assert line is None or line in raised.value.lines


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = 1\n", "holds no hook"), ("def f(:\n", "line 1: invalid syntax"), (None, "cannot be read")],
)
def test_a_file_without_a_hook_is_refused(lab: Lab, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KdbenchError, match=message):
        lab.plan(["kd"], hooks=(str(path),))
