"""What is kept of a trained cell: its scores, history, predictions and cost."""

from __future__ import annotations

import csv
import io
import resource
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.nets.cost import inference_cost
from kdbench.store.folders import CellFolder, write_bytes


def scores(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "lr" and not name.startswith("loss")}


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


def cost_of(cell: CellTrainer, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    inference = inference_cost(cell.eval().predict, cell.student.input_size, device, cell.method)
    return {
        "student_parameters": sum(parameter.numel() for parameter in cell.student.parameters()),
        "extra_parameters": cell.extra_parameters(),
        "student_gmacs": inference.gmacs,
        "inference_images_per_second": inference.images_per_second,
        "inference_batch": inference.batch,
        "inference_extra_parameters": inference.extra_parameters,
        "step_seconds": cell.step_seconds / max(1, cell.steps_timed),
        "train_seconds": cell.train_seconds,
        "steps": cell.epoch * cell.steps_per_epoch,
        **_tuning_facts(cell),
        **({"micro_batches": cell.micro_batches} if cell.micro_batches > 1 else {}),
        **({"processes": parallel.world_size()} if parallel.world_size() > 1 else {}),
        # of the whole cohort's process
        "peak_memory_bytes": int(peak),
    }


def _tuning_facts(cell: CellTrainer) -> dict[str, Any]:
    """How the run used its machine, where that was not the default."""
    facts = cell.tuning.facts()
    if cell.forward_pass.fell_back:
        facts["compile"] = f"fell back: {cell.forward_pass.fell_back}"
    if cell.captured is not None:
        facts["graphs"] = cell.captured if cell.captured is True else f"fell back: {cell.captured}"
    return {"tuning": facts} if facts else {}


def write_history(cell: CellTrainer) -> None:
    columns = list(dict.fromkeys(name for row in cell.history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(cell.history)
    write_bytes(cell.trainee.folder.history, text.getvalue().encode())


def finish(cell: CellTrainer) -> None:
    """Remove what only an unfinished cell needs."""
    for path in cell.trainee.folder.checkpoints():
        path.unlink(missing_ok=True)
    cell.trainee.folder.failed.unlink(missing_ok=True)
    cell.trainee.folder.say(f"done in {cell.train_seconds:.1f} s")
