"""Local workers killed with signal 9 at random moments, and two runs on one store: no result lost, doubled or different.

Takes minutes: ``pytest -m slow tests/clusters/test_kills.py -n0 -s``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kdbench.launch.execute import classify_cells, execute
from kdbench.launch.job import Follower
from kdbench.launch.local import LocalLauncher
from kdbench.matrix.cells import make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.suite.suite import load_suite

from .same import differences, results, times_trained, write_matrix

KILLS = 30


def train(suite: Path, out: Path, launcher: LocalLauncher, follower: Follower | None = None) -> None:
    """Train until nothing is left: a job that was killed again and again before its first step counts as failed."""
    request = Request(str(suite), out=str(out), device="cpu", retry_failed=True)
    plan, store = check_cells(make_plan(load_suite(request.suite), request, catalog())), Store(out)
    store.check(writable=True)
    while True:
        todo = classify_cells(plan, store)
        if not todo.train:
            return
        execute(plan, todo, store, launcher, follower=follower)


class Killer(Follower):
    """Kills workers with signal 9, each once: one in five at a random moment of its start, the others of their training."""

    def __init__(self, launcher: LocalLauncher, kills: int, seed: int) -> None:
        self.launcher, self.left, self.random = launcher, kills, random.Random(seed)  # noqa: S311 - no secret
        self.moments: list[tuple[str, float]] = []
        self.over = threading.Event()
        self._trains: dict[str, float] = {}

    def event(self, event: dict[str, Any]) -> None:
        """Note when a worker starts to train."""
        if event["event"] in ("started", "restarted"):
            self._trains.pop(event["job"], None)
        elif event["event"] in ("step", "epoch", "resumed"):
            self._trains.setdefault(event["job"], time.monotonic())

    def run(self) -> None:
        plans: dict[int, tuple[str, float, float]] = {}
        while self.left and not self.over.wait(0.005):
            for job, process in list(self.launcher._processes.items()):
                if process.poll() is not None:
                    continue
                if process.pid not in plans:
                    kind = "start" if self.random.random() < 0.2 else "training"
                    plans[process.pid] = (kind, self.random.uniform(0.1, 5.0), time.monotonic())
                kind, wait, begun = plans[process.pid]
                since = begun if kind == "start" else self._trains.get(job, float("inf"))
                if self.left and time.monotonic() - since >= wait:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()
                        self.left -= 1
                        self.moments.append((kind, time.monotonic() - since))


@pytest.mark.slow
def test_thirty_kills_lose_no_result_double_none_and_change_none(tmp_path: Path) -> None:
    suite = write_matrix(tmp_path / "tiny.yaml", epochs=60)
    train(suite, tmp_path / "whole", LocalLauncher(2))
    moments: list[tuple[str, float]] = []
    compared, matrices, resumed, seed = 0, 0, 0, 0
    while len(moments) < KILLS:
        launcher = LocalLauncher(2)
        killer = Killer(launcher, KILLS - len(moments), seed)
        thread = threading.Thread(target=killer.run, daemon=True)
        thread.start()
        runs = tmp_path / f"killed-{seed}"
        train(suite, runs, launcher, killer)
        killer.over.set()
        thread.join()
        moments += killer.moments
        seed += 1
        assert differences(tmp_path / "whole", runs) == []
        assert set(times_trained(runs).values()) == {1}
        compared, matrices = compared + len(results(runs)), matrices + 1
        resumed += sum(path.read_text().count("resumed after") for path in runs.rglob("log.txt"))
    assert resumed
    within = [seconds for kind, seconds in moments if kind == "training"]
    print(
        f"\n{len(moments)} kills, {len(within)} of them {min(within):.1f} to {max(within):.1f} s after the first step, in {matrices} runs: "
        f"{compared} results compared, none lost, doubled or different; cells went on from a checkpoint {resumed} times"
    )


@pytest.mark.slow
def test_two_runs_at_once_share_a_matrix_and_train_every_cell_once(tmp_path: Path) -> None:
    suite = write_matrix(tmp_path / "tiny.yaml", epochs=20)
    train(suite, tmp_path / "whole", LocalLauncher(2))
    words = ["run", str(suite), "--out", str(tmp_path / "shared"), "--device", "cpu", "--workers", "1", "--solo"]
    runs = [
        subprocess.Popen([sys.executable, "-m", "kdbench.cli.parser", *words], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=500)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert differences(tmp_path / "whole", tmp_path / "shared") == []
    assert set(times_trained(tmp_path / "shared").values()) == {1}
    assert all("4 done, 0 failed" in words for words in said)
