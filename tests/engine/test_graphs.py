"""A step that was recorded and replayed gives the numbers of the step itself, bit for bit; what cannot be recorded runs as it is.

Recordings are of a CPU's operations (``recording.py``); what CUDA's own do is not seen here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.data.batches import TrainingBatch
from kdbench.engine import graphs, groups
from kdbench.engine.cell import CellTrainer
from kdbench.engine.checkpoint import Position
from kdbench.engine.cohort import CohortModel, Shared
from kdbench.engine.faults import DeviceLostError
from kdbench.engine.graphs import CohortGraphs
from kdbench.engine.optim import build_optim_wrapper
from kdbench.engine.recorder import Recorder
from kdbench.errors import StopRequested
from kdbench.matrix.cells import Plan
from kdbench.method import Batch, Feature, Outputs
from kdbench.plugins.hooks import HookEntry
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.suite.recipe import Recipe
from tests.few import few

from .conftest import Lab
from .recording import Piece, Stream, TapeRecorder
from .test_no_waiting import cohort_model

EVERY = [name for name, entry in catalog().items() if "attention" not in entry.needs]
#: Some of each family: recording all of them takes a minute.
SOME = ["scratch", "kd", "dkd", "fitnet", "crd", "ofa", "mlld", "lfcc", "simkd", "rld", "fitnet-two-stage"]
READ_THE_EPOCH = {"ctkd", "dkd", "reviewkd", "rld", "sdd"}


class OnCpu:
    """Records cohorts of runs on a CPU; ``made`` are their graphs."""

    def __init__(self) -> None:
        self.made: list[CohortGraphs] = []
        self.on = True
        self.recorder: type[TapeRecorder] = TapeRecorder

    def __call__(
        self,
        cells: Sequence[CellTrainer],
        device: torch.device,
        say: Callable[[CellTrainer, str], None],
        hooks: Sequence[HookEntry],
        streams: int,
    ) -> CohortGraphs | None:
        for cell in cells:
            give_rate(cell)
        if not self.on or graphs.why_not(cells, hooks):
            return None
        pieces = list[Piece]()
        lanes = [self.recorder(pieces) for _ in range(streams)] if streams > 1 else []
        self.made.append(CohortGraphs(cells, self.recorder(pieces), say, lanes=lanes))
        return self.made[-1]


def give_rate(cell: CellTrainer) -> None:
    """The learning rate as a tensor, in the precision of the number."""
    cell.optim_wrapper.rate = torch.zeros((), dtype=torch.float64)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    found = OnCpu()
    monkeypatch.setattr(groups, "graphs_of", found)
    return found


def both(lab: Lab, on_cpu: OnCpu, plan: Plan) -> tuple[Store, Store]:
    """The cells of a plan trained as they are, and recorded."""
    on_cpu.on = False
    plain = lab.train(plan, "plain")
    on_cpu.on = True
    on_cpu.made.clear()
    return plain, lab.train(plan, "graphs")


def kept(store: Store, plan: Plan, method: str) -> dict[str, Any]:
    """What a result says apart from times."""
    cell = next(cell for cell in plan.cells if cell.method == method)
    result = json.loads(store.cell(cell).result.read_text())
    return {name: result[name] for name in ("metrics", "losses")} | {"history": store.cell(cell).history.read_text()}


def state(cell: CellTrainer) -> dict[str, Tensor]:
    optimizer = cell.optim_wrapper.optimizer.state_dict()["state"]
    return {
        **cell.student.net.state_dict(prefix="student."),
        **cell.method.state_dict(prefix="method."),
        **{f"optimizer.{n}.{k}": value for n, values in optimizer.items() for k, value in values.items()},
        "stream": cell.stream.state_dict()["torch"],
    }


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (SOME, "cnn--vit"),
        pytest.param(EVERY, "cnn--vit", marks=pytest.mark.slow),
        pytest.param(EVERY, "vit--cnn", marks=pytest.mark.slow),
    ],
    ids=["some, cnn--vit", "all, cnn--vit", "all, vit--cnn"],
)
def test_every_method_is_recorded_and_ends_where_plain_steps_end(lab: Lab, names: list[str], pair: str) -> None:
    recorder = TapeRecorder()

    def trained(recorded: bool) -> CohortModel:
        torch.manual_seed(0)  # of the teacher
        model = cohort_model(lab, names, pair)
        for cell in model.alive:
            give_rate(cell)
        if recorded:
            model.graphs = CohortGraphs(model.alive, recorder, lambda cell, text: pytest.fail(text), warm_steps=2)
        model.train()
        for epoch, steps in enumerate((3, 2)):
            for step in range(steps):
                model.position = Position(epoch, step)
                for cell in model.alive:
                    cell.schedule.set(epoch, step)
                model.train_step(model.pipeline.make(epoch, step))
                for cell in model.alive:
                    cell.history.append({name: float(term) for name, term in cell.meters.last.items()})
            for cell in model.alive:
                cell.end_epoch(epoch)
                cell.history.append(cell.losses)
        return model

    for one, two in zip(trained(False).alive, trained(True).alive, strict=True):
        assert two.captured is True, two.key
        assert one.history == two.history, two.key
        values = state(two)
        for name, value in state(one).items():
            assert torch.equal(value, values[name]), f"{two.key}: {name}"
    # the teacher, every method, and in the second epoch those that read its number
    assert recorder.recorded == 1 + len(names) + len(READ_THE_EPOCH.intersection(names))


@pytest.mark.slow
@pytest.mark.parametrize("pair", few(["cnn--vit", "vit--cnn"]))
def test_a_whole_run_gives_the_same_results_and_says_that_it_was_recorded(lab: Lab, on_cpu: OnCpu, pair: str) -> None:
    plan = lab.plan(["scratch", "kd", "crd"], pair, recipe={"ema": 0.9})
    plain, recorded = both(lab, on_cpu, plan)
    for method in ("scratch", "kd", "crd"):
        assert kept(recorded, plan, method) == kept(plain, plan, method)
        assert lab.result(recorded, plan, method)["cost"]["tuning"] == {"graphs": True}
        assert lab.result(plain, plan, method)["cost"]["tuning"] == {}
    assert [made.recorder.recorded for made in on_cpu.made] == [2, 4]  # the teacher's own training, and the cohort
    assert on_cpu.made[1].recorder.replayed == 4 * (12 - graphs.WARM_STEPS)


@pytest.mark.parametrize(("epoch", "step"), few([(1, 3), (1, 1)]))
def test_a_recorded_run_that_was_interrupted_ends_with_the_same_numbers(
    lab: Lab, on_cpu: OnCpu, epoch: int, step: int
) -> None:
    plan = lab.plan(["kd", "dkd"])
    on_cpu.on = False
    whole = lab.train(plan, "whole")
    on_cpu.on = True
    with pytest.raises(StopRequested):
        lab.train(
            plan,
            "broken",
            on_event=lambda event: event["event"] == "step" and (event["epoch"], event["step"]) == (epoch, step),
        )
    store = lab.train(plan, "broken")
    for method in ("kd", "dkd"):
        assert kept(store, plan, method) == kept(whole, plan, method)
    assert on_cpu.made[-1].recorder.replayed > 0


@pytest.mark.parametrize("streams", [1, 2])
def test_replays_of_a_step_run_side_by_side_and_nothing_else_does(
    lab: Lab, on_cpu: OnCpu, write_plugin: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    step = CellTrainer.step

    def watched(cell: CellTrainer, *given: Any) -> None:
        if on_cpu.on:
            on_cpu.made[-1].recorder.gives(replayed=False)  # type: ignore[attr-defined]
        step(cell, *given)

    monkeypatch.setattr(CellTrainer, "step", watched)
    reads = write_plugin("reads", "return {'ce': batch.task_loss(student.logits) * (1 + batch.progress)}")
    methods = ["scratch", "reads", "kd", "dkd"]  # the second is not recorded, the last anew in each epoch
    plan = lab.plan(methods, plugins=[reads], cuda_streams=streams)
    plain, recorded = both(lab, on_cpu, plan)
    for method in methods:
        assert kept(recorded, plan, method) == kept(plain, plan, method)
    made: Any = on_cpu.made[-1]
    first, second = made.lanes if streams > 1 else [made.recorder] * 2
    pieces, main, beside = made.recorder.pieces, made.recorder.stream, 0
    for position, piece in enumerate(pieces):
        before = pieces[:position]
        apart = [other for other in before if other.number not in piece.after]
        beside += len(apart)
        if piece.stream is main or not piece.replayed:
            assert not apart, "a batch is shared, or a step taken as it is, before others have ended"
        assert all(other.replayed for other in apart)
        shared = [other.number for other in before if other.stream is main]
        assert piece.after.issuperset(shared), "a step does not follow what it is given"
    assert Stream.current.seen.issuperset(piece.number for piece in pieces), "what follows does not wait"
    assert made.recorder.recorded == (1 if streams > 1 else 6)  # the teacher; on one stream, the cells too
    assert (first.recorded, second.recorded) == ((2, 3) if streams > 1 else (6, 6))
    assert (beside > 0) == (streams > 1)


def test_a_step_follows_what_came_before_it() -> None:
    recorder = TapeRecorder()
    recorder.gives(replayed=False)
    with recorder.active():
        recorder.gives(replayed=False)
    before, inside = recorder.pieces
    assert inside.stream is not before.stream
    assert before.number in inside.after


def test_a_batch_of_another_size_is_not_replayed(lab: Lab) -> None:
    model, recorder = cohort_model(lab, ["kd"], "cnn--vit"), TapeRecorder()
    (cell,) = model.alive
    give_rate(cell)
    model.graphs = CohortGraphs(model.alive, recorder, lambda cell, text: pytest.fail(text), warm_steps=2)
    model.train()
    cell.schedule.set(0, 0)
    for step in range(4):
        model.train_step(model.pipeline.make(0, step))
    assert recorder.replayed == 2 * 2  # of the teacher and the cell
    whole = model.pipeline.make(1, 0)
    targets = None if whole.batch.targets is None else whole.batch.targets[:4]
    batch = replace(whole.batch, labels=whole.batch.labels[:4], index=whole.batch.index[:4], targets=targets)
    model.train_step(TrainingBatch(whole.images[:4], batch))
    assert recorder.replayed == 2 * 2
    assert not model.failed


def test_streams_are_as_many_as_cells_and_stand_in_the_result(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list[int]()
    monkeypatch.setattr(graphs, "Recorder", lambda device, number=0: numbers.append(number))
    cells = cohort_model(lab, ["scratch", "kd", "fitnet"], "cnn--vit").alive
    for cell in cells:
        give_rate(cell)

    def made(count: int, streams: int) -> tuple[list[int], object]:
        numbers.clear()
        cells[0].tuning.clear()
        graphs.graphs_of(cells[:count], torch.device("cuda"), lambda cell, text: pytest.fail(text), streams=streams)
        return sorted(numbers), cells[0].tuning.get("cuda_streams")

    assert made(3, 1) == ([0], None)
    assert made(3, 2) == ([0, 1, 2], 2)
    assert made(3, 5) == ([0, 1, 2, 3], 3)
    assert made(1, 5) == ([0], None)


def test_a_device_that_is_lost_does_not_hide_what_was_raised_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        lost = False

        def wait_stream(self, other: Stream) -> None:
            if self.lost:
                raise RuntimeError("CUDA error: device-side assert triggered")

    outside = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: outside)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    recorder: Any = object.__new__(Recorder)
    recorder.device, recorder.stream = torch.device("cuda", 0), Stream()

    def breaks() -> None:
        with recorder.active([recorder]):
            Stream.lost = True
            raise DeviceLostError("in a step")

    with pytest.raises(DeviceLostError, match="in a step"):
        breaks()
    with pytest.raises(RuntimeError, match="device-side assert"), recorder.active():
        pass


REFUSED = {
    "progress": ("weight = 1 + batch.progress", "reads batch.progress"),
    "counts": ("self.calls = getattr(self, 'calls', 0) + 1\nweight = 1 / self.calls", "changes method.calls in Python"),
    "keeps": (
        "before = getattr(self, 'before', None)\nself.before = student.logits.detach()\n"
        "weight = 1 if before is None else before.square().mean()",
        "changes method.before in Python",
    ),
    "numpy": ("weight = 1 + np.random.rand()", "draws random numbers on the host"),
    "python": ("weight = 1 + random.random()", "draws random numbers on the host"),
    "reads": ("weight = 1 if student.logits.sum() > 0 else 2", "waits for the device (_local_scalar_dense)"),
}


@pytest.mark.slow
def test_a_method_that_cannot_be_recorded_runs_as_it_is_and_says_why(
    lab: Lab, on_cpu: OnCpu, write_plugin: Callable[[str, str], str]
) -> None:
    plugins = [
        write_plugin(kind, f"{body}\nreturn {{'ce': batch.task_loss(student.logits) * weight}}")
        for kind, (body, _) in REFUSED.items()
    ]
    plan = lab.plan([*REFUSED, "kd"], plugins=plugins)
    plain, recorded = both(lab, on_cpu, plan)
    for cell in plan.cells:
        assert kept(recorded, plan, cell.method) == kept(plain, plan, cell.method)
        _, reason = REFUSED.get(cell.method, ("", ""))
        fact = lab.result(recorded, plan, cell.method)["cost"]["tuning"]["graphs"]
        assert fact == (f"fell back: {reason}" if reason else True)
        said = f"{cell.key} runs without CUDA graphs: its step {reason}"
        assert recorded.cell(cell).log.read_text().count(said) == bool(reason)
        assert [event.get("reason") for event in lab.events].count(said) == bool(reason)


def test_a_method_that_reads_the_epoch_is_recorded_in_each(
    lab: Lab, on_cpu: OnCpu, write_plugin: Callable[[str, str], str]
) -> None:
    body = "terms = {'ce': batch.task_loss(student.logits) * (1 + batch.epoch)}\n"
    body += "if batch.epoch == 1:\n    terms['more'] = student.logits.square().mean()\nreturn terms"
    plan = lab.plan(["ramp"], plugins=[write_plugin("ramp", body)])
    plain, recorded = both(lab, on_cpu, plan)
    assert kept(recorded, plan, "ramp") == kept(plain, plan, "ramp")
    assert on_cpu.made[-1].recorder.recorded == 1 + 3  # the teacher, three epochs


@pytest.mark.parametrize("failing", few([{2}, {2, 3}]))  # the first recording is the teacher's
def test_a_recording_that_fails_loses_no_step(lab: Lab, on_cpu: OnCpu, failing: set[int]) -> None:
    class Fails(TapeRecorder):
        """Some recordings fail when gradients are there and the optimiser is about to use them."""

        asked = 0

        def record(self, work: Callable[[], object], stream: Any) -> Callable[[], None]:
            self.asked += 1
            self.refused = {"_fused_adamw_"} if self.asked in failing else set()
            return super().record(work, stream)

    on_cpu.recorder = Fails
    plan = lab.plan(["kd", "fitnet"])
    plain, recorded = both(lab, on_cpu, plan)
    for method in ("kd", "fitnet"):
        assert kept(recorded, plan, method) == kept(plain, plan, method)
    facts = [lab.result(recorded, plan, method)["cost"]["tuning"]["graphs"] for method in ("kd", "fitnet")]
    why = "RuntimeError: operation not permitted when stream is capturing: _fused_adamw_"
    assert facts.count(f"fell back: cannot be recorded ({why})") == len(failing)


def test_where_the_teacher_cannot_be_recorded_nothing_is(lab: Lab, on_cpu: OnCpu) -> None:
    class Refuses(TapeRecorder):
        def record(self, work: Callable[[], object], stream: Any) -> Callable[[], None]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    on_cpu.recorder = Refuses
    plan = lab.plan(["kd"])
    plain, recorded = both(lab, on_cpu, plan)
    assert kept(recorded, plan, "kd") == kept(plain, plan, "kd")
    reason = "the teacher cannot be recorded (OutOfMemoryError: CUDA out of memory)"
    assert lab.result(recorded, plan, "kd")["cost"]["tuning"] == {"graphs": f"fell back: {reason}"}


@pytest.mark.parametrize(
    "body",
    few([
        # a value that is not finite, from the device alone, once the step is recorded
        "self.count += 1\nreturn {'ce': batch.task_loss(student.logits) / (self.count < 6)}",
        # what is shared is written to, long after the others were recorded
        "self.calls = getattr(self, 'calls', 0) + 1\n"
        "if self.calls == 6:\n    teacher.logits.zero_()\nreturn {'ce': batch.task_loss(student.logits)}",
    ]),
)  # fmt: skip
def test_a_cell_that_fails_among_recorded_ones_leaves_them_their_numbers(
    lab: Lab, on_cpu: OnCpu, write_plugin: Callable[[str, str], str], body: str
) -> None:
    init = "if not hasattr(self, 'count'):\n    self.register_buffer('count', torch.zeros(()))\n"
    plugin = write_plugin("breaks", (init if "self.count" in body else "") + body)
    alone, company = lab.plan(["kd", "dist"]), lab.plan(["kd", "breaks", "dist"], plugins=[plugin])
    on_cpu.on = False
    plain = lab.train(alone, "plain")
    on_cpu.on = True
    store = lab.train(company, "graphs")
    for method in ("kd", "dist"):
        assert kept(store, company, method) == kept(plain, alone, method)
        assert lab.result(store, company, method)["cost"]["tuning"] == {"graphs": True}
    reason = store.cell(company.cells[1]).failure().reason
    assert "not finite at epoch 2, step 2" in reason or "in place" in reason


def test_what_keeps_a_cohort_from_being_recorded_is_named(lab: Lab) -> None:
    model = cohort_model(lab, ["kd"], "cnn--vit")
    (cell,) = cells = model.alive
    assert graphs.why_not(cells) == "optimizer 'adamw' has no fused kernel"  # on a CPU
    give_rate(cell)
    assert graphs.why_not(cells) is None
    assert graphs.why_not(cells, [HookEntry("Watch", Path(), True, "")]) is None
    assert graphs.why_not(cells, [HookEntry("Change", Path(), False, "")]) == "hooks may change what a step does"
    cell.micro_batches = 2
    assert graphs.why_not(cells) == "batches are trained in parts"
    cell.forward_pass.compile = True
    assert graphs.why_not(cells) == "with --compile steps run as they are"


def test_features_of_a_teacher_whose_tensors_stay_do_not_remember_their_tokens() -> None:
    images = torch.zeros(2, 3, 4, 4)
    data = TrainingBatch(images, Batch(torch.zeros(2), torch.zeros(2)))
    shared, value = Shared(data, None, frozenset()), torch.zeros(2, 5, 4, 4)
    shared.teacher = Outputs(torch.zeros(2, 3), [Feature(value.transpose(2, 3))])  # tokens are a copy
    shared.static = True
    cell: Any = SimpleNamespace(needs=frozenset(), student=SimpleNamespace(preprocessing=(), preprocess=lambda x: x))
    for step in (1.0, 2.0):
        value.fill_(step)  # a replay
        shared.renew(data)
        _, _, teacher = shared.given_to(cell)
        assert teacher is not None
        assert teacher.stages is not None
        assert teacher.stages[0].tokens.eq(step).all()
        assert not shared.was_changed()
    teacher.logits.fill_(1)
    assert shared.was_changed()


def test_the_rate_on_the_device_follows_the_schedule_and_stays_out_of_checkpoints() -> None:
    def trained(on_device: bool) -> tuple[Tensor, dict[str, Any]]:
        torch.manual_seed(0)
        student, method = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)
        recipe = Recipe.model_validate({"epochs": 2, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.1}})
        wrapper = build_optim_wrapper(student, method, recipe)
        wrapper.rate = torch.zeros((), dtype=torch.float64) if on_device else None
        for step in range(4):
            for group in wrapper.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            wrapper.update_params(method(student(torch.ones(4, 3))).square().sum())
        return student.weight.detach(), wrapper.optimizer.state_dict()

    (plain, _), (moved, saved) = trained(False), trained(True)
    assert torch.equal(plain, moved)
    assert {group["lr"] for group in saved["param_groups"]} == {0.1 / 4}
    assert not any(group["capturable"] for group in saved["param_groups"])
