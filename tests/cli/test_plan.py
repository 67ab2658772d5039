"""What ``kdbench plan`` reads and says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli.parser import main
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store import folders
from kdbench.store.folders import Store
from kdbench.store.result import write_record
from kdbench.suite.suite import load_suite
from tests.records import cell_result


def test_plan_reads_each_result_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(load_suite("digits"), Request(protocol="full"), catalog())
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    done = [cell for cell in plan.cells if cell.seed < 2]
    for cell in done:
        write_record(store.cell(cell).result, cell_result(cell))
    read: Counter[Path] = Counter()
    plain = folders.read_record

    def counting(path: Path, kind: Any) -> Any:
        found = plain(path, kind)
        read[path] += 1
        return found

    monkeypatch.setattr(folders, "read_record", counting)
    assert (
        main(["plan", "digits", "--protocol", "full", "--out", str(store.root), "--no-probe", "--memory", "1.0"]) == 0
    )
    assert read == {store.cell(cell).result: 1 for cell in done}
