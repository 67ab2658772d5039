"""Runs from the command line to the last file: what fails, what is killed, what is interrupted, what is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.cli import plan as plan_verb
from kdbench.cli.status import watch_status
from kdbench.errors import KdbenchError
from kdbench.forecast.time import JobEstimate, wall_time
from kdbench.launch import slurm
from kdbench.launch.choose import Machine
from kdbench.launch.execute import MAX_CRASHES, classify_cells, execute
from kdbench.launch.inprocess import InProcessLauncher
from kdbench.launch.job import Event, Follower, Job, job_for_cohort
from kdbench.launch.local import LocalLauncher
from kdbench.launch.remote import EventFiles
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.store.claims import Claims
from kdbench.store.files import read_json, write_bytes
from kdbench.store.folders import Store
from kdbench.store.result import CellResult, read_record
from kdbench.store.rows import load_results
from kdbench.suite.suite import load_suite
from tests.conftest import Said
from tests.records import cell_result
from tests.store.test_claims import elsewhere

pytestmark = pytest.mark.xdist_group("launch")  # one process trains what most tests copy
Kdbench = Callable[..., Said]
#: Seconds after which a test that hangs is given up; no machine is that slow.
GUARD = 600.0
NAN = "batch.task_loss(student.logits) * (float('nan') if self.steps >= 3 else 1.0)"


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    yield
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        sys.modules.pop(METHODS.pop(name).__module__, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A suite file, and a run directory in which its default protocol is done. Copy it before changing it."""
    from kdbench.cli.parser import main
    from tests.conftest import tiny

    folder = tmp_path_factory.mktemp("trained")
    import yaml

    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny(), sort_keys=False))
    words = ["run", str(folder / "tiny.yaml"), "--out", str(folder / "runs"), "--on", "inprocess", "--device", "cpu"]
    assert main(words) == 0
    return folder / "tiny.yaml", folder / "runs"


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    suite, runs = trained
    shutil.copytree(runs, tmp_path / "runs")
    return suite, tmp_path / "runs"


def again(kdbench: Kdbench, suite: Path, runs: Path, *words: object) -> Said:
    return kdbench("run", suite, "--out", runs, "--on", "inprocess", "--device", "cpu", *words)


def scores(runs: Path) -> dict[str, float]:
    frame = load_results(runs)
    return {row["path"]: row["nll"] for _, row in frame[frame["state"] == "done"].iterrows()}


# In this process


def test_run_trains_every_cell_and_prints_a_leaderboard_of_real_numbers(
    trained: tuple[Path, Path], kdbench: Kdbench
) -> None:
    suite, runs = trained
    frame = load_results(runs)
    assert frame["state"].tolist() == ["done", "done"]
    assert set(frame["method"]) == {"scratch", "kd"}
    assert frame["top1"].between(0, 100).all()
    assert frame["epochs"].tolist() == [2, 2]
    for path in frame["path"]:
        names = {item.name for item in (runs / path).iterdir()}
        assert names == {
            "config.json",
            "result.json",
            "history.csv",
            "predictions.npz",
            "log.txt",
            "student.safetensors",
        }
    said = kdbench("leaderboard", suite, "--out", runs)
    assert "KD" in said.out


def test_second_run_trains_nothing(copied: tuple[Path, Path], kdbench: Kdbench) -> None:
    suite, runs = copied
    stamps = {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    said = again(kdbench, suite, runs)
    assert (said.status, said.err) == (0, "")
    assert "nothing to train: 2 cells done already" in said.out
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")} == stamps


def test_cut_result_is_trained_again_alone_and_that_is_said(copied: tuple[Path, Path], kdbench: Kdbench) -> None:
    suite, runs = copied
    before = scores(runs)
    (damaged,) = runs.glob("tiny/short/cnn--vit/kd/*/result.json")
    (kept,) = runs.glob("tiny/short/cnn--vit/scratch/*/result.json")
    stamp = kept.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:100])
    said = again(kdbench, suite, runs)
    assert said.status == 0
    assert f"note: {damaged} is damaged: the cell is trained again" in said.out
    assert "1 cell to train" in said.out
    assert kept.stat().st_mtime_ns == stamp
    assert scores(runs) == before


def test_cut_configuration_is_written_again_and_its_result_is_kept(copied: tuple[Path, Path], kdbench: Kdbench) -> None:
    suite, runs = copied
    before = scores(runs)
    (config,) = runs.glob("tiny/short/cnn--vit/kd/*/config.json")
    whole = read_json(config)
    config.write_bytes(config.read_bytes()[:100])
    assert len(load_results(runs)) == 2
    said = again(kdbench, suite, runs)
    assert said.status == 0
    assert "nothing to train" in said.out
    assert read_json(config) == whole
    assert scores(runs) == before


def test_cut_result_of_a_teacher_is_said_and_the_teacher_trained_again_where_it_is_needed(
    copied: tuple[Path, Path], kdbench: Kdbench
) -> None:
    suite, runs = copied
    (result,) = runs.glob("teachers/*/result.json")
    checksum = read_json(result)["checksum"]
    result.write_bytes(b"{")
    said = again(kdbench, suite, runs)
    assert f"note: {result.parent} is damaged" in said.out
    assert "nothing to train" in said.out  # no cell is left that needs it
    said = again(kdbench, suite, runs, "--methods", "fitnet")
    assert said.status == 0
    assert read_json(result)["checksum"] == checksum


def test_failed_cell_stays_failed_until_it_is_asked_for_again(
    copied: tuple[Path, Path], kdbench: Kdbench, write_plugin: Callable[..., Path]
) -> None:
    suite, runs = copied
    plugin = write_plugin("nanny", loss=NAN)
    first = again(kdbench, suite, runs, "--plugin", plugin)
    assert first.status == 1
    assert "why:    loss term 'ce' is not finite at epoch 1, step 3" in first.out
    second = again(kdbench, suite, runs, "--plugin", plugin)
    assert second.status == 1
    assert "nothing to train" in second.out
    assert "nanny" in kdbench("status", suite, "--out", runs, "--plugin", plugin).out
    third = again(kdbench, suite, runs, "--plugin", plugin, "--retry-failed")
    assert third.status == 1
    assert "1 cell to train" in third.out


def test_plugin_that_raises_at_import_leaves_the_others_their_run(
    copied: tuple[Path, Path], kdbench: Kdbench, write_plugin: Callable[..., Path]
) -> None:
    suite, runs = copied
    plugin = write_plugin("bad", before="raise RuntimeError('boom')")
    said = again(kdbench, suite, runs, "--plugin", plugin, "--methods", "scratch,fitnet,bad")
    assert said.status == 1
    assert "2 done, 1 failed, 0 skipped" in said.out
    assert said.out.count("failed: cnn--vit/bad/seed0") == 1
    assert f"kdbench: plugin {plugin} raised when it was imported: RuntimeError: boom" in said.err
    assert "Traceback" in said.err
    frame = load_results(runs).set_index("method")
    assert frame.loc["fitnet", "state"] == "done"
    assert (frame.loc["bad", "state"], "boom" in frame.loc["bad", "reason"]) == ("failed", True)


# The launcher and what it is given, without training


class Scripted:
    """A launcher whose jobs end as they are told: an error, a crash, or well."""

    capacity = 2

    def __init__(self, ends: dict[str, list[dict[str, Any]]]) -> None:
        self.ends = ends
        self.submitted: list[str] = []
        self.most = 0
        self.cancelled = False
        self._running: list[str] = []

    def submit(self, job: Job) -> None:
        self.submitted.append(job.name)
        self._running.append(job.name)
        self.most = max(self.most, len(self._running))

    def poll(self, seconds: float) -> list[Event]:
        if not self._running:
            time.sleep(0.01)
            return []
        name = self._running.pop(0)
        end = self.ends.get(name, []) and self.ends[name].pop(0)
        if end and "raise" in end:
            raise end["raise"]
        return [{"event": "finished", "job": name, "error": None, **(end or {})}]

    def cancel(self) -> None:
        self.cancelled = True


def planned(trained: tuple[Path, Path], tmp_path: Path, **wanted: Any) -> tuple[Plan, Store]:
    store = Store(tmp_path / "fresh")
    store.check(writable=True)
    request = Request(str(trained[0]), out=str(store.root), device="cpu", **wanted)
    return make_plan(load_suite(request.suite), request, catalog()), store


class Events(Follower):
    """Keeps the events of a run; calls ``tick``, and ``see`` with each event."""

    def __init__(
        self, tick: Callable[[], None] = lambda: None, see: Callable[[Event], None] = lambda event: None
    ) -> None:
        self.kept: list[Event] = []
        self.tick = tick  # type: ignore[method-assign]
        self.see = see

    def event(self, event: Event) -> None:
        self.kept.append(event)
        self.see(event)


def executed(
    made: Plan, store: Store, launcher: Any, tick: Callable[[], None] = lambda: None, **options: Any
) -> tuple[Any, list[Event]]:
    events = Events(tick)
    return execute(made, classify_cells(made, store), store, launcher, follower=events, **options), events.kept


def events_of(launcher: LocalLauncher) -> list[Event]:
    """What a launcher tells of its one job, but for its beginning."""
    events: list[Event] = []
    deadline = time.monotonic() + GUARD
    while not events and time.monotonic() < deadline:
        events += [event for event in launcher.poll(0.1) if event["event"] != "began"]
    return events


def test_teachers_come_first_and_no_more_jobs_run_than_the_launcher_takes(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    made, store = planned(trained, tmp_path, protocol="seeds")
    launcher = Scripted({})
    executed(made, store, launcher)
    names = launcher.submitted
    assert launcher.most == 2
    assert set(names[:2]) == {"teacher cnn", "teacher vit"}
    assert len(names) == len(set(names)) == 6


def test_solo_makes_a_job_of_every_cell(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made, store = planned(trained, tmp_path, protocol="seeds")
    launcher = Scripted({})
    executed(made, store, launcher, cohorts=made.cohorts(solo=True))
    assert len(launcher.submitted) == len(set(launcher.submitted)) == 2 + 12


def test_cells_of_a_teacher_that_failed_fail_with_its_reason_and_the_others_go_on(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    made, store = planned(trained, tmp_path, protocol="seeds")
    launcher = Scripted({"teacher cnn": [{"error": "no space left on the disk"}]})
    summary, events = executed(made, store, launcher)
    reasons = {cell.pair: reason for cell, reason in summary.failed}
    assert reasons["cnn--vit"] == reasons["cnn--mlp"] == "no space left on the disk"
    assert reasons["vit--cnn"] == "it was not finished"  # nothing was trained here, but its job was run
    assert [name for name in launcher.submitted if name.startswith("cnn--")] == []
    assert [name for name in launcher.submitted if name.startswith("vit--")]
    lost = [event for event in events if event["event"] == "finished" and event["job"].startswith("cnn--")]
    assert {event["error"] for event in lost} == {"no space left on the disk"}


def test_job_that_keeps_dying_is_started_again_a_few_times_and_then_failed(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    made, store = planned(trained, tmp_path)
    name = made.cohorts()[0].name
    dies = {"error": "the worker was ended by signal SIGKILL", "crashed": True}
    launcher = Scripted({name: [dict(dies) for _ in range(MAX_CRASHES + 1)]})
    summary, events = executed(made, store, launcher)
    assert launcher.submitted.count(name) == MAX_CRASHES + 1
    assert sum(event["event"] == "restarted" for event in events) == MAX_CRASHES
    assert {reason for _, reason in summary.failed} == {dies["error"]}
    assert store.cell(made.cells[0]).failure().kind == "crash"


def test_anything_that_ends_the_run_cancels_the_workers(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made, store = planned(trained, tmp_path)
    launcher = Scripted({"teacher cnn": [{"raise": KeyboardInterrupt()}]})
    with pytest.raises(KeyboardInterrupt):
        executed(made, store, launcher)
    assert launcher.cancelled
    assert {store.cell(cell).state() for cell in made.cells} == {"planned"}


def test_cells_that_another_run_has_are_waited_for_and_not_trained_again(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    made, store = planned(trained, tmp_path)
    (kd,) = (cell for cell in made.cells if cell.method == "kd")
    other, ticks, shown = Claims("other"), [0], []
    other.take(store.cell(kd).path)

    def tick() -> None:
        ticks[0] += 1
        if ticks[0] == 5:
            shown.append(store.cell(kd).state())
            store.cell(kd).finish(cell_result(kd))
            other.close()

    class Trains(Scripted):
        def submit(self, job: Job) -> None:
            super().submit(job)
            given.append(job.members)
            for cell in made.cells:
                if cell.folder in job.members:
                    store.cell(cell).finish(cell_result(cell))

    given: list[tuple[str, ...]] = []
    summary, events = executed(made, store, Trains({}), tick=tick, recheck=0.0)
    assert shown == ["running"]
    assert kd.folder not in {member for members in given for member in members}
    assert len(summary.done) == 2
    assert [event["cell"] for event in events if event["event"] == "done"].count(kd.key) == 1
    assert {event["event"] for event in events if "where" in event} == {"elsewhere"}


def test_cells_of_a_holder_that_is_gone_are_taken_over_after_the_stated_time(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    made, store = planned(trained, tmp_path)
    for cell in made.cells:
        Claims(beat=1e9).take(store.cell(cell).path)
        elsewhere(store.cell(cell).path)
    start = time.monotonic()
    launcher = Scripted({})
    executed(made, store, launcher, stale=0.5, recheck=0.0)
    assert time.monotonic() - start >= 0.5
    assert launcher.submitted == ["teacher cnn", made.cohorts()[0].name]
    assert store.cell(made.cells[0]).holder() is None


def test_job_that_gets_further_between_its_deaths_is_not_given_up(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made, store = planned(trained, tmp_path)
    name = made.cohorts()[0].name
    dies = {"error": "the worker was ended by signal SIGKILL", "crashed": True}

    class Progresses(Scripted):
        def poll(self, seconds: float) -> list[Event]:
            number = len(self.submitted)
            write_bytes(store.cell(made.cells[0]).path / f"checkpoint-{number:05d}.ckpt", b"x")
            return super().poll(seconds)

    launcher = Progresses({name: [dict(dies) for _ in range(10)]})
    executed(made, store, launcher)
    assert launcher.submitted.count(name) == 11


def test_full_disk_leaves_cells_to_be_gone_on_with_and_says_why(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made, store = planned(trained, tmp_path)
    full = {"error": "No space left on device", "full": True}
    summary, _ = executed(made, store, Scripted({made.cohorts()[0].name: [full]}))
    assert {reason for _, reason in summary.failed} == {"No space left on device"}
    assert {store.cell(cell).state() for cell in made.cells} == {"planned"}


def test_worker_that_hangs_ends_itself_and_writes_where_it_hung(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from kdbench.launch.worker import Reporter\n"
        "report = Reporter(sys.stdout, Path(sys.argv[1], 'events'), 0.5, sys.stderr)\n"
        "for _ in range(4):\n    time.sleep(0.2); report({'event': 'step'})\n"
        "def hangs():\n    time.sleep(10000)\nhangs()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=GUARD)
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "in hangs" in done.stderr


def test_worker_that_was_suspended_is_ended_by_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(job: Job, environment: object) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(["sleep", "10000"], text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]

    monkeypatch.setattr("kdbench.launch.local.start_worker", start)
    launcher = LocalLauncher(1)
    launcher.submit(Job("x", "cohort", ("a",), Request(stall=0.2 / 60, out=str(tmp_path)), 1, "log"))
    (event,) = events_of(launcher)
    assert event["crashed"]
    assert event["error"] == "nothing was heard of it for 0 seconds, and it was ended"


def test_events_of_a_job_are_read_as_its_files_grow_and_rubbish_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"event": "end"}\n')
    files = EventFiles(tmp_path)
    assert files.read() == []  # of an earlier attempt
    (tmp_path / "new.jsonl").write_bytes(b'{"event": "a"}\n\xff\n[1]\n{"event": 3}\n{"event": "b"')
    assert files.read() == [{"event": "a"}]
    with open(tmp_path / "new.jsonl", "a") as file:
        file.write("}\n")
    assert files.read() == [{"event": "b"}]
    assert files.read() == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("2-12", 3600), ("1-00:30:00", 1470), ("5:30", 6), ("0:10:01", 11)],
)
def test_times_of_slurm_are_understood(text: str, minutes: int) -> None:
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time=soon", "is no time"),
        ("partitoin=gpu", "did you mean 'partition'"),
        ("output=/tmp/x", "output is set by kdbench"),
        ("wrap=reboot", "wrap is set by kdbench"),
        ("partition=a b", "is not of the form NAME=VALUE"),
        ("partition=$(reboot)", "is not of the form NAME=VALUE"),
        ("partition", "is not of the form NAME=VALUE"),
    ],
)
def test_options_of_slurm_are_checked_before_anything_is_written(
    kdbench: Kdbench, tmp_path: Path, text: str, message: str
) -> None:
    said = kdbench("run", "--on", "slurm", "--slurm", text, "--out", tmp_path / "runs")
    assert said.status == 2
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_options_of_an_engine_that_is_not_used_and_engines_that_are_not_there_are_told(
    kdbench: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = kdbench("run", "--slurm", "partition=gpu", "--out", tmp_path / "runs")
    assert (said.status, said.err) == (2, "kdbench: --slurm partition=gpu is for --on slurm, not for --on local\n")
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for engine in ("slurm", "ray"):
        said = kdbench("run", "--on", engine, "--out", tmp_path / "runs")
        assert said.status == 2
        assert f"pip install 'kdbench[{engine}]'" in said.err
    assert not (tmp_path / "runs").exists()


# What it may cost


def test_plan_that_costs_more_than_it_may_is_refused_with_its_estimate(
    trained: tuple[Path, Path], kdbench: Kdbench, tmp_path: Path
) -> None:
    said = kdbench("plan", trained[0], "--out", tmp_path / "runs", "--device", "cpu", "--max-hours", "0.0001")
    assert said.status == 2
    assert re.search(r"estimated to take 0\.0\d* hours of computing .*, more than --max-hours 0\.0001", said.err)
    made, store = planned(trained, tmp_path, max_hours=0.0, yes=True)
    with pytest.raises(KdbenchError, match=r"estimated to take .*, more than --max-hours 0"):
        plan_verb.check_cost(made, made.cohorts(), store, store.scan(made.cells), Machine("slurm", 1))


def test_a_long_run_is_asked_for_and_refused_where_nobody_can_be_asked(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = planned(trained, tmp_path)
    cost = (made, made.cohorts(), store, store.scan(made.cells), Machine("slurm", 1))
    with pytest.raises(KdbenchError, match=r"hours of computing .*; to run it anyway: kdbench .*--yes$"):
        plan_verb.check_cost(*cost, ask_above=0.0)
    monkeypatch.setattr("kdbench.cli.console.confirm", lambda question: False)
    with pytest.raises(KdbenchError, match="nothing was started"):
        plan_verb.check_cost(*cost, ask_above=0.0)
    monkeypatch.setattr("kdbench.cli.console.confirm", lambda question: True)
    plan_verb.check_cost(*cost, ask_above=0.0)


def test_short_plan_is_not_timed_before_it_begins(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("steps were timed")

    monkeypatch.setattr("kdbench.forecast.probe.probe_cohort", refuse)
    monkeypatch.setattr("kdbench.forecast.probe.probe_teacher", refuse)
    made = make_plan(load_suite("digits"), Request(device="cpu"), catalog())
    store = Store("nowhere")
    plan_verb.check_cost(made, made.cohorts(), store, store.scan(made.cells), Machine("local", 2))


# State, seen from elsewhere


def test_status_tells_where_a_cell_is_trained_and_how_far_it_is(
    copied: tuple[Path, Path], kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, runs = copied
    made = make_plan(load_suite(str(suite)), Request(protocol="seeds"), catalog())
    store, cell = Store(runs), made.cells[3]
    write_bytes(
        runs / ".jobs" / "t" / "a.jsonl",
        json.dumps({"event": "epoch", "cell": cell.key, "epoch": 1, "epochs": 2, "top1": 33.0}).encode()
        + b'\nrubbish\n{"event": "epoch"}\n{"event": "step", "epoch": 1, "epochs": 2, "step": 3, "steps": 5}\n',
    )
    old = store.cell(cell).path.parent / f"seed{cell.seed}-0123456789"
    old.mkdir(parents=True)
    with Claims("t", ".jobs/t/a.jsonl") as claims:
        claims.take(store.cell(cell).path)
        said = kdbench("status", suite, "--protocol", "seeds", "--out", runs)
    assert f"running on {os.uname().nodename}, process {os.getpid()}, for 0:0" in said.out
    assert ", in epoch 2/2, step 3/5" in said.out
    assert f"  {cell.key}  epoch 1/2, top-1 33.0" in said.out
    assert "stale: 1 result of other configurations" in said.out
    with Claims("t", "../../../etc/passwd") as claims:
        claims.take(store.cell(cell).path)
        assert "root" not in kdbench("status", suite, "--protocol", "seeds", "--out", runs).out.split("pair")[1]


def test_status_is_watched_until_nothing_is_left(
    copied: tuple[Path, Path], kdbench: Kdbench, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, runs = copied
    made = make_plan(load_suite(str(suite)), Request(str(suite), out=str(runs)), catalog())
    folder = Store(runs).cell(made.cells[0])
    content = read_record(folder.result, CellResult)
    folder.result.unlink()
    watch_status(made, Store(runs), 5.0, sleep=lambda seconds: folder.finish(content))
    assert capsys.readouterr().out.count("suite tiny") == 2
    said = kdbench("status", suite, "--out", runs, "--watch")
    assert (said.status, said.out.count("suite tiny")) == (0, 1)
    assert kdbench("status", "--watch", "often").status == 2


def test_job_survives_its_way_to_another_process() -> None:
    request = Request(
        "tiny",
        methods=("kd",),
        seeds=(1, 2),
        set={"kd": {"stages": [2, 4]}},
        plugins=("/p.py",),
        hooks=("/h.py",),
        log=("wandb",),
        memory=2.5,
    )
    job = Job("name, ä", "cohort", ("a", "b"), request, 2, "log", memory=3, cells=2)
    assert Job.from_json(job.to_json()) == job


def test_unknown_share_of_a_plan_is_told(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = planned(trained, tmp_path)
    launcher = InProcessLauncher()
    launcher.submit(dataclasses.replace(job_for_cohort(made, made.cohorts()[0]), members=("tiny/gone",)))
    (event,) = launcher.poll(0)
    assert "is not in the plan any more" in event["error"]


# The wall clock


@pytest.mark.parametrize(
    ("jobs", "workers", "seconds"),
    [
        ([], 2, 0),
        ([("a", 3)], 0, 3),
        ([("a", 3), ("b", 2), ("c", 1)], 1, 6),
        ([("a", 3), ("b", 2), ("c", 1)], 2, 3),  # c follows b
        ([("a", 1), ("b", 2), ("c", 3)], 2, 4),  # c follows a: the order is kept
        ([("a", 3), ("b", 2), ("c", 1)], 9, 3),
        ([("t", 5), ("x", 4, "t")], 2, 9),  # one after the other, whatever the workers
        ([("t", 5), ("x", 4, "t"), ("y", 4, "t")], 2, 9),
        ([("t", 5), ("x", 4, "t"), ("y", 4, "t")], 1, 13),
        ([("t", 5), ("x", 4, "t"), ("y", 4, "t"), ("z", 2)], 2, 9),  # z fills the gap beside t
        ([("t", 5), ("x", 4, "t"), ("y", 4, "t"), ("z", 6)], 2, 10),  # y begins when z ends, at 6
        ([("s", 2), ("t", 5), ("x", 4, "t"), ("y", 1, "s")], 2, 9),  # y at 2 beside t
        ([("s", 2), ("t", 5), ("x", 4, "t"), ("y", 1, "s")], 3, 9),
        ([("s", 1), ("t", 10), ("x", 3, "s"), ("y", 2, "t")], 3, 12),  # an idle worker waits for s, not for t
    ],
)  # fmt: skip
def test_wall_time_is_that_of_workers_who_take_the_jobs_in_order(
    jobs: Sequence[tuple[Any, ...]], workers: int, seconds: float
) -> None:
    estimates = [JobEstimate(job[0], job[1], "measured", *job[2:]) for job in jobs]
    assert wall_time(estimates, workers) == seconds


# In processes of their own


@pytest.mark.slow
def test_worker_that_is_killed_goes_on_from_its_checkpoint_with_the_same_numbers(
    copied: tuple[Path, Path], kdbench: Kdbench, tmp_path: Path
) -> None:
    suite, runs = copied
    shutil.copytree(runs, tmp_path / "other")
    assert again(kdbench, suite, tmp_path / "other", "--protocol", "long").status == 0
    request = Request(str(suite), protocol="long", out=str(runs), device="cpu")
    made = check_cells(make_plan(load_suite(request.suite), request, catalog()))
    store, launcher = Store(runs), LocalLauncher(1)
    killed: list[int] = []

    def kill(event: Event) -> None:
        saved = any(store.cell(cell).checkpoints() for cell in made.cells)
        if event["event"] == "epoch" and event["epoch"] >= 2 and saved and not killed:
            (process,) = launcher._processes.values()
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    events = Events(see=kill)
    summary = execute(made, classify_cells(made, store), store, launcher, follower=events)
    assert len(killed) == 1
    assert not summary.failed
    assert [event["error"] for event in events.kept if event["event"] == "restarted"] == [
        "the worker was ended by signal SIGKILL (often the operating system's reaction to too little memory)"
    ]
    resumed = {event["cell"]: event["epoch"] for event in events.kept if event["event"] == "resumed"}
    assert set(resumed) == {cell.key for cell in made.cells}
    assert all(epoch >= 1 for epoch in resumed.values())
    for cell in made.cells:
        whole, pieces = (read_json(Store(root).cell(cell).result)["metrics"] for root in (tmp_path / "other", runs))
        assert pieces == whole
        assert store.cell(cell).checkpoints() == []


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the workers")
def test_ctrl_c_keeps_what_is_done_and_the_printed_commands_go_on_and_replay(
    copied: tuple[Path, Path], kdbench: Kdbench, write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    trained, runs = copied  # its teacher serves this protocol too
    content = yaml.safe_load(trained.read_text())
    content["protocols"]["long"]["recipe"]["epochs"] = 150  # a busy machine may be late to interrupt
    suite = tmp_path / "tiny.yaml"
    suite.write_text(yaml.safe_dump(content))
    plugin = write_plugin("nanny", loss=NAN)
    words = [
        "run",
        str(suite),
        "--protocol",
        "long",
        "--out",
        str(runs),
        "--plugin",
        str(plugin),
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli.parser", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + GUARD
        while not list(runs.glob("tiny/long/*/kd/*/checkpoint-*.ckpt")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        workers = _children(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=GUARD)
    finally:
        process.kill()
    assert workers
    assert not any(map(_alive, workers))
    assert (process.returncode, err) == (130, "")
    found = re.search(r"interrupted: 0 of 3 cells are done and kept; continue with: (.*)", out)
    assert found is not None, out
    frame = load_results(runs, "tiny", "long").set_index("method")
    assert frame["state"].to_dict() == {"kd": "planned", "nanny": "failed", "scratch": "planned"}
    assert frame.loc["kd", "reason"].startswith("interrupted; ")

    assert found[1] == shlex.join(["kdbench", *words])
    rest = shlex.split(found[1])[1:]
    said = kdbench(*rest, "--on", "inprocess")  # here, to save the seconds that a process needs to begin
    assert said.status == 1
    assert "2 done, 1 failed, 0 skipped" in said.out
    frame = load_results(runs, "tiny", "long").set_index("method")
    assert frame["state"].to_dict() == {"kd": "done", "nanny": "failed", "scratch": "done"}
    log = (runs / frame.loc["kd", "path"] / "log.txt").read_text()
    assert re.search(
        r"resumed after epoch \d+, step \d+", log
    )  # within an epoch: it was saved when it was asked to end

    (replay,) = re.findall(r"replay: (.*)", said.out)
    said = kdbench(*shlex.split(replay)[1:], "--on", "inprocess")
    assert said.status == 1
    assert "1 cell to train in 1 cohort" in said.out
    assert "failed: cnn--vit/nanny/seed0\n  why:    loss term 'ce' is not finite at epoch 1, step 3" in said.out
    assert re.findall(r"replay: (.*)", said.out) == [replay]


def test_worker_ends_when_its_parent_is_gone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench.launch.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, err = process.communicate(b"", timeout=GUARD)
    assert (process.returncode, err) == (1, b"")


def test_a_file_of_the_current_folder_hides_no_library_from_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")
    monkeypatch.chdir(tmp_path)
    launcher = LocalLauncher(1)
    launcher.submit(Job("x", "cohort", ("a",), Request("nosuch", out=str(tmp_path)), 1, "worker.log"))
    (event,) = events_of(launcher)
    assert event["error"].startswith("unknown suite 'nosuch'")


def test_worker_says_why_it_cannot_do_its_job(tmp_path: Path) -> None:
    job = Job("x", "cohort", ("a",), Request("nosuch", out=str(tmp_path)), 1, "logs/worker.log")
    launcher = LocalLauncher(1)
    launcher.submit(job)
    (event,) = events_of(launcher)
    assert event["event"] == "finished"
    assert event["error"].startswith("unknown suite 'nosuch'")
    assert not event["crashed"]
