"""A method that trains in phases: each has the whole schedule, shortened, and an optimiser that begins anew."""

from __future__ import annotations

import shutil
from typing import Any

import pandas as pd
import pytest
import torch

from kdbench.engine import train
from kdbench.engine.checkpoint import load_checkpoint
from kdbench.engine.optim import Schedule, build_optim_wrapper
from kdbench.errors import KdbenchError
from kdbench.nets.tapped import TappedNet
from kdbench.store.folders import Store
from kdbench.suite.recipe import Recipe

from .conftest import Lab


def recipe(**schedule: Any) -> Recipe:
    return Recipe.model_validate(
        {"epochs": 12, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.4}, "schedule": schedule}
    )


@pytest.mark.parametrize("schedule", [{"per": "step", "warmup_epochs": 2}, {"name": "multistep", "milestones": [6, 9]}])
def test_each_phase_has_the_whole_schedule_and_a_fresh_optimiser(schedule: dict[str, Any]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    net = torch.nn.ParameterList([parameter])
    rates = {}
    for phases in ((), (4,)):
        optimizer = build_optim_wrapper(net, torch.nn.Identity(), recipe(**schedule)).optimizer
        begun = Schedule(optimizer, recipe(**schedule), 6, phases)
        seen = []
        for epoch in range(12):
            for step in range(6):
                begun.set(epoch, step)
                seen.append(optimizer.param_groups[0]["lr"])
                assert bool(optimizer.state) == ((epoch, step) not in ((0, 0), *((epoch, 0) for epoch in phases)))
                parameter.grad = torch.ones(())
                optimizer.step()
        rates[phases] = seen
    whole, parts = rates[()], rates[4,]
    if schedule.get("per") == "step":
        assert parts[:24] == whole[::3]
        assert parts[24:] == [whole[step * 3 // 2] for step in range(48)]
    else:
        assert parts[::6] == [whole[::6][epoch] for epoch in (0, 3, 6, 9, 0, 1, 3, 4, 6, 7, 9, 10)]


@pytest.mark.parametrize("phases", [(0,), (12,), (3, 3), (5, 2)])
def test_phases_that_do_not_increase_within_the_training_are_refused(phases: tuple[int, ...]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.4)
    with pytest.raises(KdbenchError, match="must be increasing epochs between 1 and 11"):
        Schedule(optimizer, recipe(), 6, phases)


def test_two_stages_give_the_same_numbers_alone_in_a_cohort_and_resumed_and_the_first_leaves_the_upper_part(
    lab: Lab,
) -> None:
    class Stop(BaseException):
        pass

    def stop_in_the_second_stage(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    plan = lab.plan(["fitnet-two-stage", "kd"])
    (staged, _) = plan.cells
    together = lab.train(plan, "together")
    for other in ("alone", "broken"):
        shutil.copytree(together.root / "teachers", lab.root / other / "teachers")
    alone = lab.train(plan, "alone", solo=True)
    with pytest.raises(Stop):
        lab.train(plan, "broken", on_event=stop_in_the_second_stage)
    broken = Store(lab.root / "broken")
    spec = train.spec_of(plan, staged, broken)
    (path,) = broken.cell(staged).checkpoints()
    after_hints = load_checkpoint(path)["student"]
    lab.train(plan, "broken")
    for store in (alone, broken):
        for cell in plan.cells:
            assert store.cell(cell).history.read_text() == together.cell(cell).history.read_text(), cell.method
    with torch.random.fork_rng():
        torch.manual_seed(spec.net_seed)
        initial = TappedNet(spec.net, 10, spec.name).net.state_dict()
    changed = {name for name, value in initial.items() if not torch.equal(value, after_hints[name])}
    assert "patch_embed.proj.weight" in changed
    assert not {name for name in changed if name.startswith(("blocks.3.", "norm.", "head."))}
    rows = pd.read_csv(together.cell(staged).history)
    assert list(rows.loss_hint > 0) == [True, False, False]
    assert list(rows.loss_kd > 0) == list(rows.loss_ce > 0) == [False, True, True]
