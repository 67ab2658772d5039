"""What every training run guarantees, each guarantee as tests that fail when it is broken."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from kdbench.data.device import DevicePipeline
from kdbench.datasets.load import load_dataset
from kdbench.engine import checkpoint, train
from kdbench.engine.cell import CellTrainer
from kdbench.engine.checkpoint import load_checkpoint
from kdbench.engine.cohort import CohortModel, Shared
from kdbench.engine.compiled import Forward
from kdbench.engine.teacher import load_teacher
from kdbench.errors import StopRequested
from kdbench.matrix.cells import Plan
from kdbench.method import Task
from kdbench.nets.tapped import state_hash
from kdbench.store.claims import Claims, remove_claim
from kdbench.store.folders import Store
from tests.few import few

from .conftest import ONE_EPOCH, Lab, cohort_of

SIX = ("scratch", "kd", "fitnet", "crd", "ofa", "lfcc")


def build(lab: Lab, plan: Plan, store: Store, recipe_batch: int = 20) -> CohortModel:
    """The cohort model of a plan as a run builds it."""
    dataset = load_dataset("digits")
    images = dataset.training(8)
    cohort = cohort_of(plan)
    teacher, _ = load_teacher(cohort.teacher, store, 10, lab.device)
    pipeline = DevicePipeline(images, cohort.cells[0].recipe, 10, 7, lab.device)
    task = Task(10, len(images), images.labels, "digits", 3)
    cells = [
        CellTrainer(train.spec_of(plan, cell, store), task, teacher.describe(), len(pipeline), lab.device)
        for cell in cohort.cells
    ]
    return CohortModel(cells, Forward(teacher), pipeline, lab.device, lambda *failure: None)


def predictions(store: Store, plan: Plan, method: str) -> dict[str, np.ndarray]:
    cell = next(cell for cell in plan.cells if cell.method == method)
    with np.load(store.cell(cell).predictions) as file:
        return {name: file[name] for name in file.files}


# 1. The teacher is frozen


def test_teacher_is_bit_identical_after_training_and_in_no_file_of_a_student(lab: Lab) -> None:
    plan = lab.plan(["kd", "ofa"], pair="cnn--vit")  # the teacher has BatchNorm buffers, which train mode would change
    seen: list[set[str]] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            for cell in plan.cells:
                seen.extend(set(load_checkpoint(path)["student"]) for path in store.cell(cell).checkpoints())

    store = Store(lab.root / "runs")
    before = lab.train(lab.plan(["scratch"]), "runs").result_of_teacher(plan.teachers[0])
    assert before is not None
    lab.train(plan, on_event=look)
    teacher, after = load_teacher(plan.teachers[0], store, 10, lab.device)
    assert state_hash(teacher.net) == before.checksum == after.checksum
    teacher_keys = set(teacher.net.state_dict())
    assert seen
    for keys in seen:
        assert not keys & teacher_keys
    for cell in plan.cells:
        exported = safetensors.torch.load((store.cell(cell).path / "student.safetensors").read_bytes())
        assert not set(exported) & teacher_keys


def test_teacher_stays_in_eval_mode_without_gradients_at_every_step(lab: Lab) -> None:
    plan = lab.plan(["kd", "fitnet"])
    store = lab.train(lab.plan(["scratch"]))
    model = build(lab, plan, store)
    assert model.teacher is not None
    teacher = model.teacher.net
    before = state_hash(teacher.net)
    model.train()
    for data in model.pipeline.batches(0):
        model.train_step(data)
        assert not any(module.training for module in teacher.modules())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert state_hash(teacher.net) == before
    assert not model.failed
    assert all(name.split(".")[2] in ("student", "method") for name in model.state_dict())


# 2. The teacher sees its own preprocessing


def test_teacher_and_student_get_their_own_normalisation_and_size(lab: Lab) -> None:
    plan = lab.plan(["kd"])
    store = lab.train(lab.plan(["scratch"]))
    model = build(lab, plan, store)
    assert model.teacher is not None
    teacher, student = model.teacher.net, model.alive[0].student
    teacher.mean.fill_(0.1)
    teacher.preprocessing = ("of its own",)
    data = model.pipeline.make(0, 0)
    shared = Shared(data, Forward(teacher), frozenset({"logits"}))
    assert shared.teacher is not None
    expected = teacher.net((data.images - 0.1) / teacher.std)
    torch.testing.assert_close(shared.teacher.logits, expected)
    torch.testing.assert_close(shared.input_for(student, data.images), (data.images - 0.5) / 0.25)
    teacher.input_size = (64, 64)
    assert teacher.preprocess(data.images).shape[-2:] == (64, 64)


# 3. Fair pairs


def test_initial_weights_and_batches_do_not_depend_on_the_method(lab: Lab) -> None:
    plan = lab.plan(SIX)
    store = lab.train(lab.plan(["scratch"]))
    model = build(lab, plan, store)
    hashes = {state_hash(cell.student.net) for cell in model.alive}
    assert len(hashes) == 1
    other_seed = build(lab, lab.plan(["kd"], seeds=(1,)), store)
    assert state_hash(other_seed.alive[0].student.net) not in hashes


def test_batches_are_the_same_with_and_without_a_second_view(lab: Lab) -> None:
    plan = lab.plan(["kd"])
    data = load_dataset("digits").training(8)
    recipe = plan.cells[0].recipe
    plain = DevicePipeline(data, recipe, 10, 3, "cpu")
    double = DevicePipeline(data, recipe, 10, 3, "cpu", strong_view=True)
    for first, second in zip(plain.batches(0), double.batches(0), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.batch.labels, second.batch.labels)
        assert second.strong is not None


# 4. Company changes nothing


@pytest.mark.parametrize("pair", few(["cnn--vit", "vit--cnn"]))
def test_cells_give_the_same_numbers_alone_in_a_cohort_and_in_another_order(
    lab: Lab, write_plugin: Callable[[str, str], str], pair: str
) -> None:
    noisy = write_plugin(
        "noisy",
        "noise = torch.randn(()) + random.random() + float(np.random.rand())\n"
        "return {'ce': batch.task_loss(student.logits) * (1 + 0.1 * noise)}",
    )
    plan = lab.plan(["kd", "crd", "ofa", "noisy"], pair, plugins=[noisy])
    together, apart = lab.train(plan, "together"), lab.train(plan, "apart", solo=True)
    reverse = lab.train(plan, "reverse", reverse=True)
    for cell in plan.cells:
        first = lab.result(together, plan, cell.method)
        for other in (apart, reverse):
            assert lab.result(other, plan, cell.method)["metrics"] == first["metrics"], cell.method
            assert lab.result(other, plan, cell.method)["losses"] == first["losses"], cell.method
            for name, values in predictions(together, plan, cell.method).items():
                assert np.array_equal(values, predictions(other, plan, cell.method)[name]), (cell.method, name)


def test_a_variant_with_its_methods_settings_gives_its_numbers_in_a_folder_of_its_own(lab: Lab) -> None:
    plan = lab.plan(["uhkd", "twin", "other"], recipe=ONE_EPOCH, variants={
        "twin": {"method": "uhkd"}, "other": {"method": "uhkd", "set": {"temperature": 3.0}},
    })  # fmt: skip
    store = lab.train(plan)
    method, twin, other = (lab.result(store, plan, cell.method) for cell in plan.cells)
    assert len({cell.folder for cell in plan.cells}) == 3
    assert (twin["hash"], twin["metrics"], twin["losses"]) == (method["hash"], method["metrics"], method["losses"])
    assert other["losses"] != method["losses"]


def test_a_method_sees_only_what_it_declared_whatever_its_company_needs(
    lab: Lab, write_plugin: Callable[[str, str], str]
) -> None:
    curious = write_plugin(
        "curious",
        "assert teacher.stages is None and student.embedding is None\nreturn {'ce': batch.task_loss(student.logits)}",
    )
    plan = lab.plan(["curious", "fitnet"], plugins=[curious])
    store = lab.train(plan)
    assert [store.cell(cell).state() for cell in plan.cells] == ["done", "done"]


# 5. One cell's failure is its own


@pytest.mark.parametrize(
    ("name", "body", "kind", "reason"),
    few(
        [
            (
                "nan",
                "self.steps = getattr(self, 'steps', 0) + 1\n"
                "return {'ce': batch.task_loss(student.logits), 'bad': student.logits.mean() * (float('nan') if self.steps >= 3 else 1)}",
                "non-finite loss",
                "loss term 'bad' is not finite at epoch 1, step 3",
            ),
            (
                "vandal",
                "teacher.logits.zero_()\nreturn {'ce': batch.task_loss(student.logits)}",
                "exception",
                "the method changed the batch or the teacher's outputs in place; clone before writing",
            ),
            ("boom", "raise ValueError('wrong shape')", "exception", "ValueError: wrong shape"),
            (
                "memory",
                "raise MemoryError('out of memory')",
                "out of memory",
                "out of memory in a step of PAIR/memory/seed0, even with one image at a time",
            ),
            (
                "vector",
                "return {'ce': student.logits.sum(1)}",
                "exception",
                "loss term 'ce' must be a scalar tensor, got (20,)",
            ),
            ("nothing", "return {}", "exception", "forward must return a dict of named loss terms, got dict"),
        ],
        2,
    ),
)
def test_a_failing_plugin_fails_alone(
    lab: Lab, write_plugin: Callable[[str, str], str], name: str, body: str, kind: str, reason: str
) -> None:
    plugin = write_plugin(name, body)
    plan = lab.plan([name, "kd", "fitnet"], plugins=[plugin], recipe=ONE_EPOCH)
    store = lab.train(plan, "with")
    failed = next(cell for cell in plan.cells if cell.method == name)
    assert store.cell(failed).state() == "failed"
    record = store.cell(failed).failure()
    assert (record.kind, record.reason) == (kind, reason.replace("PAIR", failed.pair))
    assert "Traceback" in store.cell(failed).log.read_text()
    alone = lab.plan(["kd", "fitnet"], recipe=ONE_EPOCH)
    without = lab.train(alone, "without")
    for method in ("kd", "fitnet"):
        assert lab.result(store, plan, method)["metrics"] == lab.result(without, alone, method)["metrics"]


def test_writing_into_the_input_that_students_share_is_noticed(lab: Lab) -> None:
    plan = lab.plan(["kd"])
    model = build(lab, plan, lab.train(lab.plan(["scratch"])))
    data = model.pipeline.make(0, 0)
    shared = Shared(data, None, frozenset())
    inputs = shared.input_for(model.alive[0].student, data.images)
    assert not shared.was_changed()
    inputs.mul_(0)
    assert shared.was_changed()


# 6. A result is final or absent, and interrupted work goes on exactly


class Stop(BaseException):
    """Stands for a process that ends."""


@pytest.mark.parametrize("pair", few(["cnn--vit", "vit--cnn"]))
def test_resume_ends_with_the_numbers_of_an_uninterrupted_run(lab: Lab, pair: str) -> None:
    plan = lab.plan(["scratch", "crd", "fofa", "kd-head"], pair)
    whole = lab.train(plan, "whole")

    def stop_in_second_epoch(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        lab.train(plan, "broken", on_event=stop_in_second_epoch)
    store = Store(lab.root / "broken")
    assert {store.cell(cell).state() for cell in plan.cells} == {"interrupted"}
    lab.events.clear()
    lab.train(plan, "broken")
    assert {event["epoch"] for event in lab.events if event["event"] == "resumed"} == {1}
    for cell in plan.cells:
        first, second = lab.result(whole, plan, cell.method), lab.result(store, plan, cell.method)
        assert first["metrics"] == second["metrics"], cell.method
        assert first["losses"] == second["losses"], cell.method
        assert store.cell(cell).history.read_text() == whole.cell(cell).history.read_text(), cell.method
        assert not store.cell(cell).checkpoints()


@pytest.mark.parametrize(("epoch", "step"), few([(1, 3), (0, 1), (1, 4), (2, 2)]))
def test_work_that_is_asked_to_end_goes_on_from_the_step_it_was_in(lab: Lab, epoch: int, step: int) -> None:
    plan = lab.plan(["kd", "crd", "ofa"], "vit--cnn")
    whole = lab.train(plan, "whole")

    def ask(event: dict[str, Any]) -> bool:
        return event["event"] == "step" and (event["epoch"], event["step"]) == (epoch, step)

    after_epoch = step == 4  # the last one: the epoch is evaluated first
    if after_epoch:
        step, epoch = 0, epoch + 1
    with pytest.raises(StopRequested):
        lab.train(plan, "broken", on_event=ask)
    store = Store(lab.root / "broken")
    assert {tuple(store.cell(cell).positions()) for cell in plan.cells} == {
        (f"checkpoint-{epoch:05d}.ckpt" if after_epoch else f"checkpoint-{epoch:05d}_{step:08d}.ckpt",)
    }
    lab.events.clear()
    lab.train(plan, "broken")
    assert {(event["epoch"], event["step"]) for event in lab.events if event["event"] == "resumed"} == {(epoch, step)}
    first = next(event for event in lab.events if event["event"] == "step")
    assert (first["epoch"], first["step"]) == (epoch, step + 1)
    for cell in plan.cells:
        one, two = lab.result(whole, plan, cell.method), lab.result(store, plan, cell.method)
        assert one["metrics"] == two["metrics"], cell.method
        assert one["losses"] == two["losses"], cell.method
        assert store.cell(cell).history.read_text() == whole.cell(cell).history.read_text(), cell.method


def test_a_loss_that_was_not_finite_before_an_interruption_is_told_after_it(
    lab: Lab, write_plugin: Callable[[str, str], str]
) -> None:
    plugin = write_plugin(
        "nan", "return {'ce': batch.task_loss(student.logits) * (1 if batch.progress else float('nan'))}"
    )
    plan = lab.plan(["nan"], plugins=[plugin])
    with pytest.raises(StopRequested):
        lab.train(plan, on_event=lambda event: event["event"] == "step" and event["step"] == 2)
    store = lab.train(plan)
    assert store.cell(plan.cells[0]).failure().reason == "loss term 'ce' is not finite at epoch 1, step 1"


def test_on_a_full_disk_the_last_good_checkpoint_is_kept_and_work_goes_on_from_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.plan(["scratch", "kd"])
    whole = lab.train(plan, "whole")
    real, written = checkpoint.write_bytes, []

    def full(path: Path, content: bytes, once: bool = False) -> None:
        written.extend([path] if "teachers" not in path.parts else [])
        if len(written) == 4:  # both cells were saved after the first epoch, then one of them within the second
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content, once)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(StopRequested):
        lab.train(
            plan, "full", on_event=lambda event: event["event"] == "step" and (event["epoch"], event["step"]) == (1, 1)
        )
    warnings = [event["reason"] for event in lab.events if event["event"] == "warning"]
    assert warnings == ["no checkpoint can be written (No space left on device); the last one is kept"]
    store = Store(lab.root / "full")
    assert [store.cell(cell).positions() for cell in plan.cells] == [["checkpoint-00001.ckpt"]] * 2
    lab.train(plan, "full")
    for cell in plan.cells:
        assert lab.result(whole, plan, cell.method)["metrics"] == lab.result(store, plan, cell.method)["metrics"]


def test_a_cell_that_another_process_took_over_is_left_to_it(lab: Lab) -> None:
    plan = lab.plan(["scratch", "kd"])
    lab.train(lab.plan(["fitnet"]))  # the teacher
    with Claims() as mine, Claims() as other:
        store = Store(lab.root / "runs", mine)
        taken, kept = plan.cells
        for cell in plan.cells:
            store.cell(cell).prepare(cell)
            assert mine.take(store.cell(cell).path)

        def steal(event: dict[str, Any]) -> None:
            lab.events.append(event)
            if event["event"] == "epoch" and event["epoch"] == 2 and event["cell"] == taken.key:
                holder = store.cell(taken).holder()
                assert holder is not None
                remove_claim(store.cell(taken).path, holder.token)
                assert other.take(store.cell(taken).path)

        train.train_cohort(plan, cohort_of(plan), store, lab.device, steal)
        lost = [event for event in lab.events if event["event"] == "lost"]
        assert [event["cell"] for event in lost] == [taken.key]
        assert "was taken over by" in lost[0]["reason"]
        assert not store.cell(taken).result.exists()
        assert not store.cell(taken).failed.exists()
        assert store.cell(kept).state() == "done"


def test_checkpoints_hold_data_only_and_load_with_weights_only(lab: Lab) -> None:
    plan = lab.plan(["crd"])

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        lab.train(plan, on_event=stop)
    (path,) = Store(lab.root / "runs").cell(plan.cells[0]).checkpoints()
    body = path.read_bytes().partition(b"\n")[2]
    state = torch.load(io.BytesIO(body), weights_only=True)
    assert state["epoch"] == 1
    assert len(state["history"]) == 1
    assert any(name.startswith("memory") for name in state["method"]) or any(
        "memory_student" in name for name in state["method"]
    )


def test_a_truncated_checkpoint_costs_that_cell_alone(lab: Lab) -> None:
    plan = lab.plan(["scratch", "kd"])
    whole = lab.train(plan, "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        lab.train(plan, "broken", on_event=stop)
    store = Store(lab.root / "broken")
    (checkpoint,) = store.cell(plan.cells[1]).checkpoints()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    lab.events.clear()
    lab.train(plan, "broken")
    assert [event["cell"] for event in lab.events if event["event"] == "resumed"] == [plan.cells[0].key]
    assert "checkpoint ignored" in store.cell(plan.cells[1]).log.read_text()
    for cell in plan.cells:
        assert lab.result(whole, plan, cell.method)["metrics"] == lab.result(store, plan, cell.method)["metrics"]


# 7. No choice on the test set


def test_the_default_figure_is_the_last_epochs_and_the_best_has_its_own_name(lab: Lab) -> None:
    plan = lab.plan(["kd"])
    store = lab.train(plan)
    metrics = lab.result(store, plan, "kd")["metrics"]
    rows = store.cell(plan.cells[0]).history.read_text().splitlines()
    column = rows[0].split(",").index("top1")
    scores = [float(row.split(",")[column]) for row in rows[1:]]
    assert len(scores) == 3
    assert metrics["best_epoch"] == 1 + scores.index(max(scores))
    assert metrics["last"]["top1"] == scores[-1]
    assert metrics["best"]["top1"] == max(scores)


# 8. Every number can be traced


def test_a_result_says_where_it_comes_from(lab: Lab) -> None:
    plan = lab.plan(["ofa"])
    store = lab.train(plan)
    result = lab.result(store, plan, "ofa")
    teacher = store.result_of_teacher(plan.teachers[0])
    assert teacher is not None
    assert result["teacher"]["checksum"] == teacher.checksum
    assert 0 <= result["teacher"]["metrics"]["top1"] <= 100
    assert {"kdbench", "commit", "dirty", "python", "versions", "device", "threads", "finished"} <= set(
        result["provenance"]
    )
    assert result["hash"] == plan.cells[0].hash
    assert result["cost"]["extra_parameters"] > 0
    assert result["cost"]["steps"] == 3 * 4
    assert result["train_images"] == 80


# Modes


def test_the_student_is_in_train_mode_in_the_second_epoch(lab: Lab, write_plugin: Callable[[str, str], str]) -> None:
    plugin = write_plugin(
        "modes",
        "if batch.epoch == 1 and not self.training:\n    raise ValueError('method in eval mode')\n"
        "if batch.epoch == 1 and self._modules_of_student[0].training is False:\n    raise ValueError('student in eval mode')\n"
        "return {'ce': batch.task_loss(student.logits)}",
    )
    plan = lab.plan(["modes"], plugins=[plugin])
    original = CellTrainer.__init__

    def tell(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.method._modules_of_student = (self.student.net,)

    CellTrainer.__init__ = tell  # type: ignore[method-assign]
    try:
        store = lab.train(plan)
    finally:
        CellTrainer.__init__ = original  # type: ignore[method-assign]
    assert store.cell(plan.cells[0]).state() == "done", store.cell(plan.cells[0]).log.read_text()
