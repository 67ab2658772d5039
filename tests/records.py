"""Results as the engine writes them, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.matrix.cells import Cell
from kdbench.matrix.teachers import TeacherPlan
from kdbench.plugins.metrics import BUILT_IN
from kdbench.store.result import (
    CellMetrics,
    CellResult,
    Cost,
    Definition,
    Provenance,
    TeacherMetrics,
    TeacherResult,
    TeacherUsed,
)

COST = Cost(
    student_parameters=1000,
    extra_parameters=10,
    student_gmacs=0.1,
    inference_images_per_second=100.0,
    inference_batch=64,
    inference_extra_parameters=0,
    step_seconds=0.1,
    train_seconds=1.0,
    steps=10,
    peak_memory_bytes=5,
)
PROVENANCE = Provenance(
    kdbench="0.1.0",
    commit="abc",
    dirty=False,
    python="3.11.7",
    versions={"torch": "2.4", "timm": "1.0.20"},
    device="a processor",
    device_type="cpu",
    threads=1,
    finished="2026-01-01T00:00:00Z",
)


def cell_result(
    cell: Cell,
    top1: float = 90.0,
    best: float | None = None,
    cost: Mapping[str, Any] | None = None,
    device: str = "a processor",
    extra: Mapping[str, Definition] | None = None,
) -> CellResult:
    """A trained cell; ``extra``: metrics of plugins, all with the value 0.5."""
    scores = {**dict.fromkeys(BUILT_IN, 1.0), **dict.fromkeys(extra or {}, 0.5), "top1": top1}
    return CellResult(
        hash=cell.hash,
        metrics=CellMetrics(last=scores, best={**scores, "top1": top1 if best is None else best}, best_epoch=1),
        plugin_metrics=dict(extra or {}),
        losses={"loss": 1.0, "loss_ce": 1.0},
        teacher=TeacherUsed(
            name=cell.teacher.name, hash=cell.teacher.hash, checksum="c", metrics={"top1": 95.0, "top5": 100.0}
        ),
        cost=COST.model_copy(update=dict(cost or {})),
        dataset_checksum="d",
        train_images=1000,
        provenance=PROVENANCE.model_copy(update={"device": device}),
    )


def teacher_result(teacher: TeacherPlan, top1: float = 95.0, **changes: Any) -> TeacherResult:
    """A teacher that was measured on 100 images of 10 classes."""
    known: dict[str, Any] = {
        "name": teacher.name,
        "hash": teacher.hash,
        "checksum": "c",
        "metrics": TeacherMetrics(last={"top1": top1}),
        "images": 100,
        "split_images": 100,
        "classes": 10,
        "dataset_checksum": "d",
        "provenance": PROVENANCE,
    }
    return TeacherResult(**(known | changes))
