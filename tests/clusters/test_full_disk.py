"""A file system that fills up while students are trained: a small one in memory, as root.

``pytest -m slow tests/clusters/test_full_disk.py -n0 -s``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.cli.parser import main

from .same import differences, write_matrix

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def test_full_disk_costs_no_result_and_changes_none(small: Path, tmp_path: Path) -> None:
    suite = write_matrix(tmp_path / "tiny.yaml", 40)
    assert main(["run", str(suite), "--out", str(tmp_path / "whole"), "--device", "cpu"]) == 0
    words = ["run", str(suite), "--out", str(small / "runs"), "--device", "cpu", "--workers", "1"]
    command = [sys.executable, "-m", "kdbench.cli.parser", *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not list(small.glob("runs/*/*/*--*/*/seed*/checkpoint-*.ckpt")):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    fill(small / "filler")
    out, _ = run.communicate(timeout=600)
    assert run.returncode == 1, out
    assert "No space left on device" in out
    assert "Traceback" not in out
    print(*[line for line in out.splitlines() if "No space" in line], sep="\n")
    (small / "filler").unlink()
    assert main(words) == 0
    assert differences(tmp_path / "whole", small / "runs") == []
