"""What a run shows while it trains: a live view on a terminal, a plain line every few seconds otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdbench.cli import console
from kdbench.launch.job import Event, Follower, Job

#: Least and most seconds between two plain lines; in between, a fortieth of the time that the run has taken.
MIN_INTERVAL, MAX_INTERVAL = 5.0, 60.0
#: Seconds after which a job's speed is believed, and over which a new forecast replaces the last one.
LEAST_MEASURED, SMOOTHING = 2.0, 30.0
#: Jobs that the live view shows.
MAX_LINES = 20


class Progress(Follower):
    """Follows jobs by their events; subclasses show what it knows while its context lasts."""

    def __init__(self, total_cells: int, done_cells: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.total = total_cells
        self.done = done_cells
        self.failed = 0
        self.began = self.shown = clock()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []
        self._end: tuple[float, float] | None = None  # when it was foretold last, and the end

    def start(self, jobs: Sequence[Job]) -> None:
        """Begin with the jobs of a run."""
        for job in jobs:
            self.jobs[job.name] = {
                "kind": job.kind, "cells": len(job.members), "state": "waiting", "epoch": 0, "epochs": 0, "top1": {}, "error": None,
                "step": 0, "steps": 0, "speed": None, "note": "", "first": None, "seconds": None,
            }  # fmt: skip

    def event(self, event: Event) -> None:
        """Take in an event of a job."""
        job = self.jobs.get(event["job"])
        if job is None:
            return
        kind = event["event"]
        if kind == "started":
            job.update(state="running", note="", seen=None)
        elif kind == "began":
            job["note"] = ""
        elif kind == "queue":
            job["note"] = "" if event["state"] == "RUNNING" else event["state"]
        elif kind == "elsewhere":
            job.update(state="elsewhere", note=f"trained by another run ({event['where']})")
        elif kind == "step":
            self._step(job, event)
        elif kind == "epoch":
            job["epoch"], job["epochs"], job["step"] = event["epoch"], event["epochs"], 0
            job["top1"][event["cell"]] = event["top1"]
        elif kind == "resumed":
            job["epoch"] = event["epoch"]
        elif kind == "warning":
            self.failures.append(f"{event['job']}: {event['reason']}")
        elif kind == "done" and job["kind"] == "cohort":
            self.done += 1
        elif kind == "done":
            job["top1"][event["cell"]] = event["top1"]
        elif kind == "failed" and job["kind"] == "cohort":
            self.failed += 1
            self.failures.append(f"{event['cell']}: {event['reason']}")
        elif kind == "restarted":
            job.update(state="waiting", note="")
            self.failures.append(f"{event['job']}: {event['error']}; restarted from its last checkpoint")
        elif kind == "finished":
            job["state"] = "finished"
            if event["error"]:
                self.failures.append(f"{event['job']}: {event['error']}")
        if kind in ("step", "epoch"):
            self._measure(job)

    def _measure(self, job: dict[str, Any]) -> None:
        """Seconds of a whole job, from how far it came since its first step; starting is no part of it."""
        now, share = self.clock(), _share(job)
        if job["first"] is None or share < job["first"][1]:
            job["first"] = (now, share)
        elif now - job["first"][0] >= LEAST_MEASURED and share > job["first"][1]:
            job["seconds"] = (now - job["first"][0]) / (share - job["first"][1])

    def _step(self, job: dict[str, Any], event: Event) -> None:
        """Where a job is within its epoch, and how fast: the mean over the last half minute or so."""
        job.update(epoch=event["epoch"], epochs=event["epochs"], step=event["step"], steps=event["steps"], note="")
        now, done = event.get("time") or time.time(), event["epoch"] * event["steps"] + event["step"]
        seen = job.get("seen")
        if seen is None or done < seen[1]:
            job["seen"] = (now, done)
        elif now - seen[0] >= 1.0:
            job["speed"] = (done - seen[1]) / (now - seen[0])
            if now - seen[0] >= 30.0:
                job["seen"] = (now, done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """End the display."""

    def share_done(self) -> float:
        """Share of the work that is done, in [0, 1], each job weighted by its cells."""
        total = sum(job["cells"] for job in self.jobs.values())
        if not total:
            return 1.0
        return sum(job["cells"] * _share(job) for job in self.jobs.values()) / total

    def left(self) -> str:
        """Time left, as text; empty until steps of a cohort (of a teacher, where there are only teachers) were measured."""
        kind = "cohort" if any(job["kind"] == "cohort" for job in self.jobs.values()) else "teacher"
        known = [job["seconds"] / job["cells"] for job in self.jobs.values() if job["seconds"] and job["kind"] == kind]
        if not known:
            return ""
        usual = sum(known) / len(known)  # of a cell, for jobs that have not begun
        work = sum((job["seconds"] or usual * job["cells"]) * (1 - _share(job)) for job in self.jobs.values())
        now = self.clock()
        end = now + work / max(1, len(self.running()))
        if self._end is not None:  # what a new measurement says counts more the longer the last one is ago
            before, expected = self._end
            end = expected + (end - expected) * (1 - math.exp((before - now) / SMOOTHING))
        self._end = (now, end)
        return format_time(max(0.0, end - now))

    def running(self) -> list[tuple[str, dict[str, Any]]]:
        """Jobs that are trained now, here or by another run."""
        return [(name, job) for name, job in self.jobs.items() if job["state"] in ("running", "elsewhere")]


class PlainProgress(Progress):
    """A line every few seconds, at most."""

    def event(self, event: Event) -> None:
        super().event(event)
        if event["event"] == "warning":
            console.note(f"{event['job']}: {event['reason']}")

    def tick(self) -> None:
        now = self.clock()
        interval = min(max(MIN_INTERVAL, (now - self.began) / 40), MAX_INTERVAL)
        if now - self.shown >= interval:
            self._line()

    def __exit__(self, *error: object) -> None:
        if self.total:
            self._line()

    def _line(self) -> None:
        self.shown = self.clock()
        shown = self.running()
        running = "; ".join(f"{name} {_describe(job)}" for name, job in shown[:4])
        running += f"; and {len(shown) - 4} more" if len(shown) > 4 else ""
        parts = [f"[{format_seconds(self.clock() - self.began)}]"]
        if self.total:  # else teachers are made ready, and there are no cells yet
            parts.append(f"cells {self.done}/{self.total}")
        if self.failed:
            parts.append(f"failed {self.failed}")
        if left := self.left():
            parts.append(f"about {left} left")
        if running:
            parts.append(f"| {running}")
        console.say("  ".join(parts))


class LiveProgress(Progress):
    """A live view of what runs, with failures at the bottom."""

    def __init__(self, total_cells: int, done_cells: int, terminal: Console) -> None:
        super().__init__(total_cells, done_cells)
        self.live = Live(self._view(), console=terminal, refresh_per_second=4, transient=True)

    def tick(self) -> None:
        self.live.update(self._view())

    def __enter__(self) -> Progress:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def _view(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(width=24)
        grid.add_column(no_wrap=True)
        head = (f"{self.done}/{self.total} cells" if self.total else "teachers") + (
            f", [red]{self.failed} failed[/]" if self.failed else ""
        )
        left = self.left()
        grid.add_row(
            f"[bold]{head}[/]",
            ProgressBar(total=1.0, completed=self.share_done()),
            f"{format_seconds(self.clock() - self.began)}{f', about {left} left' if left else ''}",
        )
        running = self.running()
        for name, job in running[:MAX_LINES]:
            grid.add_row(f"  {escape(name)}", ProgressBar(total=1.0, completed=_share(job)), escape(_describe(job)))
        if len(running) > MAX_LINES:
            grid.add_row(f"  and {len(running) - MAX_LINES} more", "", "")
        return Group(grid, *(Text(f"  {line}", style="red") for line in self.failures[-5:]))


def make_progress(total_cells: int, done_cells: int) -> Progress:
    """The live view when standard output is a terminal, plain lines otherwise."""
    if sys.stdout.isatty():
        return LiveProgress(total_cells, done_cells, Console())
    return PlainProgress(total_cells, done_cells)


def format_seconds(seconds: float) -> str:
    """``75`` to ``1:15``, ``3700`` to ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_time(seconds: float) -> str:
    """As a clock below ten hours, then in rounded hours, from two days on in days too."""
    hours = seconds / 3600
    if hours < 10:
        return format_seconds(seconds)
    return f"{rounded(hours)} hours" + (f" ({rounded(hours / 24)} days)" if hours >= 48 else "")


def format_range(low: float, high: float) -> str:
    """``"about 30 to 90 hours (1.3 to 3.8 days)"``."""
    if high < 600:
        return f"{rounded(low)} to {rounded(high)} seconds"
    low, high = low / 3600, high / 3600
    days = f" ({rounded(low / 24)} to {rounded(high / 24)} days)" if high >= 48 else ""
    return f"{rounded(low)} to {rounded(high)} hours{days}"


def rounded(value: float) -> str:
    """To two digits: what is foretold is no better known."""
    shown = float(f"{value:.2g}")
    return f"{shown:,.0f}" if shown >= 10 else f"{shown:g}"


def _share(job: dict[str, Any]) -> float:
    if job["state"] == "finished":
        return 1.0
    within = job["step"] / job["steps"] if job["steps"] else 0.0
    return (job["epoch"] + within) / job["epochs"] if job["epochs"] else 0.0


def _describe(job: dict[str, Any]) -> str:
    if job["note"]:
        return str(job["note"])
    if not job["epochs"]:
        return "starting"
    scores = job["top1"].values()
    best = (
        f", top-1 {min(scores):.1f} to {max(scores):.1f}"
        if len(scores) > 1
        else f", top-1 {next(iter(scores)):.1f}"
        if scores
        else ""
    )
    within = f" + {100 * job['step'] / job['steps']:.0f} %" if job["step"] and job["steps"] >= 100 else ""
    speed = f", {job['speed']:.3g} steps/s" if job["speed"] else ""
    return f"epoch {job['epoch']}/{job['epochs']}{within}{best}{speed}"
