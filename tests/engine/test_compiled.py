"""A compiled net differs in last bits at most; what was used stands in the result; a net that does not compile runs as it is."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch

from kdbench.engine import compiled
from kdbench.engine import train as training
from kdbench.engine.compiled import TOLERANCE, Forward
from kdbench.matrix.cells import Plan
from kdbench.nets.tapped import TappedNet
from kdbench.store.folders import Store
from kdbench.suite.net import NetSpec

from .conftest import Lab, cohort_of

CNN = NetSpec(
    timm="resnet_32px_small",
    family="cnn",
    args={"channels": (8, 8, 16, 16), "stem_width": 8, "stem_stride": 2},
    input_size=(32, 32),
)


def train(lab: Lab, plan: Plan, out: str) -> Store:
    """The cells of a plan behind a teacher that all runs of a test share."""
    store = Store(lab.root / out)
    store.check(writable=True)
    lab.train(lab.plan(["scratch"], cohort_of(plan).cells[0].pair), out)
    for cell in plan.cells:
        store.cell(cell).prepare(cell)
    training.train_cohort(plan, cohort_of(plan), store, lab.device, lab.events.append)
    return store


def metrics(store: Store, plan: Plan, method: str) -> Any:
    return {
        name: value
        for name, value in Lab.result(store, plan, method)["metrics"]["last"].items()
        if "second" not in name
    }


def history(store: Store, plan: Plan) -> list[dict[str, str]]:
    with open(store.cell(plan.cells[0]).history, newline="") as file:
        return list(csv.DictReader(file))


def failing(function: Any) -> Any:
    raise RuntimeError("no compiler\nhere")


def test_a_net_that_does_not_compile_runs_as_it_is_and_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = lab.plan(["kd"])
    plain = train(lab, plan, "a")
    monkeypatch.setattr(compiled, "compiled", failing)
    other = train(lab, lab.plan(["kd"], compile=True), "b")
    assert metrics(other, plan, "kd") == metrics(plain, plan, "kd")
    assert Lab.result(other, plan, "kd")["cost"]["tuning"] == {"compile": "fell back: RuntimeError: no compiler"}
    assert "does not compile and runs as it is (RuntimeError: no compiler)" in other.cell(plan.cells[0]).log.read_text()


def test_a_net_whose_first_call_does_not_compile_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiled", lambda function: failing)
    net, said = TappedNet(CNN, 10).eval(), list[str]()
    forward = Forward(net, True, said.append)
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        assert torch.equal(forward(images, {"logits"}).logits, net.run(images).logits)
    assert len(said) == 1


def test_too_little_memory_is_no_reason_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*inputs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compiled, "compiled", lambda function: full)
    forward = Forward(TappedNet(CNN, 10), True, pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        forward(torch.zeros(1, 3, 32, 32), {"logits"})


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet_32px_small", "vit_32px_small", "mixer_32px_small"])
def test_a_compiled_net_gives_the_same_outputs_and_gradients_within_the_tolerance(net: str) -> None:
    torch.manual_seed(0)
    plain = TappedNet(NetSpec(timm=net), 10)
    forward = Forward(plain, True, pytest.fail)
    images = torch.randn(8, 3, 32, 32)
    found = []
    for run in (plain.run, forward):
        plain.zero_grad()
        outputs = run(images, frozenset({"logits", "stages", "embedding"}))
        (outputs.logits.square().mean() + sum(stage.map.square().mean() for stage in outputs.stages)).backward()
        found.append([outputs.logits.detach(), *(p.grad.clone() for p in plain.parameters() if p.grad is not None)])
    assert forward.fell_back is None
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=TOLERANCE)
