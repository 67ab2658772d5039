"""Slurm and Ray as they are: the numbers of a run on this machine, whatever is done to jobs and nodes while they work.

Each takes a minute or two, needs root, and its engine (``install-slurm.sh``, ``install-ray.sh``):
``pytest -m slow tests/clusters/test_engines.py -n0 -s``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .same import differences, times_trained, write_matrix

HERE = Path(__file__).parent
WITH_SLURM, WITH_RAY = HERE / "with-slurm.sh", HERE / "with-ray.sh"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network of its own")
needs_slurm = pytest.mark.skipif(
    shutil.which("slurmctld") is None or importlib.util.find_spec("submitit") is None, reason="see install-slurm.sh"
)
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="see install-ray.sh")
pytestmark = [pytest.mark.slow, needs_root]


def said(*words: object) -> str:
    """Run a command to its good end and return what it printed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL, cwd=HERE.parent.parent
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def on_this_machine(tmp_path: Path, epochs: int = 40) -> tuple[Path, Path]:
    suite = write_matrix(tmp_path / "tiny.yaml", epochs)
    said(sys.executable, "-m", "kdbench.cli.parser", "run", suite, "--out", tmp_path / "local", "--device", "cpu")
    return suite, tmp_path / "local"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke") / "local"
    said(sys.executable, "-m", "kdbench.cli.parser", "run", "digits", "--protocol", "smoke", "--out", out)
    return out


@needs_slurm
def test_digits_on_slurm_has_the_numbers_of_a_local_run(smoke: Path, tmp_path: Path) -> None:
    words = ("run", "digits", "--protocol", "smoke", "--on", "slurm", "--out", tmp_path / "slurm")
    said(WITH_SLURM, tmp_path / "cluster", sys.executable, "-m", "kdbench.cli.parser", *words)
    assert differences(smoke, tmp_path / "slurm") == []


@needs_ray
def test_digits_on_ray_has_the_numbers_of_a_local_run(smoke: Path, tmp_path: Path) -> None:
    script = '"$0" -m kdbench.cli.parser run digits --protocol smoke --on ray --out "$1"'
    said(WITH_RAY, tmp_path / "cluster", sys.executable, "bash", "-c", script, sys.executable, tmp_path / "ray")
    assert differences(smoke, tmp_path / "ray") == []


@needs_slurm
@pytest.mark.parametrize("how", ["slurm", "time"])
def test_job_that_is_put_back_into_the_queue_changes_nothing_but_the_time(tmp_path: Path, how: str) -> None:
    suite, local = on_this_machine(tmp_path, 400 if how == "time" else 40)
    out = said(WITH_SLURM, tmp_path / "cluster", sys.executable, HERE / "disturb.py", how, suite, tmp_path / "runs")
    print(*re.findall(r"disturbed.*|cells went on.*", out), sep="\n")
    assert differences(local, tmp_path / "runs") == []
    assert set(times_trained(tmp_path / "runs").values()) == {1}
    assert int(re.findall(r"cells went on from a checkpoint (\d+)", out)[0]) >= 1


@needs_ray
def test_node_that_is_killed_changes_nothing_but_the_time(tmp_path: Path) -> None:
    suite, local = on_this_machine(tmp_path)
    out = said(
        WITH_RAY,
        tmp_path / "cluster",
        sys.executable,
        sys.executable,
        HERE / "disturb.py",
        "ray",
        suite,
        tmp_path / "runs",
    )
    print(*re.findall(r"disturbed.*|cells went on.*", out), sep="\n")
    assert differences(local, tmp_path / "runs") == []
    assert set(times_trained(tmp_path / "runs").values()) == {1}
