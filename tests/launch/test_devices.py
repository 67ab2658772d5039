"""``--device`` and $CUDA_VISIBLE_DEVICES: each GPU that is named gets its worker, and none of them is trained on the CPU in silence."""

from __future__ import annotations

import io
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.errors import KdbenchError
from kdbench.forecast import fit
from kdbench.launch import choose, local, torchrun
from kdbench.launch.choose import check_machine, choose_machine, launcher_of
from kdbench.launch.job import Job
from kdbench.launch.local import LocalLauncher, start_worker
from kdbench.matrix import devices
from kdbench.matrix.cells import make_plan
from kdbench.matrix.devices import gpus_of
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from tests.conftest import tiny_suite


def machine_with(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None, broken: str = "") -> None:
    """A pretended machine: ``count`` GPUs that CUDA shows, or a reason why it does not start."""

    def init() -> None:
        if broken:
            raise RuntimeError(broken)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("count", "visible", "device", "workers"),
    [
        (2, None, None, ["0", "1"]),
        (2, None, "cuda", ["0", "1"]),
        (2, None, "cuda:0", ["0"]),
        (2, None, "cuda:1", ["1"]),
        (2, "3,5", "cuda:1", ["5"]),
        (1, "0,-1", None, ["0"]),  # CUDA shows nothing behind an invalid name
        (1, "2, 9,1", "cuda", ["2"]),
        (2, "GPU-8932f937, GPU-1c2d", "cuda:1", ["GPU-1c2d"]),
        (1, "MIG-GPU-8932f937/1/0", None, ["MIG-GPU-8932f937/1/0"]),
        (2, None, "cpu", []),
        (0, "", None, []),
    ],
)
def test_every_gpu_that_is_named_gets_one_worker_which_sees_it_alone(
    monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None, device: str | None, workers: list[str]
) -> None:
    machine_with(monkeypatch, count, visible)
    started: list[tuple[str | None, str | None]] = []

    class Process:
        pid = 0

    def start(job: Job, environment: dict[str, str]) -> Any:
        started.append((job.request.device, environment.get("CUDA_VISIBLE_DEVICES")))
        return Process()

    monkeypatch.setattr(local, "start_worker", start)
    monkeypatch.setattr(LocalLauncher, "_watch", lambda *given: None)
    request = Request(device=device, protocol="seeds")
    check_machine(request)
    assert gpus_of(device) == tuple(workers)
    plan = make_plan(tiny_suite(), request, catalog())
    machine = choose_machine(request, plan)
    assert machine.workers == (len(workers) or max(1, (os.cpu_count() or 1) // plan.suite.cpu_threads))
    launcher = launcher_of(plan, machine)
    for slot in range(machine.workers):
        launcher.submit(Job(str(slot), "cohort", (), request, 1, "log"))
    assert started == ([("cuda", name) for name in workers] or [("cpu", None)] * machine.workers)


@pytest.mark.parametrize(
    ("device", "count", "broken", "reason"),
    [
        ("cuda", 0, "Found no NVIDIA driver\non your system", "--device cuda: Found no NVIDIA driver"),
        ("cuda", 0, "", "--device cuda: CUDA shows no GPU"),
        ("cuda:9", 1, "", "--device cuda:9: there is 1 GPU, from cuda:0"),
        ("cuda:2", 2, "", "--device cuda:2: there are 2 GPUs, from cuda:0"),
        (None, 0, "driver too old", r"a GPU that cannot be used \(driver too old\); --device cpu trains without it"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_in_one_line_and_no_cpu_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str | None, count: int, broken: str, reason: str
) -> None:
    machine_with(monkeypatch, count, broken=broken)
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    with pytest.raises(KdbenchError, match=f"{reason}$"):
        check_machine(Request(device=device))
    check_machine(Request(device="cpu"))
    if device is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
        check_machine(Request())


def test_engines_choose_gpus_themselves_and_processes_that_train_together_have_one_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "check_installed", lambda *package: None)
    check_machine(Request(device="cuda", on="slurm"))  # which this machine need not have
    with pytest.raises(KdbenchError, match="--device cuda:1: --on slurm chooses GPUs itself"):
        check_machine(Request(device="cuda:1", on="slurm"))
    with pytest.raises(KdbenchError, match="--device cuda:0 is one GPU"):
        torchrun.together("pytorch", "cuda:0", lambda: 0)


def test_memory_is_that_of_the_gpus_in_use_shared_by_their_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(words: list[str], env: dict[str, str], **options: Any) -> Any:
        asked.append(env["CUDA_VISIBLE_DEVICES"])
        free = [{"1": 10, "4": 40, "full": 1}[name] for name in env["CUDA_VISIBLE_DEVICES"].split(",")]
        return subprocess.CompletedProcess(words, 0, json.dumps(free), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert fit.available(("1",), 1) == fit.USABLE * 10
    assert fit.available(("4", "full", "1"), 6) == fit.USABLE * 10 / 2  # one that others fill does not count for all
    assert asked == ["1", "4,full,1"]
    monkeypatch.setattr(subprocess, "run", lambda words, **options: subprocess.CompletedProcess(words, 1, "", "busy"))
    assert fit.available(("1",), 1) == float("inf")


def test_cuda_waits_for_each_kernel_in_a_careful_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Process:
        stdin = io.StringIO()

        def __init__(self, words: list[str], env: dict[str, str], **options: Any) -> None:
            seen.append(env)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    job = Job("a", "cohort", (), Request(), 1, "log")
    start_worker(job, {})
    start_worker(replace(job, careful=True), {})
    assert [env.get("CUDA_LAUNCH_BLOCKING") for env in seen] == [None, "1"]
