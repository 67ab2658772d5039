"""What is kept of a trained cell: its scores, history, predictions and cost."""

from __future__ import annotations

import csv
import io
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.engine.teacher import save_weights
from kdbench.method import Method
from kdbench.nets.cost import inference_cost
from kdbench.plugins.metrics import BUILT_IN, METRICS
from kdbench.store.files import write_bytes, write_json
from kdbench.store.folders import CellFolder
from kdbench.store.result import CellMetrics, Cost, Definition, Scores, number, scores


def metrics_of(history: Sequence[Mapping[str, float]]) -> CellMetrics:
    """Of the last epoch, and of the one with the best top-1."""
    best = max(history, key=lambda row: row["top1"])
    return CellMetrics(last=scores_of(history[-1]), best=scores_of(best), best_epoch=int(best["epoch"]))


def scores_of(row: Mapping[str, float]) -> Scores:
    """What was measured, of a row of a history."""
    rest = {"epoch", "lr", *(name for name in row if name.startswith("loss"))}
    return scores({name: value for name, value in row.items() if name not in rest})


def plugin_metrics(values: Iterable[str]) -> dict[str, Definition]:
    """Definitions of those of the measured metrics that come from plugins."""
    return {name: Definition.of(METRICS[name]) for name in values if name in METRICS and name not in BUILT_IN}


def write_predictions(folder: CellFolder, logits: Tensor, labels: Tensor) -> None:
    probability, predicted = logits.double().softmax(dim=1).max(dim=1)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        predicted=predicted.cpu().numpy().astype(np.int32),
        probability=probability.cpu().numpy().astype(np.float32),
        correct=(predicted == labels).cpu().numpy(),
        label=labels.cpu().numpy().astype(np.int32),
    )
    write_bytes(folder.predictions, buffer.getvalue())


def cost_of(cell: CellTrainer, device: torch.device, estimated_memory: int = 0) -> Cost:
    """What a cell's training took and what inference with it takes.

    Args:
        estimated_memory: bytes, of the whole cohort; 0 where nothing was estimated.
    """
    cuda = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    cell.distiller.eval()
    inference = inference_cost(cell.predict, cell.student.input_size, device, cell.measured.method)
    tuning: dict[str, Any] = {"compile": True} if cell.forward_pass.compile else {}
    tuning.update(cell.tuning)
    if cell.forward_pass.fell_back:
        tuning["compile"] = f"fell back: {cell.forward_pass.fell_back}"
    if cell.captured is not True:
        tuning.pop("cuda_streams", None)
    if cell.captured is not None:
        tuning["graphs"] = cell.captured if isinstance(cell.captured, bool) else f"fell back: {cell.captured}"
    return Cost(
        student_parameters=sum(parameter.numel() for parameter in cell.student.parameters()),
        extra_parameters=cell.extra_parameters(),
        student_gmacs=number(inference.gmacs),
        inference_images_per_second=number(inference.images_per_second),
        inference_batch=inference.batch,
        inference_extra_parameters=inference.extra_parameters,
        step_seconds=cell.step_seconds / max(1, cell.steps_timed),
        train_seconds=cell.train_seconds,
        steps=cell.spec.recipe.epochs * cell.steps_per_epoch,
        peak_memory_bytes=int(peak),
        estimated_memory_bytes=estimated_memory or None,
        micro_batches=cell.micro_batches,
        processes=parallel.world_size(),
        tuning=tuning,
    )


def write_history(cell: CellTrainer) -> None:
    columns = list(dict.fromkeys(name for row in cell.history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(cell.history)
    write_bytes(cell.spec.folder.history, text.getvalue().encode())


def write_inference(folder: CellFolder, method: Method) -> None:
    """Keep what inference needs beside the student, of a method with its own ``predict``: what builds it, and its parameters."""
    if type(method).predict is Method.predict:
        return
    task = {name: getattr(method.task, name) for name in ("num_classes", "num_train", "dataset", "epochs")}
    write_json(folder.inference_config, {"teacher": asdict(method.teacher_info), "task": task})
    save_weights(method, folder.inference)


def finish(cell: CellTrainer) -> None:
    """Remove what only an unfinished cell needs."""
    for path in cell.spec.folder.checkpoints():
        path.unlink(missing_ok=True)
    cell.spec.folder.failed.unlink(missing_ok=True)
    cell.spec.folder.say(f"done in {cell.train_seconds:.1f} s")
