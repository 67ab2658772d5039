"""A step never waits for the device: nothing in it reads a tensor on the host, copies one there or back, or has a result
whose size only the device knows. Counted on a CPU by watching every operation, since on a GPU each of them would wait."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.data.device import DevicePipeline
from kdbench.datasets.load import load_dataset
from kdbench.engine.cell import CellTrainer
from kdbench.engine.cohort import CohortModel
from kdbench.engine.compiled import Forward
from kdbench.engine.faults import CellFailure
from kdbench.engine.teacher import freeze
from kdbench.engine.train import spec_of
from kdbench.method import Method, Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from tests.few import few

from .conftest import Lab, cohort_of

#: Operations that wait on a GPU: ``item``, ``bool``, ``int``, ``float``; sizes that depend on values; tensors from Python.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "lift_fresh", "lift_fresh_copy",
}  # fmt: skip
#: Methods of tensors that hand values to the host without an operation that is watched.
_TO_HOST = ("numpy", "tolist", "cpu", "__array__")


class Watch(TorchDispatchMode):
    """Counts the operations of the block that would wait on a GPU, with the line of the project that asked for each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.active = False

    def __enter__(self) -> Watch:
        self.active = True
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        self.active = False
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put", "index_put_", "_index_put_impl_") and _has_mask(args[1])):
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        if not self.active:
            return
        frames = [
            frame for frame in traceback.extract_stack() if "/methods/" in frame.filename or "kdbench" in frame.filename
        ]
        where = f"{frames[-1].filename.rsplit('/', 2)[-1]}:{frames[-1].lineno}" if frames else "torch"
        self.found[f"{name} ({where})"] += 1


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching = Watch()
    for name in _TO_HOST:
        before = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, _name: str = name, _before: Any = before, **kwargs: Any) -> Any:
            watching.note(_name)
            return _before(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, read)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: watching.note("synchronize"))
    return watching


def cohort_model(lab: Lab, methods: list[str], pair: str) -> CohortModel:
    """A cohort with a teacher that is not trained."""
    plan = lab.plan(methods, pair)
    cohort = cohort_of(plan)
    images = load_dataset("digits").training(8)
    teacher = freeze(TappedNet(cohort.teacher.net, 10, cohort.teacher.name))
    strong = any("strong" in plan.catalog[cell.method].needs for cell in cohort.cells)
    pipeline = DevicePipeline(images, cohort.cells[0].recipe, 10, 7, lab.device, strong)
    task = Task(10, len(images), images.labels, "digits", 3)
    store = Store(lab.root / "runs")
    cells = [
        CellTrainer(spec_of(plan, cell, store), task, teacher.describe(), len(pipeline), lab.device)
        for cell in cohort.cells
    ]

    def fail(cell: CellTrainer, failure: CellFailure) -> None:
        raise AssertionError(f"{cell.key}: {failure.details}")

    return CohortModel(cells, Forward(teacher), pipeline, lab.device, fail)


def take_steps(model: CohortModel, count: int) -> None:
    model.train()
    for step in range(count):
        for cell in model.alive:
            cell.schedule.set(0, step)
        model.train_step(model.pipeline.make(0, step))


@pytest.mark.parametrize("pair", few(["cnn--vit", "vit--cnn"]))
def test_a_step_of_all_methods_never_waits_for_the_device(lab: Lab, watch: Watch, pair: str) -> None:
    model = cohort_model(lab, list(catalog()), pair)
    take_steps(model, 1)  # random numbers of the epoch's order, first use of libraries
    watch.found.clear()
    with watch:
        take_steps(model, 1)
    assert len(model.alive) > 20
    assert not watch.found, f"{sum(watch.found.values())} times: {dict(watch.found)}"


def test_what_waits_is_counted(lab: Lab, watch: Watch) -> None:
    class Waits(Method):
        def forward(self, batch: Any, student: Any, teacher: Any) -> dict[str, Tensor]:
            loss = batch.task_loss(student.logits)
            scale = 2.0 if loss > 0 else 1.0  # bool
            chosen = student.logits[batch.labels > 3]  # a mask
            weights = torch.tensor([scale, loss.item()])  # from Python; item
            return {"ce": loss * weights.sum() + 0 * chosen.sum() * float(loss.detach().numpy())}

    model = cohort_model(lab, ["kd"], "cnn--vit")
    (cell,) = model.alive
    method = Waits(cell.student.describe(), cell.student.describe(), cell.task)
    cell.distiller.method = method
    with watch:
        take_steps(model, 1)
    kinds = Counter(name.partition(" ")[0] for name in watch.found.elements())
    assert kinds["_local_scalar_dense"] >= 2
    assert kinds["index"] == kinds["numpy"] == 1
    assert kinds["lift_fresh"] >= 1


def test_the_schedule_reads_no_tensor(lab: Lab, watch: Watch) -> None:
    (cell,) = cohort_model(lab, ["kd"], "cnn--vit").alive
    with watch:
        cell.schedule.set(0, 1)
    assert not watch.found
