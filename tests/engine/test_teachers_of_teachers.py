"""Teachers that need others: ensembles, and assistants that are distilled themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from kdbench.engine import prepare_teacher, train
from kdbench.engine.teacher import load_teacher
from kdbench.launch.execute import _Run
from kdbench.launch.job import Follower, Job
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.nets.tapped import TappedNet, describe
from kdbench.plugins.registry import catalog
from kdbench.store.claims import Watch
from kdbench.store.files import read_json
from kdbench.store.folders import Store
from kdbench.suite.net import NetSpec
from kdbench.suite.problems import first_problem
from kdbench.suite.suite import Suite, merge

from .conftest import TINY

CHANGES: dict[str, Any] = {
    "nets": {
        "both": {"ensemble": ["cnn", "assistant"], "display": "Both"},
        "assistant": {**TINY["nets"]["cnn"], "taught_by": "vit"},
    },
    "pairs": ["both--vit", "assistant--vit", "assistant--cnn", "vit--assistant", "cnn--vit"],
    "methods": {"set": {"kd": {"temperature": 2.0}}},
    "protocols": {"short": {"recipe": {"epochs": 1, "schedule": {"name": "constant"}}}},
}


def plan_of(*pairs: str, changes: dict[str, Any] | None = None, methods: tuple[str, ...] = ("kd",)) -> Plan:
    suite = Suite.model_validate(merge(merge(TINY, CHANGES), changes or {}))
    return make_plan(suite, Request(pairs=pairs, methods=methods), catalog())


def test_a_teacher_is_planned_after_those_that_it_needs_and_depends_on_them() -> None:
    plan = plan_of("both--vit", "assistant--vit")
    assert [teacher.name for teacher in plan.teachers] == ["cnn", "vit", "assistant", "both"]
    ensemble, assistant = (plan.cells[0].teacher, plan.cells[1].teacher)
    assert ensemble.config["recipe"] is ensemble.config["seed"] is None
    assert assistant.config["method"]["hyperparameters"] == {"temperature": 2.0, "ce_weight": 1.0, "kd_weight": 1.0}
    for changes in (
        {"nets": {"vit": {"args": {"depth": 5}}}},  # two steps away from the ensemble
        {"teacher_seed": 1},
        {"methods": {"set": {"kd": {"temperature": 3.0}}}},
    ):
        other = plan_of("both--vit", "assistant--vit", changes=changes)
        assert {other.cells[0].teacher.hash, other.cells[1].teacher.hash}.isdisjoint({ensemble.hash, assistant.hash})
    # as a student the same net is taught by its teacher alone; and nets without teachers are as they were
    assert "taught_by" not in plan_of("vit--assistant").cells[0].config["student"]["net"]
    plain = plan_of("cnn--vit").cells[0].teacher.config
    assert not {"teachers", "method"} & plain.keys()
    assert not {"ensemble", "taught_by"} & plain["net"].keys()


@pytest.mark.parametrize(
    ("nets", "message"),
    [
        ({"both": {"ensemble": ["cnn"]}}, "must be two or more different nets"),
        ({"both": {"ensemble": ["cnn", "cnn"]}}, "must be two or more different nets"),
        ({"both": {"ensemble": ["cnn", "vot"]}}, "vot"),
        ({"both": {"ensemble": {"cnn": {}, "vit": {}}}}, "write the names of nets"),
        ({"both": {"ensemble": ["cnn", "both"]}}, "both <- both: a net cannot be its own teacher"),
        ({"both": {"args": {"average": "median"}}}, "average: logits or average: probabilities"),
        ({"both": {"weights": "timm"}}, "an ensemble has none of its own"),
        ({"both": {"taught_by": "vit"}}, "an ensemble has none of its own"),
        ({"both": {"timm": "resnet18"}}, "timm and ensemble name two models"),
        ({"vit": {"taught_by": "assistant"}}, "a net cannot be its own teacher"),
        ({"assistant": {"taught_by": "vot"}}, "vot"),
        ({"assistant": {"weights": {"file": "a.pth"}}}, "an assistant is trained here"),
    ],
)
def test_a_wrong_ensemble_or_assistant_is_refused(nets: dict[str, Any], message: str) -> None:
    content = merge(merge(TINY, CHANGES), {"nets": nets})
    with pytest.raises(ValidationError, match=message) as refused:
        Suite.model_validate(content)
    place, net, *_ = first_problem(refused.value, Suite, content)[0]
    assert (place, net in {*nets, "assistant"}) == ("nets", True)


def test_an_ensemble_is_no_student() -> None:
    with pytest.raises(ValidationError, match="an ensemble is no student"):
        Suite.model_validate(merge(merge(TINY, CHANGES), {"pairs": ["vit--both"]}))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_an_ensemble_is_the_mean_of_nets_that_see_their_own_preprocessing(average: str) -> None:
    suite = Suite.model_validate(merge(merge(TINY, CHANGES), {"nets": {
        "both": {"args": {"average": average}}, "cnn": {"mean": [0.1, 0.2, 0.3], "input_size": [40, 40]},
    }}))  # fmt: skip
    net = TappedNet(suite.net("both"), 10, "both").eval()
    images = torch.rand(3, 3, 32, 32)
    members = [member.eval()(images).logits for member in net.net.members]
    expected = sum(members) / 2
    if average == "probabilities":
        expected = (sum(value.softmax(1) for value in members) / 2).log()
    torch.testing.assert_close(net(images).logits, expected)
    info = describe(suite.net("both"), 10, "both")
    assert info.input_size == (40, 40)
    assert set(info.lacks) == {"stages", "preactivation", "stagewise", "embedding", "classifier", "attention"}
    assert info.lacks["stages"] == "net both is an ensemble: it has logits alone"


def test_methods_of_logits_run_with_an_ensemble_and_others_are_skipped() -> None:
    plan = check_cells(plan_of("both--vit", methods=("kd", "dkd", "fitnet", "ofa")))
    assert [cell.method for cell in plan.cells] == ["kd", "dkd"]
    assert "is an ensemble: it has logits alone" in (plan.skipped[0].reason or "")


class _Recorded:
    """A launcher whose jobs end as they are told to, in the next poll."""

    capacity = 9

    def __init__(self, wrong: tuple[str, ...] = ()) -> None:
        self.wrong = wrong
        self.submitted: list[list[str]] = [[]]

    def submit(self, job: Job) -> None:
        self.submitted[-1].append(job.name)

    def poll(self, seconds: float) -> list[dict[str, Any]]:
        ended = self.submitted[-1]
        self.submitted.append([])
        return [{"event": "finished", "job": name, "error": "no" if name in self.wrong else None} for name in ended]

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("wrong", [(), ("teacher vit",)])
def test_a_teacher_waits_for_those_that_it_needs(tmp_path: Path, wrong: tuple[str, ...]) -> None:
    plan = plan_of("both--vit", "assistant--vit")
    launcher = _Recorded(wrong)
    run = _Run(plan, Store(tmp_path), launcher, Follower(), Watch(), recheck=0)
    run.add_teachers([plan.cells[0].teacher.hash, plan.cells[1].teacher.hash])
    run.go()
    rounds = [names for names in launcher.submitted if names]
    if wrong:
        assert rounds == [["teacher cnn", "teacher vit"]]
        assert run.lost_teachers[plan.cells[0].teacher.hash] == "teacher assistant: teacher vit: no"
    else:
        assert rounds == [["teacher cnn", "teacher vit"], ["teacher assistant"], ["teacher both"]]


def test_an_assistant_learns_from_its_teacher_and_an_ensemble_holds_its_nets(tmp_path: Path) -> None:
    plan, store, events = plan_of("both--vit"), Store(tmp_path), []
    store.check(writable=True)
    device = train.setup(1, "cpu")
    for teacher in plan.teachers:
        prepare_teacher.prepare_teacher(plan, teacher, store, device, events.append)
    (cell,) = plan.cells
    store.cell(cell).prepare(cell)
    train.train_cohort(plan, plan.cohorts()[0], store, device, events.append)
    cnn, _, assistant, both = (load_teacher(teacher, store, 10, device)[0] for teacher in plan.teachers)
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(both(images).logits, (cnn(images).logits + assistant(images).logits) / 2)
    rows = pd.read_csv(store.teacher_folder(plan.teachers[2]).path / "history.csv")
    assert (rows.loss_kd > 0).all()
    used = read_json(store.cell(cell).result)["teacher"]
    assert (used["name"], used["hash"]) == ("both", plan.teachers[3].hash)


def test_a_net_of_a_suite_is_not_changed_by_the_new_fields() -> None:
    assert not {"ensemble", "taught_by"} & NetSpec(timm="resnet18").identity().keys()
