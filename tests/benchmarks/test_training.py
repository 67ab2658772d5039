"""Every benchmark runs in its quick mode and writes what it found; torchdistill's side is stood in for."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from benchmarks.common import Spread
from benchmarks.memory import Saved
from benchmarks.sides import Finding, added, ratio
from tests.few import few


@pytest.mark.parametrize(
    ("name", "arguments"),
    few([("cohort", []), ("overhead", []), ("methods", ["--methods", "crd"]), ("scaling", []), ("compiled", [])]),
)
def test_a_benchmark_writes_its_ratios_with_device_and_versions(
    name: str, arguments: list[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "found.json"
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--device", "cpu", "--to", str(file), *arguments])
    torch.set_num_threads(threads)
    found = json.loads(file.read_text())
    assert found["benchmark"] == name
    assert found["findings"]
    for finding in found["findings"]:
        assert finding["ratio"]["median"] > 0
    assert found["machine"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["settings"].get("same_numbers", True)


def test_checks_of_a_gpu_run_without_one_as_far_as_they_can_and_an_error_stops_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu

    def raises(options: gpu.Options) -> None:
        raise ValueError("broken")

    monkeypatch.setitem(gpu.CHECKS, "busy", (raises, False))
    file = tmp_path / "gpu.json"
    only = ["memory", "busy", "random_streams"]
    assert gpu.main(["--device", "cpu", "--to", str(file), "--only", *only]) == 1
    found = json.loads(file.read_text())
    assert [entry["check"] for entry in found["checks"]] == ["busy", "random_streams"]
    assert found["checks"][0]["error"] == "ValueError: broken"
    assert found["checks"][1]["found"]["torch alone"] > 0
    assert found["machine"]["device_type"] == "cpu"


SIDE = """
import json, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({"torchdistill": "none"}), flush=True)
for line in sys.stdin:
    print(json.dumps({"wall": 1000.0, "core": 1000.0}), flush=True)
"""


def test_peers_pairs_our_steps_with_those_of_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    (tmp_path / "side.py").write_text(SIDE)
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'side.py'}\n")
    script.chmod(0o755)
    from benchmarks import peers

    file = tmp_path / "found.json"
    threads = torch.get_num_threads()
    status = peers.main(["--quick", "--device", "cpu", "--peer-python", str(script), "--to", str(file)])
    torch.set_num_threads(threads)
    assert status == 0  # less than 1000 seconds
    found = json.loads(file.read_text())
    assert [finding["target"] for finding in found["findings"]] == [1.0, 0.6]
    assert found["machine"]["peer"] == {"torchdistill": "none"}


def test_the_environment_of_the_peer_is_made_once_and_sees_this_ones_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import peers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []
    called: list[list[str]] = []

    def create(folder: Path, **options: object) -> None:
        made.append(folder)
        Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})).mkdir(
            parents=True, exist_ok=True
        )

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 1 if len(called) == 1 else 0)

    monkeypatch.setattr(peers.venv, "create", create)
    monkeypatch.setattr(peers.subprocess, "run", run)
    with pytest.raises(SystemExit, match="could not be installed"):
        peers.peer_environment()
    python = peers.peer_environment()
    assert peers.peer_environment() == python
    assert len(made) == len(called) == 2  # the first failed
    assert called[-1][0] == python
    assert called[-1][-1] == f"torchdistill=={peers.TORCHDISTILL}"
    (beside,) = tmp_path.rglob("beside.pth")
    assert beside.read_text().strip() == sysconfig.get_path("purelib")


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 8.0], [1.0, 4.0]).median == 2.0
    assert added([1.0, 2.0], [10.0, 20.0]) == [11.0, 22.0]


def test_a_target_is_missed_by_the_median() -> None:
    assert Finding("a", Spread.of([1.0, 1.0, 9.0]), 1.1).met is True
    assert Finding("a", Spread.of([1.0, 2.0, 9.0]), 1.1).met is False
    assert Finding("a", Spread.of([1.0])).met is None


def test_memory_of_a_graph_counts_each_storage_once_and_not_what_was_there() -> None:
    weight = torch.ones(10, requires_grad=True)
    other = torch.ones(100)
    saved = Saved(iter([weight]))
    with saved.counting():
        value = weight * weight  # keeps the weight twice, which was there
        (value.exp() * other[:10]).sum()  # keeps its own result, and a part of ``other``
    assert saved.bytes == 4 * (10 + 100)


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    from benchmarks import plots

    spread = {"median": 0.9, "low_quartile": 0.8, "high_quartile": 1.2}
    seconds = {name: {"core": [1.0, 2.0], "wall": [1.0, 2.0]} for name in ("scratch", "kd", "students 1", "students 2",
               "batch 8", "batch 16", "images 500", "images 500, crd")}  # fmt: skip
    common = {"clock": "core", "seconds": seconds, "findings": [{"name": "a: b", "ratio": spread, "target": 1.0}]}
    (tmp_path / "methods.json").write_text(
        json.dumps({**common, "settings": {"methods": ["scratch", "kd"], "saved_bytes": {"scratch": 1, "kd": 2}}})
    )
    memory = {"students 1": 5, "students 2": 9}
    (tmp_path / "scaling.json").write_text(
        json.dumps({**common, "settings": {"state_bytes": memory, "graph_bytes": memory}})
    )
    plots.main(["--from", str(tmp_path), "--to", str(tmp_path / "docs")])
    assert sorted(file.name for file in (tmp_path / "docs").iterdir()) == [
        "performance-methods.png",
        "performance-scaling.png",
        "performance-targets.png",
    ]
