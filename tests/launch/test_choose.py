"""From a request to a machine: how many jobs at a time, and what is refused before anything is written."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.launch.choose import Machine, check_machine, choose_machine, cohorts_of
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from tests.conftest import tiny_suite


def planned(**wanted: Any) -> Plan:
    return make_plan(tiny_suite(), Request(device="cpu", protocol="seeds", **wanted), catalog())


def test_workers_are_as_many_as_asked_for_or_as_there_are_cores() -> None:
    def machine(**wanted: Any) -> Machine:
        plan = planned(**wanted)
        return choose_machine(plan.request, plan)

    assert machine(workers=3) == Machine("local", 3)
    assert machine(on="ray", workers=3) == Machine("ray", 3)
    assert machine() == Machine("local", max(1, (os.cpu_count() or 1) // planned().suite.cpu_threads))
    assert machine(on="slurm") == Machine("slurm", 1)
    assert machine(on="inprocess") == Machine("inprocess", 1)


def test_processes_that_share_every_job_are_one_worker_whatever_the_request() -> None:
    plan = planned(workers=3, on="slurm")
    assert choose_machine(plan.request, plan, together=True) == Machine("together", 1)


def test_memory_of_a_request_limits_cohorts_and_that_of_this_machine_only_those_that_run_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdbench.launch.choose.available", lambda device, workers: 1.0)

    def cohorts(machine: Machine, **wanted: Any) -> int:
        plan = planned(**wanted)
        return len(cohorts_of(plan, plan.cells, Store("nowhere").scan(plan.cells), machine, pytest.fail))

    assert cohorts(Machine("slurm", 1)) == 4  # of two teachers and two seeds
    assert cohorts(Machine("local", 1)) == cohorts(Machine("slurm", 1), memory=1e-6) == 12
    assert cohorts(Machine("local", 1), memory=100.0) == 4
    assert cohorts(Machine("slurm", 1), solo=True) == 12


def test_options_that_do_not_fit_the_engine_and_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(KdbenchError, match="--slurm time=5 is for --on slurm, not for --on local"):
        check_machine(Request(slurm="time=5"))
    for device in ("gpu", "mps", "cuda:", "cuda:-1", "CUDA", ""):
        with pytest.raises(KdbenchError, match=f"--device {device}: expected cpu, cuda "):
            check_machine(Request(device=device))
    check_machine(Request(device="cpu"))
