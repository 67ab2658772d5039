"""What an exception means: too little memory leads to smaller groups and batches wherever it comes up, a lost device ends the process."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.engine import compiled, evaluation, fate, groups, record
from kdbench.engine.compiled import Forward
from kdbench.engine.evaluation import predict_batch
from kdbench.engine.faults import TooLargeError, is_device_lost, is_out_of_memory, judge
from kdbench.engine.meters import Meters, NonFiniteLossError
from kdbench.engine.numerics import set_numerics
from kdbench.errors import DeviceLostError, KdbenchError
from kdbench.matrix.request import Request
from kdbench.store.provenance import gpu_settings
from kdbench.suite.recipe import Recipe

from .conftest import Lab

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA driver error: out of memory"),
]
LOST = [
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
]
OWN = [
    ValueError("shapes do not match"),
    RuntimeError("CUDA error: invalid argument"),
    RuntimeError("operation not permitted when stream is capturing"),
    KdbenchError("a loader process died, perhaps out of memory"),
]


def test_short_memory_and_lost_devices_are_told_from_a_cells_own_errors_in_all_their_words() -> None:
    assert [error for error in (*LOST, *OWN) if is_out_of_memory(error)] == []
    assert [error for error in SHORT if not is_out_of_memory(error)] == []
    assert [error for error in (*SHORT, *OWN) if is_device_lost(error)] == []
    assert [error for error in LOST if not is_device_lost(error)] == []
    for error, expected in ((SHORT[3], TooLargeError), (LOST[0], DeviceLostError)):
        wrapped = KdbenchError("hook spy raised in after_train_iter")
        wrapped.__cause__ = error  # what stands behind an error counts too
        with pytest.raises(expected, match="a step of a"):
            judge(wrapped, "a step of a")
    assert (judge(OWN[0], "a step of a", 3).reason, judge(OWN[0], "a step", 3).epoch) == (
        "ValueError: shapes do not match",
        3,
    )


def test_an_evaluation_batch_that_does_not_fit_is_evaluated_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(10.0).reshape(10, 1)
    sizes: list[int] = []

    def predict(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > 3:
            raise SHORT[0]
        return part * 2

    assert torch.equal(predict_batch(predict, images), images * 2)
    assert sizes == [10, 5, 3, 2, 5, 3, 2]

    def fails(part: torch.Tensor) -> torch.Tensor:
        raise error

    for error in (SHORT[3], LOST[0], OWN[0]):
        with pytest.raises(type(error)):
            predict_batch(fails, images)


def test_a_net_that_meets_short_memory_or_a_lost_device_does_not_count_as_one_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error: Exception = SHORT[0]

    def run(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(compiled, "compiled", lambda function: run)
    net: Any = SimpleNamespace(run=None, name="net")
    for each in (SHORT[3], LOST[0]):
        error = each
        with pytest.raises(RuntimeError) as found:
            Forward(net, True, pytest.fail)(torch.zeros(1), {"logits"})
        assert found.value is each


@pytest.mark.slow
def test_short_memory_while_cells_are_built_evaluated_or_measured_makes_smaller_groups(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three raises once, in the words of another library, and a last one always, for a cell that is alone by then."""
    plan = lab.plan(["scratch", "kd", "fitnet", "sp", "dist"])
    whole = lab.train(plan, "whole")
    shutil.copytree(lab.root / "whole" / "teachers", lab.store("short").root / "teachers", dirs_exist_ok=True)
    calls: Counter[str] = Counter()

    def raises(module: Any, name: str, error: Exception, nth: int) -> None:
        before = getattr(module, name)

        def call(*given: Any, **options: Any) -> Any:
            calls[name] += 1
            if calls[name] == nth:
                raise error
            return before(*given, **options)

        monkeypatch.setattr(module, name, call)

    raises(groups.Session, "_build", SHORT[3], 2)  # of five cells: two go on, then three
    raises(evaluation, "measure", SHORT[5], 1)  # of two: each alone
    raises(record, "inference_cost", SHORT[7], 3)  # the first of three
    store = lab.train(plan, "short")
    assert [nth <= calls[name] for name, nth in (("_build", 2), ("measure", 1), ("inference_cost", 3))] == [True] * 3
    for cell in plan.cells:
        result = Lab.result(store, plan, cell.method)
        assert result["metrics"] == Lab.result(whole, plan, cell.method)["metrics"]
        assert result["cost"]["micro_batches"] == 1

    def short(*given: Any) -> Any:
        raise SHORT[3]

    monkeypatch.setattr(groups.Session, "_build", short)
    plan = lab.plan(["rkd"])
    failure = lab.train(plan, "short").cell(plan.cells[0]).failure()
    assert (failure.kind, failure.reason) == (
        "out of memory",
        f"out of memory in building {plan.cells[0].key}, even alone",
    )


def test_a_lost_device_judges_no_cell(lab: Lab, write_plugin: Callable[[str, str], str]) -> None:
    plugin = write_plugin("asserts", "raise RuntimeError('CUDA error: device-side assert triggered')")
    plan = lab.plan(["asserts", "kd"], plugins=[plugin])
    with pytest.raises(DeviceLostError, match="device-side assert triggered"):
        lab.train(plan)
    assert {lab.store("runs").cell(cell).failed.exists() for cell in plan.cells} == {False}


def test_what_ends_a_job_of_a_single_process_is_its_own_error_or_the_loss_of_its_device() -> None:
    for error, expected in ((OWN[0], ValueError), (LOST[1], DeviceLostError), (KdbenchError("no data"), KdbenchError)):
        with pytest.raises(expected) as found, fate.shared():
            raise error
        assert found.value is error or expected is DeviceLostError


def test_tf32_and_the_choice_of_kernels_are_set_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = Recipe.model_validate({"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.1}})
    assert "tf32" not in recipe.identity()  # identities are those of before there was a choice
    try:
        for tf32, expected in (("none", []), ("all", ["products", "convolutions"]), ("convolutions", ["convolutions"])):
            chosen = recipe.model_copy(update={"tf32": tf32})
            assert chosen.identity().get("tf32", "convolutions") == tf32
            set_numerics(chosen, Request(cudnn_benchmark=tf32 == "all", deterministic=tf32 == "none"))
            facts = gpu_settings()
            assert (facts["tf32"], facts["cudnn_benchmark"]) == (expected, tf32 == "all")
            assert facts["deterministic"] == torch.backends.cudnn.deterministic == (tf32 == "none")
    finally:
        set_numerics(recipe, Request())


def test_a_term_that_overflows_in_float16_is_left_out_until_it_does_so_too_often_in_a_row() -> None:
    """The scaler skips such a step; with 32-bit floats one step is enough, as no step is skipped."""
    infinite, fine = {"ce": torch.tensor(float("inf"))}, {"ce": torch.tensor(2.0)}

    def read(meters: Meters, terms: Any) -> dict[str, float]:
        for term in terms:
            meters.add(term)
            meters.steps += 1
        again = Meters(meters.device, meters.patience)
        again.load_state_dict(meters.state_dict())
        return again.read(0)

    cpu = torch.device("cpu")
    assert read(Meters(cpu, 3), [fine, infinite, infinite, fine]) == {"ce": 2.0}
    with pytest.raises(NonFiniteLossError, match="'ce' is not finite at epoch 1, step 2"):
        read(Meters(cpu, 3), [fine, infinite, infinite, infinite, fine])
    with pytest.raises(NonFiniteLossError, match="'ce' is not finite at epoch 1, step 2"):
        read(Meters(cpu), [fine, infinite])
