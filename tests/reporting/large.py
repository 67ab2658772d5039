"""A run directory of ten thousand finished cells of a suite, written in seconds: what reading and planning are timed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.files import _checksum
from kdbench.store.folders import FORMAT, METRICS
from kdbench.suite.suite import load_suite


def large_plan(suite: str = "digits", cells: int = 10_000) -> Plan:
    """All methods on all pairs, over as many seeds as give that many cells."""
    methods = catalog()
    loaded = load_suite(suite)
    one = make_plan(loaded, Request(methods=("*",), pairs=("*",), seeds=(0,)), methods)
    seeds = tuple(range(-(-cells // len(one.cells))))
    return make_plan(loaded, Request(methods=("*",), pairs=("*",), seeds=seeds), methods)


def write_large(root: Path, plan: Plan, cells: int = 10_000) -> None:
    """Write config.json and result.json of the first cells of a plan, as the engine does but without fsync."""
    root.mkdir(parents=True)
    (root / "format.json").write_text(json.dumps({"format": FORMAT}))
    for number, cell in enumerate(plan.cells[:cells]):
        folder = root / cell.folder
        folder.mkdir(parents=True)
        scores = dict.fromkeys(METRICS, 50.0 + number * 7919 % 4001 / 100)
        content: dict[str, Any] = {
            "format": FORMAT,
            "hash": cell.hash,
            "metrics": {"last": {"epoch": 60, **scores}, "best": {"epoch": 50, **scores}},
            "teacher": {"name": cell.teacher.name, "top1": 95.0, "top5": 100.0},
            "cost": {
                "student_parameters": 1000, "extra_parameters": 10, "step_seconds": 0.1, "train_seconds": 1.0,
                "peak_memory_bytes": 5, "steps": 10,
            },
            "provenance": {"device": "cpu", "commit": "abc", "dirty": False, "finished": "2026-01-01T00:00:00Z"},
        }  # fmt: skip
        _write(
            folder / "config.json",
            {"format": FORMAT, "hash": cell.hash, "config": cell.config, "facts": cell.facts},
        )
        _write(folder / "result.json", content)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps({**content, "file_checksum": _checksum(content)}, indent=1) + "\n")
