"""A GPU that is lost to a job ends the job without a verdict; the second time its cells are trained one at a time to find the guilty."""

from __future__ import annotations

from pathlib import Path

from kdbench.launch.execute import classify_cells, execute
from kdbench.launch.job import Event, Job
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from tests.conftest import tiny_suite

ASSERT = "RuntimeError: CUDA error: device-side assert triggered"


class Loses:
    """A launcher of jobs that lose their GPU while the guilty cell is among their members."""

    capacity = 1

    def __init__(self, store: Store, guilty: str) -> None:
        self.store, self.guilty = store, guilty
        self.jobs: list[Job] = []
        self._ended: list[Event] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        lost = self.guilty in job.members
        if job.kind == "cohort" and not lost:
            for member in job.members:
                self.store.folder(member).fail("trained", "for all that this test is concerned with")
        end = {"error": ASSERT, "broken": True} if lost else {"error": None}
        self._ended.append({"event": "finished", "job": job.name, **end})

    def poll(self, seconds: float) -> list[Event]:
        ended, self._ended = self._ended, []
        return ended

    def cancel(self) -> None:
        raise AssertionError("nothing ends this run")


def test_the_cell_that_loses_the_gpu_is_found_and_the_others_are_trained(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    plan = make_plan(tiny_suite(), Request(out=str(store.root), device="cuda"), catalog())
    guilty = plan.cells[1]
    launcher = Loses(store, guilty.folder)
    execute(plan, classify_cells(plan, store), store, launcher)
    failed = {cell.folder: store.cell(cell).failure() for cell in plan.cells}
    assert {folder for folder, failure in failed.items() if failure.kind != "trained"} == {guilty.folder}
    assert (failed[guilty.folder].kind, failed[guilty.folder].reason) == ("device", ASSERT)
    jobs = [job for job in launcher.jobs if job.kind == "cohort" and guilty.folder in job.members]
    whole = next(cohort for cohort in plan.cohorts() if guilty in cohort.cells).cells
    assert [(len(job.members), job.careful, job.request.graphs) for job in jobs] == [
        (len(whole), False, True),
        (len(whole), False, True),
        (1, True, False),
    ]
    alone = [job for job in launcher.jobs if job.careful]
    assert [job.members for job in alone] == [(cell.folder,) for cell in whole]
