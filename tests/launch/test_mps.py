"""Workers that share a GPU: the service is started once, told to them, and ended with the command. A script stands for NVIDIA's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.launch import local, mps
from kdbench.launch.choose import Machine, choose_machine
from kdbench.launch.job import Job
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from tests.conftest import tiny_suite


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The service's log; a line for each start and each word that it is told."""
    log = tmp_path / "said"
    script = tmp_path / "bin" / "nvidia-cuda-mps-control"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -d ]; then echo "start ${{CUDA_VISIBLE_DEVICES-all}}" >>{log}; else cat >>{log}; fi\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(mps, "_USUAL", str(tmp_path / "none"))
    mps.start_service.cache_clear()
    yield log
    mps.start_service.cache_clear()


def test_it_runs_once_sees_all_gpus_and_ends_with_the_process(control: Path) -> None:
    script = (
        "from kdbench.launch.mps import start_service\n"
        "first = start_service()\nassert first and first == start_service()\nprint(first['CUDA_MPS_PIPE_DIRECTORY'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert control.read_text() == "start all\nquit\n"
    assert not Path(done.stdout.strip()).exists()


def test_one_that_runs_already_is_used_and_one_that_does_not_start_is_done_without(
    control: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = tmp_path / "running"
    running.mkdir()
    (running / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(running))
    assert mps.start_service() == {}
    assert not control.exists()
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY")
    mps.start_service.cache_clear()
    Path(control.parent / "bin" / "nvidia-cuda-mps-control").write_text("#!/bin/sh\nexit 1\n")
    assert mps.start_service() == {}


@pytest.mark.parametrize(
    ("workers", "careful", "found"),
    [(2, False, None), (4, False, "shared"), (4, True, os.devnull)],
)
def test_workers_of_one_gpu_share_it_but_those_that_look_for_the_guilty_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, careful: bool, found: str | None
) -> None:
    given: list[dict[str, str]] = []

    class Process:
        pid, stdout, stderr, stdin = 1, (), None, None

        def kill(self) -> None: ...

    def start(job: Job, environment: dict[str, str]) -> Any:
        given.append(environment)
        return Process()

    monkeypatch.setattr(local, "can_share", lambda gpus: True)
    monkeypatch.setattr(local, "start_service", lambda: {"CUDA_MPS_PIPE_DIRECTORY": "shared"})
    monkeypatch.setattr(local, "start_worker", start)
    monkeypatch.setattr(local.LocalLauncher, "_watch", lambda *given: None)
    launcher = local.LocalLauncher(workers, ("0", "1"))
    launcher.submit(Job("a", "cohort", (), Request(out=str(tmp_path)), 1, "log", careful=careful))
    assert given[0].get("CUDA_MPS_PIPE_DIRECTORY") == found


@pytest.mark.parametrize(
    ("gpus", "cores", "mps_there", "workers"),
    [(1, 16, True, 8), (2, 6, True, 6), (4, 2, True, 4), (2, 16, False, 2)],
)
def test_small_images_get_several_workers_per_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, mps_there: bool, workers: int
) -> None:
    monkeypatch.setattr("kdbench.launch.choose.gpus_of", lambda device: tuple(map(str, range(gpus))))
    monkeypatch.setattr("kdbench.launch.choose.can_share", lambda gpus: mps_there)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    plan = make_plan(tiny_suite(), Request(), catalog())
    assert choose_machine(plan.request, plan) == Machine("local", workers)
