"""A run directory of ten thousand finished cells of a suite, written in seconds: what reading and planning are timed on."""

from __future__ import annotations

import json
from pathlib import Path

from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.files import encode_json
from kdbench.store.layout import FORMAT, FORMAT_FILE
from kdbench.suite.suite import load_suite
from tests.records import cell_result


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
    (root / FORMAT_FILE).write_text(json.dumps({"format": FORMAT}))
    for number, cell in enumerate(plan.cells[:cells]):
        folder = root / cell.folder
        folder.mkdir(parents=True)
        result = cell_result(cell, top1=50.0 + number * 7919 % 4001 / 100)
        config = {"format": FORMAT, "hash": cell.hash, "config": cell.config, "facts": cell.facts}
        (folder / "config.json").write_bytes(encode_json(config))
        (folder / "result.json").write_bytes(encode_json(result.model_dump(mode="json")))
