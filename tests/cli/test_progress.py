"""What a run shows while it goes on."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest

from kdbench.cli.progress import LiveProgress, PlainProgress, Progress, format_seconds, make_progress
from kdbench.launch.job import Job
from kdbench.matrix.request import Request

TEACHER, COHORT = "teacher cnn", "cnn--vit, token, seed 0"


def jobs() -> list[Job]:
    return [
        Job(TEACHER, "teacher", ("teachers/cnn",), Request(), 1, "log"),
        Job(COHORT, "cohort", ("a", "b", "c"), Request(), 1, "log"),
    ]


def epoch(job: str, cell: str, number: int, top1: float, epochs: int = 4) -> dict[str, Any]:
    return {"event": "epoch", "job": job, "cell": cell, "epoch": number, "epochs": epochs, "top1": top1}


def followed(progress: Progress) -> Progress:
    """A teacher is trained, then two of three cells are done and one has failed."""
    progress.start(jobs())
    events: list[dict[str, Any]] = [
        {"event": "started", "job": TEACHER},
        epoch(TEACHER, "cnn", 1, 50.0, 2),
        epoch(TEACHER, "cnn", 2, 60.0, 2),
        {"event": "done", "job": TEACHER, "cell": "cnn", "top1": 60.0, "seconds": 1.0},
        {"event": "finished", "job": TEACHER, "error": None},
        {"event": "started", "job": COHORT},
        epoch(COHORT, "a", 1, 10.0),
        epoch(COHORT, "b", 1, 20.0),
        {"event": "failed", "job": COHORT, "cell": "c", "kind": "exception", "reason": "why"},
        epoch(COHORT, "a", 2, 30.0),
        epoch(COHORT, "b", 2, 40.0),
    ]
    for event in events:
        progress.event(event)
    return progress


def test_share_done_weighs_each_job_by_its_cells() -> None:
    progress = Progress(3)
    assert progress.share_done() == 1.0  # nothing to do
    progress.start(jobs())
    assert progress.share_done() == 0.0
    followed(progress)
    assert progress.share_done() == pytest.approx((1 * 1 + 3 * 0.5) / 4)


def test_cells_are_counted_and_teachers_are_not() -> None:
    progress = followed(Progress(5, done_cells=2))
    assert (progress.done, progress.failed) == (2, 1)
    progress.event({"event": "done", "job": COHORT, "cell": "a", "top1": 50.0, "seconds": 1.0})
    assert progress.done == 3
    assert progress.failures == ["c: why"]


def test_restart_of_a_job_is_told_and_a_lost_job_with_its_reason() -> None:
    progress = followed(Progress(3))
    progress.event({"event": "restarted", "job": COHORT, "error": "the worker was ended by signal SIGKILL"})
    progress.event({"event": "resumed", "job": COHORT, "cell": "a", "epoch": 1})
    assert "restarted from its last checkpoint" in progress.failures[-1]
    assert progress.jobs[COHORT]["epoch"] == 1
    progress.event({"event": "finished", "job": COHORT, "error": "the disk is full"})
    assert progress.failures[-1] == f"{COHORT}: the disk is full"
    assert progress.share_done() == 1.0
    assert progress.running() == []


def test_event_of_an_unknown_job_does_no_harm() -> None:
    progress = Progress(3)
    progress.event({"event": "epoch", "job": "nobody", "cell": "x"})
    assert progress.jobs == {}


def step(job: str, number: int, epoch: int = 0) -> dict[str, Any]:
    return {"event": "step", "job": job, "epoch": epoch, "epochs": 4, "step": number, "steps": 100}


def minutes(text: str) -> float:
    parts = [int(part) for part in text.split(":")]
    return parts[0] + parts[1] / 60


def test_nothing_is_said_of_the_time_left_before_a_cohorts_steps_were_measured() -> None:
    now = [0.0]
    progress = Progress(3, clock=lambda: now[0])
    progress.start(jobs())
    progress.event({"event": "started", "job": TEACHER})
    for second in range(60):  # a teacher takes as long as it likes
        now[0] = float(second)
        progress.event({**step(TEACHER, second), "epochs": 1})
        assert progress.left() == ""
    progress.event({"event": "finished", "job": TEACHER, "error": None})
    progress.event({"event": "started", "job": COHORT})
    now[0] = 100.0  # loading data
    progress.event(step(COHORT, 1))
    assert progress.left() == ""
    now[0] = 101.0
    progress.event(step(COHORT, 2))
    assert progress.left() == ""  # too short
    now[0] = 110.0
    progress.event(step(COHORT, 11))
    assert progress.left() == "6:29"  # 389 steps of a second: how long it took to begin is no part of it


def test_time_left_falls_evenly_from_the_first_measured_steps_on() -> None:
    now = [0.0]
    progress = Progress(6, clock=lambda: now[0])
    waiting = Job("other", "cohort", ("d", "e", "f"), Request(), 1, "log")
    progress.start([*jobs()[1:], waiting])
    progress.event({"event": "started", "job": COHORT})
    told = []
    for second in range(400):
        now[0] = 30.0 + second
        progress.event(step(COHORT, second % 100, second // 100))
        if text := progress.left():
            told.append(minutes(text))
    assert told[0] == pytest.approx((2 * 400 - 2) / 60, abs=0.05)  # the other cohort has as many cells
    assert all(later <= earlier for earlier, later in itertools.pairwise(told))
    assert told[-1] == pytest.approx(401 / 60, abs=0.05)


def test_a_sudden_change_of_speed_is_taken_in_smoothly() -> None:
    now = [0.0]
    progress = Progress(3, clock=lambda: now[0])
    progress.start(jobs()[1:])
    progress.event({"event": "started", "job": COHORT})
    for second in range(11):
        now[0] = float(second)
        progress.event(step(COHORT, second))
        before = progress.left()
    now[0] = 21.0  # ten seconds without a step
    progress.event(step(COHORT, 11))
    after = progress.left()
    assert before == "6:30"
    assert minutes(after) < 8.5  # told at once it would be 12:23
    assert minutes(after) > 6.5


def test_teachers_alone_have_a_time_left_too() -> None:
    now = [0.0]
    progress = Progress(0, clock=lambda: now[0])
    progress.start(jobs()[:1])
    progress.event({"event": "started", "job": TEACHER})
    for now[0] in (0.0, 100.0):
        progress.event(step(TEACHER, int(now[0] / 4)))
    assert progress.left() == "25:00"


def test_plain_lines_come_every_few_seconds_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with followed(PlainProgress(5, 2, lambda: now[0])) as progress:
        for _ in range(100):
            now[0] += 0.1
            progress.tick()
        assert len(capsys.readouterr().out.splitlines()) in (1, 2)
        now[0] = 20.0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"[0:20]  cells 2/5  failed 1  | {COHORT} epoch 2/4, top-1 30.0 to 40.0"


def test_live_view_shows_what_runs_and_what_failed() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with followed(LiveProgress(5, 2, console)) as progress:
        progress.tick()
    with console.capture() as captured:
        console.print(progress._view())  # type: ignore[attr-defined]
    text = captured.get()
    for words in ("2/5 cells", "1 failed", COHORT, "epoch 2/4", "c: why"):
        assert words in text, words
    assert TEACHER not in text


def test_square_brackets_in_names_and_reasons_are_shown_as_they_are() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    progress = LiveProgress(1, 0, console)
    progress.start([Job("a [red]b[/nothing]", "cohort", ("x",), Request(), 1, "log")])
    progress.event({"event": "started", "job": "a [red]b[/nothing]"})
    progress.event({"event": "failed", "job": "a [red]b[/nothing]", "cell": "x", "reason": "shape [2, 3] [/bad]"})
    with console.capture() as captured:
        console.print(progress._view())
    assert "a [red]b[/nothing]" in captured.get()
    assert "shape [2, 3] [/bad]" in captured.get()


def test_plain_lines_are_chosen_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_progress(3, 0), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3599, "59:59"), (3700, "1:01:40"), (100 * 3600, "100:00:00")],
)
def test_seconds_are_shown_as_a_clock_does(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_plain_lines_tell_warnings_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress(3)
    progress.start(jobs())
    progress.event({"event": "warning", "job": COHORT, "reason": "one process does this alone"})
    assert capsys.readouterr().out == f"note: {COHORT}: one process does this alone\n"
