"""Every method in every precision on a CUDA device that is not there: see ``sweep.py``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.plugins.registry import catalog

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library, as Linux does"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA"),
]

#: Losses that a CPU takes and a GPU does not, or only by waiting, and what is said of them.
WRONG = {
    "elsewhere": ("(student.logits - KEPT).square().mean()", "device"),
    "made_here": ("(student.logits * torch.arange(student.logits.shape[1])).mean()", "device"),
    "reads": ("student.logits.mean() * float(student.logits.max())", "DataDependentOutput"),
    "chooses": ("student.logits[student.logits > 0].mean()", "DynamicOutputShape"),
    "half": ("student.logits.bfloat16().mean()", "term ce is torch.bfloat16"),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    assert COMPILER is not None
    library = tmp_path / "libcuda.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, HERE / "driver.c"], check=True)
    place = {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(HERE.parents[1])}

    def run(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.fakecuda.sweep", *map(str, words)]
        done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_method_runs_on_every_kind_of_pair(sweep: Callable[..., dict[str, Any]], precision: str) -> None:
    found = sweep(precision)
    assert found["wrong"] == {}
    assert found["ran"] + found["unsuited"] == 9 * len(catalog())
    assert found["ran"] > 8 * len(catalog())


def test_what_a_gpu_does_not_take_is_found(
    sweep: Callable[..., dict[str, Any]], write_plugin: Callable[..., Path]
) -> None:
    plugins = [write_plugin(name, "import torch\nKEPT = torch.zeros(1, 7)", loss) for name, (loss, _) in WRONG.items()]
    found = sweep("float32", *WRONG, *(word for plugin in plugins for word in ("--plugin", plugin)))
    assert found["ran"] == 0
    assert len(found["wrong"]) == 9 * len(WRONG)
    for name, (_, reason) in WRONG.items():
        said = [text for place, text in found["wrong"].items() if place.startswith(f"{name},")]
        assert all(reason in text for text in said), said
