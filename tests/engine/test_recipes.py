"""What a recipe can ask of training beside a loss and an optimiser: averaged weights, fewer bits, BCE, decay, and parts of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import nn

from kdbench.data.batches import binary_cross_entropy
from kdbench.engine.cell import CellTrainer
from kdbench.engine.micro_batches import split_batch
from kdbench.engine.optim import build_optim_wrapper
from kdbench.engine.precision import Precision
from kdbench.engine.train import spec_of
from kdbench.matrix.cells import Plan
from kdbench.method import Batch, Feature, Outputs, Task
from kdbench.nets.tapped import TappedNet
from kdbench.store.files import read_json
from kdbench.store.folders import Store
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import OptimizerSpec, Recipe
from tests.few import few

from .conftest import ONE_EPOCH, Lab

CONSTANT: dict[str, Any] = {"schedule": {"name": "constant", "warmup_epochs": 0}}


def trainer(lab: Lab, plan: Plan, method: str = "kd") -> CellTrainer:
    cell = next(cell for cell in plan.cells if cell.method == method)
    task = Task(10, 80, torch.arange(80) % 10, "digits", 3)
    teacher = TappedNet(cell.teacher.net, 10).describe()
    return CellTrainer(spec_of(plan, cell, Store(lab.root)), task, teacher, 4, lab.device)


def step(cell: CellTrainer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(20, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (20,), generator=generator)
    cell.step(Batch(labels, torch.arange(20)), images, None, Outputs(torch.zeros(20, 10)))


def test_averaged_weights_follow_the_weights_and_are_what_is_measured(lab: Lab) -> None:
    cell = trainer(lab, lab.plan(["kd"], recipe={"ema": 0.75, **CONSTANT}))
    name = "patch_embed.proj.weight"
    expected = cell.student.net.get_parameter(name).detach().clone()
    for seed in range(3):
        step(cell, seed)
        expected = 0.75 * expected + 0.25 * cell.student.net.get_parameter(name).detach()
    averaged = cell.measured.student.net.get_parameter(name)
    torch.testing.assert_close(averaged, expected)
    assert not torch.equal(averaged, cell.student.net.get_parameter(name))
    images = torch.rand(2, 3, 32, 32)
    cell.distiller.eval()
    cell.measured.eval()
    torch.testing.assert_close(cell.predict(images), cell.measured.student(images).logits)
    torch.testing.assert_close(cell.predict(images, raw=True), cell.student(images).logits)


def test_a_run_with_averaged_weights_resumes_exactly_and_keeps_the_average(lab: Lab) -> None:
    plan = lab.plan(["kd"], recipe={"ema": 0.9})
    whole = lab.train(plan, "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.train(plan, "parts", on_event=stop)
    parts = lab.train(plan, "parts")
    folders = [store.cell(plan.cells[0]) for store in (whole, parts)]
    assert read_json(folders[0].result)["metrics"] == read_json(folders[1].result)["metrics"]
    weights = [safetensors.torch.load((folder.path / "student.safetensors").read_bytes()) for folder in folders]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "raw_top1" in folders[0].history.read_text().splitlines()[0]


def test_binary_cross_entropy_is_timms() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    for smoothing in (0.0, 0.1):
        batch = Batch(labels, labels, label_smoothing=smoothing)
        torch.testing.assert_close(
            binary_cross_entropy(logits, batch), BinaryCrossEntropy(smoothing=smoothing)(logits, labels)
        )
    soft = torch.rand(6, 5)
    torch.testing.assert_close(
        binary_cross_entropy(logits, Batch(labels, labels, targets=soft)), BinaryCrossEntropy()(logits, soft)
    )


def test_the_supervised_loss_of_every_method_is_the_recipes(lab: Lab) -> None:
    losses = {}
    for loss in ("cross-entropy", "bce"):
        plan = lab.plan(["scratch"], recipe={"loss": loss})
        losses[loss] = Lab.result(lab.train(plan, loss), plan, "scratch")["losses"]["loss_ce"]
    assert losses["bce"] < 0.6 < losses["cross-entropy"]  # a mean over classes, and their sum


def test_bfloat16_computes_in_bfloat16_and_leaves_what_methods_compare_in_full_precision(lab: Lab) -> None:
    cell = trainer(lab, lab.plan(["kd"], pair="vit--cnn", recipe={"precision": "bfloat16"}))
    with cell.precision.autocast():
        outputs = cell.student.run(torch.rand(2, 3, 32, 32), {"stages", "embedding"})
    assert outputs.stages is not None
    assert outputs.stages[0].map.dtype is torch.bfloat16
    assert outputs.logits.dtype is torch.float32
    assert outputs.embedding is not None
    assert outputs.embedding.dtype is torch.float32
    full = cell.student.run(torch.rand(2, 3, 32, 32), {"stages"})
    assert full.stages is not None
    assert full.stages[0].map.dtype is torch.float32


@pytest.mark.parametrize("precision", few(["bfloat16", "float16"]))
def test_training_with_fewer_bits_is_near_training_with_all(lab: Lab, precision: str) -> None:
    found = {}
    for name in ("float32", precision):
        plan = lab.plan(["kd"], recipe={"precision": name, **ONE_EPOCH})
        found[name] = Lab.result(lab.train(plan, name), plan, "kd")["metrics"]["last"]["nll"]
    assert found[precision] != found["float32"]
    assert math.isclose(found[precision], found["float32"], rel_tol=0.05)


def test_a_step_whose_gradients_overflow_in_float16_is_left_out(lab: Lab) -> None:
    cell = trainer(lab, lab.plan(["scratch"], recipe={"precision": "float16"}), "scratch")
    assert cell.precision.scaler is not None
    before = {name: value.detach().clone() for name, value in cell.student.net.named_parameters()}
    scale = cell.precision.scaler.get_scale()
    cell.optim_wrapper.update_params(next(cell.student.net.parameters()).sum() * float("inf"))
    assert all(torch.equal(value, before[name]) for name, value in cell.student.net.named_parameters())
    assert cell.precision.scaler.get_scale() < scale
    saved = cell.precision.state_dict()
    other = Precision("float16", lab.device)
    other.load_state_dict(saved)
    assert other.state_dict()["scale"] == saved["scale"]


def test_weight_decay_spares_what_the_recipe_says() -> None:
    net = TappedNet(
        NetSpec(timm="vit_32px_small", args={"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}), 10
    )

    def decayed(**changes: bool) -> set[str]:
        spec = OptimizerSpec(name="adamw", lr=0.1, weight_decay=0.5, **changes)
        recipe = Recipe(epochs=1, batch_size=1, optimizer=spec)
        groups = build_optim_wrapper(net.net, nn.Identity(), recipe).optimizer.param_groups
        chosen = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
        return {name for name, value in net.net.named_parameters() if id(value) in chosen}

    every = {name for name, _ in net.net.named_parameters()}
    assert "pos_embed" not in decayed()
    assert "blocks.0.norm1.weight" not in decayed()
    assert decayed(honour_no_weight_decay=False) - decayed() >= {"pos_embed"}
    assert decayed(decay_biases_and_norms=True) == every - {"pos_embed", "cls_token"}
    assert decayed(decay_biases_and_norms=True, honour_no_weight_decay=False) == every


def test_drop_path_of_a_recipe_reaches_the_student_and_its_identity(lab: Lab) -> None:
    plain, dropped = lab.plan(["kd"]), lab.plan(["kd"], recipe={"drop_path": 0.5})
    assert plain.cells[0].hash != dropped.cells[0].hash
    net = TappedNet(dropped.cells[0].student_net, 10).net
    assert any(getattr(layer, "drop_prob", 0) == 0.5 for layer in net.modules())


def test_parts_of_a_batch_have_the_gradients_of_the_whole(lab: Lab) -> None:
    recipe = {"optimizer": {"name": "momentum", "lr": 0.1}, "clip_norm": None, **CONSTANT}
    plan = lab.plan(["kd"], pair="cnn--vit", recipe=recipe)
    found = []
    for parts in (1, 3):
        cell = trainer(lab, plan)
        cell.distiller.eval()  # no drop path, whose draws would differ
        cell.micro_batches = parts
        initial = cell.student.net.get_parameter("patch_embed.proj.weight").detach().clone()
        step(cell)
        found.append({name: value.detach().clone() for name, value in cell.student.net.named_parameters()})
        assert not torch.equal(found[-1]["patch_embed.proj.weight"], initial)
        assert cell.meters.steps == 1
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_batch_falls_into_parts_that_cover_it_in_order() -> None:
    teacher = Outputs(torch.arange(14.0).view(7, 2), [Feature(torch.arange(7.0).view(7, 1, 1, 1))] * 4)
    batch = Batch(torch.arange(7), torch.arange(7) + 10, targets=F.one_hot(torch.arange(7)).float())
    parts = split_batch(batch, torch.arange(7), torch.arange(7), teacher, 3)
    assert sum(part[0] for part in parts) == pytest.approx(1)
    assert torch.cat([part[2] for part in parts]).tolist() == list(range(7))
    assert torch.cat([part[1].index for part in parts]).tolist() == list(range(10, 17))
    assert torch.cat(
        [part[4].stages[0].map for part in parts if part[4] and part[4].stages]
    ).flatten().tolist() == list(range(7))
    assert len(split_batch(batch, torch.arange(7), None, None, 20)) == 7


LIMIT = """
if len(student.logits) > {limit}:
    raise torch.OutOfMemoryError("out of memory")
return {{"ce": batch.task_loss(student.logits)}}
"""
CROWDED = """
import gc
from kdbench.engine.cell import CellTrainer
if sum(type(thing) is CellTrainer for thing in gc.get_objects()) > 2:
    raise torch.OutOfMemoryError("out of memory")
return {"ce": batch.task_loss(student.logits)}
"""


def test_a_cell_that_does_not_fit_goes_on_in_parts_of_the_same_batch(
    lab: Lab, write_plugin: Callable[[str, str], str]
) -> None:
    plugin = write_plugin("hungry", LIMIT.format(limit=6))
    plan = lab.plan(["hungry", "kd"], plugins=[plugin], recipe=ONE_EPOCH)
    store = lab.train(plan, "with")
    result = Lab.result(store, plan, "hungry")
    assert result["cost"]["micro_batches"] == 4  # 20 images, at most 6 at a time
    alone = lab.plan(["kd"], recipe=ONE_EPOCH)
    assert Lab.result(store, plan, "kd")["metrics"] == Lab.result(lab.train(alone, "without"), alone, "kd")["metrics"]
    log = store.cell(next(cell for cell in plan.cells if cell.method == "hungry")).log.read_text()
    assert "it goes on with each batch in 4 parts" in log


@pytest.mark.slow
def test_a_cohort_that_does_not_fit_goes_on_in_smaller_groups_with_the_same_numbers(
    lab: Lab, write_plugin: Callable[[str, str], str]
) -> None:
    """The plugin fails while more than two students are in memory."""
    plugin = write_plugin("crowded", CROWDED)
    plan = lab.plan(["scratch", "kd", "fitnet", "crowded"], plugins=[plugin])
    store = lab.train(plan, "with")
    assert all(store.cell(cell).state() == "done" for cell in plan.cells)
    assert Lab.result(store, plan, "crowded")["cost"]["micro_batches"] == 1
    alone = lab.plan(["kd"])
    assert Lab.result(store, plan, "kd")["metrics"] == Lab.result(lab.train(alone, "without"), alone, "kd")["metrics"]
