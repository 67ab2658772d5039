"""Who trains what: one holder at a time, whoever is killed, suspended or cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from kdbench.store import claims as module
from kdbench.store.claims import ClaimLostError, Claims, Watch, read_holder, remove_claim
from kdbench.store.layout import CLAIM_FILE

HOLD = (
    "import sys, time; from pathlib import Path; from kdbench.store.claims import Claims\n"
    "claims = Claims(ticket=sys.argv[2], beat=0.05)\n"
    "print(claims.take(Path(sys.argv[1])), flush=True)\n"
)


def holding(folder: Path, ticket: str = "", then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, str(folder), ticket],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def elsewhere(folder: Path) -> None:
    """Make the claim on a folder look as if another machine held it."""
    content = json.loads((folder / CLAIM_FILE).read_bytes())
    (folder / CLAIM_FILE).write_text(json.dumps({**content, "machine": "another", "host": "far"}))


def test_a_folder_has_one_holder_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = Claims(), Claims()
    assert first.take(tmp_path)
    assert first.take(tmp_path)
    assert not second.take(tmp_path)
    second.confirm(tmp_path)  # what was never claimed is not checked
    first.release(tmp_path)
    assert os.listdir(tmp_path) == []
    with second:
        assert second.take(tmp_path)
        holder = read_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.where) == (os.getpid(), f"{os.uname().nodename}, process {os.getpid()}")
        assert holder.seems_alive()
    assert read_holder(tmp_path) is None


def test_of_many_processes_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    script = HOLD.replace("claims.take", "sys.stdin.read(1) and claims.take") + "time.sleep(1)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    time.sleep(0.5)
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        answers.append(process.communicate(timeout=30)[0].strip())
    assert sorted(answers) == ["False", "False", "False", "True"]


def test_folder_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    process = holding(tmp_path)
    mine = Claims()
    assert not mine.take(tmp_path)
    assert not Watch().free(tmp_path)
    ended(process)
    holder = read_holder(tmp_path)
    assert holder is not None
    assert holder.is_dead()
    assert not holder.seems_alive()
    assert mine.take(tmp_path)
    mine.close()


def test_process_number_that_was_given_again_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    Claims().take(tmp_path)
    holder = read_holder(tmp_path)
    assert holder is not None
    content = {**asdict(holder), "pid": 1}  # alive, but begun at another time
    (tmp_path / CLAIM_FILE).write_text(json.dumps(content))
    assert Claims().take(tmp_path)


def test_claim_of_another_machine_is_stale_when_it_was_seen_unchanged_for_the_stated_time(tmp_path: Path) -> None:
    now = [1000.0]
    watch = Watch(120.0, lambda: now[0])
    Claims(beat=1e9).take(tmp_path)
    elsewhere(tmp_path)
    os.utime(tmp_path / CLAIM_FILE, (5.0, 5.0))  # a clock that is years behind tells nothing
    assert not watch.free(tmp_path)
    now[0] += 119
    assert not watch.free(tmp_path)
    os.utime(tmp_path / CLAIM_FILE, (4.0, 4.0))  # a heartbeat, by a clock that was set back
    now[0] += 119
    assert not watch.free(tmp_path)
    now[0] += 119
    assert not watch.free(tmp_path)
    now[0] += 1
    assert watch.free(tmp_path)
    assert os.listdir(tmp_path) == []


def test_heartbeat_of_a_living_holder_keeps_its_claim(tmp_path: Path) -> None:
    process = holding(tmp_path)
    try:
        watch = Watch(0.3)
        begun = time.monotonic()
        while time.monotonic() - begun < 1.0:
            assert not watch.free(tmp_path)
            time.sleep(0.05)
    finally:
        ended(process)


def test_suspended_holder_notices_when_it_wakes_up(tmp_path: Path) -> None:
    then = (
        "sys.stdin.readline()\n"
        "try:\n    claims.confirm(Path(sys.argv[1])); print('mine', flush=True)\n"
        "except Exception as error:\n    print(type(error).__name__, error, flush=True)\n"
        "claims.close()\n"
    )
    process = holding(tmp_path, then=then)
    try:
        process.send_signal(signal.SIGSTOP)
        watch = Watch(0.4)
        time.sleep(0.2)
        deadline = time.monotonic() + 20
        while not watch.free(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        mine = Claims()
        assert mine.take(tmp_path)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("go\n", timeout=30)
        assert out.startswith("ClaimLostError")
        assert f"taken over by {os.uname().nodename}, process {os.getpid()}" in out
        mine.confirm(tmp_path)  # the sleeper gave back only what was its own
        mine.close()
    finally:
        ended(process)


def test_later_attempt_of_the_same_job_does_not_wait_for_the_earlier_one(tmp_path: Path) -> None:
    earlier, other, later = Claims("a"), Claims("b"), Claims("a")
    earlier.take(tmp_path)
    elsewhere(tmp_path)
    assert not other.take(tmp_path)
    assert later.take(tmp_path)
    with pytest.raises(ClaimLostError):
        earlier.confirm(tmp_path)
    earlier.release(tmp_path)
    later.confirm(tmp_path)


def test_claim_that_was_made_meanwhile_is_put_back(tmp_path: Path) -> None:
    mine = Claims()
    mine.take(tmp_path)
    remove_claim(tmp_path, "somebody who was seen before")
    mine.confirm(tmp_path)
    assert os.listdir(tmp_path) == [CLAIM_FILE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 3}', b"\xff" * 100, b"[" * 9000])
def test_damaged_claim_is_one_that_does_not_change(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLAIM_FILE).write_bytes(content)
    now = [0.0]
    watch = Watch(120.0, lambda: now[0])
    assert not Claims().take(tmp_path)
    assert not watch.free(tmp_path)
    now[0] = 121.0
    assert watch.free(tmp_path)
    assert Claims().take(tmp_path)


def test_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    first, second = Claims(), Claims()
    assert first.take(tmp_path)
    assert not second.take(tmp_path)
    first.confirm(tmp_path)
    first.close()
    assert os.listdir(tmp_path) == []
