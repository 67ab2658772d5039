"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.store.rows import load_results
from kdbench.suite.suite import load_suite

EXAMPLES = Path(__file__).parents[1] / "examples"
CELLS = EXAMPLES.parent / "results" / "measured" / "digits-full.csv"


def python(*words: object, folder: Path) -> str:
    """Run Python in a process and a folder of its own, as a user would."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_named_in_the_list_of_examples() -> None:
    text = (EXAMPLES / "README.md").read_text()
    found = [
        path for path in EXAMPLES.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    ]
    assert len(found) == 4
    for path in found:
        assert f"({path.name})" in text


def test_the_example_of_a_suite_is_one() -> None:
    suite = load_suite(str(EXAMPLES / "image_folder" / "suite.yaml"))
    assert suite.under("full").pairs == ("teacher--student",)


@pytest.mark.slow
def test_a_figure_is_drawn_from_measured_cells(tmp_path: Path) -> None:
    python(EXAMPLES / "own_figure.py", CELLS, "figure.png", folder=tmp_path)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_folder_of_images_is_trained_on(tmp_path: Path) -> None:
    python(EXAMPLES / "image_folder" / "make_images.py", "data", folder=tmp_path)
    suite = EXAMPLES / "image_folder" / "suite.yaml"
    words = ("run", suite, "--protocol", "smoke", "--data", "data", "--workers", "1")
    python("-m", "kdbench", *words, folder=tmp_path)
    rows = load_results(tmp_path / "runs")
    assert set(rows["method"]) == {"scratch", "kd", "dist"}
    assert set(rows["state"]) == {"done"}


@pytest.mark.slow
def test_a_method_with_its_metric_and_hook_runs_from_one_file(tmp_path: Path) -> None:
    plugin = EXAMPLES / "own_method.py"
    assert "1 of 1 methods pass" in python("-m", "kdbench", "test", "mine-margin", "--plugin", plugin, folder=tmp_path)
    words = (
        "--protocol",
        "smoke",
        "--pairs",
        "resnet-l--vit-s",
        "--methods",
        "scratch,mine-margin",
        "--plugin",
        plugin,
    )
    python("-m", "kdbench", "run", "digits", *words, "--hook", plugin, "--workers", "1", folder=tmp_path)
    rows = load_results(tmp_path / "runs").set_index("method")
    assert rows.loc["mine-margin", "margin"] > 0
    (log,) = (tmp_path / "runs").glob("digits/smoke/*/mine-margin/*/log.txt")
    assert f"margin {rows.loc['mine-margin', 'margin']:.3f}" in log.read_text()


@pytest.mark.slow
def test_methods_are_compared_after_equal_tuning(tmp_path: Path) -> None:
    words = ("--trials", "2", "--protocol", "smoke", "--pairs", "mixer-l--resnet-s", "--limit", "60")
    said = python(EXAMPLES / "tuned_comparison.py", *words, folder=tmp_path)
    assert "KD" in said
    assert "DIST" in said
    assert (tmp_path / "best.yaml").is_file()
    assert set(load_results(tmp_path / "tuned")["seed"]) == {1, 2, 3}
