"""Trackers: one run per cell, with the rows of its history and no step twice."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix import check
from kdbench.store.folders import CellFolder
from tests.engine.conftest import ONE_EPOCH, Lab
from tests.few import few


class Killed(BaseException):
    """Stands for a process that ends."""


def history(folder: CellFolder) -> dict[str, list[tuple[int, float]]]:
    """Column to (epoch, value)."""
    with open(folder.history, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["epoch"]), float(row[name])) for row in rows] for name in rows[0]}


def kill_in_epoch(number: int) -> Any:
    """Ends the run after the evaluation of an epoch, whose row is logged but whose checkpoint is not written."""

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == number:
            raise Killed

    return emit


def tensorboard(folder: CellFolder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.tensorboard), purge_orphaned_data=False).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb(folder: CellFolder) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.path.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(file):
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                found.setdefault(name, []).append((record.history.step.num, float(item.value_json)))
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a file in LevelDB's log format: blocks of 32 KiB, in which a record may continue."""
    from wandb.proto import wandb_internal_pb2

    data, offset, body = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, size, kind = struct.unpack("<IHB", data[offset : offset + 7])
        body += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            body = b""
            yield record


def mlflow(folder: CellFolder) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    root = folder.path.parents[4]
    client = MlflowClient((root / "mlruns").as_uri())
    (run,) = [run for run in client.search_runs(["0"]) if run.info.run_name == folder.path.relative_to(root).as_posix()]
    return {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


@pytest.mark.parametrize("read", few([tensorboard, wandb, mlflow]))
def test_each_cell_has_a_run_with_every_evaluated_epoch_once_after_an_interruption_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, read: Any
) -> None:
    pytest.importorskip(read.__name__, reason=f"{read.__name__} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    plan = lab.plan(["scratch", "kd"], recipe={"batch_size": 40}, log=(read.__name__,))
    with pytest.raises(Killed):
        lab.train(plan, on_event=kill_in_epoch(2))
    store = lab.train(plan)
    assert any(event["event"] == "resumed" and event["epoch"] == 1 for event in lab.events)
    for cell in plan.cells:
        known, found = history(store.cell(cell)), read(store.cell(cell))
        losses = ["loss", "loss_ce", *(["loss_kd"] if cell.method == "kd" else [])]
        columns = {"lr": "lr", **{f"train/{name}": name for name in losses}, "val/top1": "top1", "val/nll": "nll"}
        for tag, column in columns.items():
            assert [epoch for epoch, _ in found[tag]] == [1, 2, 3], tag
            assert [value for _, value in found[tag]] == pytest.approx([value for _, value in known[column]]), tag


def test_nothing_is_logged_unless_it_is_asked_for(lab: Lab) -> None:
    plan = lab.plan(["scratch"], recipe=ONE_EPOCH)
    folder = lab.train(plan).cell(plan.cells[0])
    assert not folder.tensorboard.exists()
    assert not folder.logged.exists()


def test_a_tracker_that_cannot_be_written_costs_no_training(lab: Lab) -> None:
    plan = lab.plan(["scratch"], recipe=ONE_EPOCH, log=("tensorboard",))
    folder = lab.store("runs").cell(plan.cells[0])
    folder.path.mkdir(parents=True)
    folder.tensorboard.write_text("in the way")
    folder.logged.write_text("cut")
    assert lab.train(plan).cell(plan.cells[0]).state() == "done"
    assert "TensorBoardRun is not written any more: FileExistsError" in folder.log.read_text()


def test_an_epoch_that_is_not_evaluated_has_no_row(lab: Lab) -> None:
    often, seldom = (lab.plan(["kd"], recipe={"evaluate_every": n}, log=("tensorboard",)) for n in (1, 2))
    assert often.cells[0].hash != seldom.cells[0].hash
    folders = [lab.train(plan, str(n)).cell(plan.cells[0]) for n, plan in enumerate((often, seldom))]
    rows = [history(folder) for folder in folders]
    assert [epoch for epoch, _ in rows[1]["top1"]] == [2, 3]
    assert all(rows[1][name] == rows[0][name][1:] for name in ("loss", "loss_kd", "top1", "nll"))
    assert [step for step, _ in tensorboard(folders[1])["val/top1"]] == [2, 3]


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_in_one_line(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KdbenchError, match=r"^unknown tracker 'tensorbord' in --log; did you mean 'tensorboard'\?$"):
        lab.plan(["kd"], log=("tensorbord",))
    monkeypatch.setattr(check, "TRACKERS", ("absent",))
    with pytest.raises(KdbenchError, match=r"^--log absent: .* not installed; pip install 'kdbench\[absent\]'$"):
        lab.plan(["kd"], log=("absent",))
