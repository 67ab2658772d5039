"""What holds on a GPU with ``--deterministic``, as on the CPU without: company and interruptions change no bit; memory is given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine import train

from .conftest import Lab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
METHODS = ("scratch", "kd", "fitnet", "dist", "ofa", "crd")


@pytest.fixture
def gpu(lab: Lab) -> Lab:
    lab.device = train.setup(1, "cuda")
    return lab


def metrics(store: Any, plan: Any) -> dict[str, Any]:
    return {cell.method: Lab.result(store, plan, cell.method)["metrics"] for cell in plan.cells}


@pytest.mark.parametrize("pair", ["cnn--vit", "vit--cnn"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_company_and_interruptions_change_nothing(gpu: Lab, pair: str, precision: str) -> None:
    plan = gpu.plan(METHODS, pair, recipe={"precision": precision}, deterministic=True)
    together = metrics(gpu.train(plan, "together"), plan)
    assert together == metrics(gpu.train(plan, "alone", solo=True), plan)

    class Stop(BaseException):
        """Stands for a process that ends."""

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        gpu.train(plan, "broken", on_event=stop)
    assert together == metrics(gpu.train(plan, "broken"), plan)


def test_steps_side_by_side_change_nothing(gpu: Lab) -> None:
    plan = gpu.plan(METHODS, deterministic=True)
    alone = metrics(gpu.train(plan, "one stream"), plan)
    store = gpu.train(gpu.plan(METHODS, deterministic=True, cuda_streams=3), "three streams")
    assert alone == metrics(store, plan)
    for method in METHODS:
        tuning = Lab.result(store, plan, method)["cost"]["tuning"]
        assert tuning == {"deterministic": True, "graphs": True, "cuda_streams": 3}


def test_a_cohort_that_does_not_fit_goes_on_and_leaves_no_memory_behind(
    gpu: Lab, write_plugin: Callable[[str, str], str], tmp_path: Path
) -> None:
    plugin = write_plugin(
        "hungry",
        "size = torch.cuda.get_device_properties(0).total_memory\n"
        "room = torch.zeros(size if len(student.logits) > 10 else 1, dtype=torch.uint8, device='cuda')\n"
        "return {'ce': batch.task_loss(student.logits) + 0 * room[0]}",
    )
    plan = gpu.plan(["hungry", "kd"], plugins=[plugin])
    store = gpu.train(plan)
    assert Lab.result(store, plan, "hungry")["cost"]["micro_batches"] == 2
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < 2**29  # cuBLAS keeps 32 MiB for each stream of each thread
