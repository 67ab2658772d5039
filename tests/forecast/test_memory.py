"""What a cohort will need is known before it runs; too large a cohort is split; a cell more costs its state, not its graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.forecast.fit import available, fit, measured_scale
from kdbench.forecast.memory import (
    _STATES,
    _bytes,
    _state_of,
    _storage,
    _tensors,
    cell_need,
    cohort_need,
    saved_storages,
)
from kdbench.matrix.cells import Cohort
from kdbench.store.folders import CellState
from tests.engine.conftest import Lab, cohort_of
from tests.engine.test_no_waiting import cohort_model, take_steps
from tests.records import cell_result

METHODS = ("scratch", "kd", "fitnet", "crd", "ofa", "lfcc", "rkd", "mlld")


@pytest.mark.parametrize("pair", ["cnn--vit", "vit--cnn"])
def test_what_a_step_keeps_and_a_cell_holds_is_estimated_without_data(lab: Lab, pair: str) -> None:
    plan = lab.plan(METHODS, pair)
    model = cohort_model(lab, list(METHODS), pair)
    take_steps(model, 1)  # optimiser states are there
    data = model.pipeline.make(0, 1)
    shared = model.share(data)
    for cell, planned in zip(model.alive, plan.cells, strict=True):
        images = shared.input_for(cell.student, data.images)
        strong = shared.input_for(cell.student, data.strong) if "strong" in cell.needs else None
        there = {_storage(value) for value in (*_state_of(cell.student, cell.method), *_tensors(shared.teacher))}
        with saved_storages() as kept:
            cell.distiller(data.batch, images, strong, shared.teacher)
        found = sum(storage.nbytes() for key, storage in kept.items() if key not in there)
        need = cell_need(plan, planned, 80)
        assert need.graph == pytest.approx(found, rel=0.25), planned.method
        states = [value for state in cell.optim_wrapper.optimizer.state.values() for value in state.values()]
        held = _bytes(_state_of(cell.student, cell.method)) + _bytes(v for v in states if isinstance(v, Tensor))
        assert need.held == pytest.approx(held, rel=0.05), planned.method


class Live:
    """Bytes that graphs keep, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def counting(self) -> Any:
        def pack(value: Tensor) -> Any:
            return Kept(self, value)

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value)


class Kept:
    def __init__(self, live: Live, value: Tensor) -> None:
        self.live, self.value = live, value
        self.bytes = value.numel() * value.element_size()
        live.now += self.bytes
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.bytes


def test_a_cell_more_in_a_cohort_adds_its_state_and_not_its_graph(lab: Lab) -> None:
    most = {}
    for methods in (["kd"], ["kd", "dkd", "dist", "nkd"]):
        model = cohort_model(lab, methods, "cnn--vit")
        take_steps(model, 1)
        live = Live()
        with live.counting():
            take_steps(model, 1)
        assert live.now == 0  # nothing outlives its step
        most[len(methods)] = live.most
    assert most[4] == pytest.approx(most[1], rel=0.02)


def estimator(per_cell: int) -> Callable[[Any], list[Cohort]]:
    return lambda cohorts: [replace(cohort, memory=per_cell * len(cohort.cells)) for cohort in cohorts]


def test_cohorts_are_halved_until_they_fit_and_single_cells_stay(lab: Lab) -> None:
    cohorts = estimator(10)([cohort_of(lab.plan(["scratch", "kd", "fitnet", "dkd", "dist"]))])
    parts = fit(cohorts, 25, estimator(10))
    assert [len(part.cells) for part in parts] == [2, 1, 2]
    assert [part.part for part in parts] == ["part aa", "part ab", "part b"]
    assert [cell for part in parts for cell in part.cells] == list(cohorts[0].cells)
    assert [len(part.cells) for part in fit(cohorts, 5, estimator(10))] == [1] * 5
    assert fit(cohorts, 50, estimator(10)) == cohorts


def test_a_larger_cohort_needs_more_by_what_its_cells_hold(lab: Lab) -> None:
    plan = lab.plan(["kd", "dkd", "dist"])
    cohort = cohort_of(plan)
    whole, one = (
        cohort_need(plan, replace(cohort, cells=cells), 80, on_gpu=True) for cells in (cohort.cells, cohort.cells[:1])
    )
    assert whole - one == 2 * cell_need(plan, cohort.cells[0], 80).held


@pytest.mark.parametrize(
    ("streams", "graphs", "on_gpu", "more"),
    [(2, True, True, 1), (5, True, True, 2), (2, False, True, 0), (2, True, False, 0)],
)
def test_steps_side_by_side_need_the_memory_of_each(
    lab: Lab, streams: int, graphs: bool, on_gpu: bool, more: int
) -> None:
    plan = lab.plan(["kd", "dkd", "dist"])
    beside = replace(plan, request=replace(plan.request, cuda_streams=streams, graphs=graphs))
    one, several = (cohort_need(each, cohort_of(plan), 80, on_gpu=on_gpu) for each in (plan, beside))
    assert several - one == more * cell_need(plan, plan.cells[0], 80).step


def test_measured_peaks_refine_estimates_of_the_same_kind_of_device(lab: Lab) -> None:
    cell = lab.plan(["kd"]).cells[0]
    states = {"planned": CellState("planned"), "not estimated": CellState("done", cell_result(cell))}
    assert measured_scale(states, on_gpu=False) == 1.0
    for number, (device_type, peak) in enumerate([("cpu", 120), ("cpu", 140), ("cpu", 160), ("cuda", 1000)]):
        result = cell_result(cell, cost={"peak_memory_bytes": peak, "estimated_memory_bytes": 100})
        provenance = result.provenance.model_copy(update={"device_type": device_type})
        states[str(number)] = CellState("done", result.model_copy(update={"provenance": provenance}))
    assert measured_scale(states, on_gpu=False) == 1.4
    assert measured_scale(states, on_gpu=True) == 3.0  # at most


def test_the_hosts_memory_is_shared_by_its_workers() -> None:
    assert available((), 4) == pytest.approx(available((), 1) / 4, rel=0.2)


def test_every_optimizer_with_one_state_has_one() -> None:
    from timm.optim import create_optimizer_v2

    for name, expected in _STATES.items():
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = create_optimizer_v2([weight], opt=name, lr=0.1, momentum=0.9)
        weight.grad = torch.ones(3)
        optimizer.step()
        states = [
            value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.numel() == 3
        ]
        assert len(states) <= max(expected, 2)
        assert name.startswith("rmsprop") or len(states) == expected
