"""Cohorts that fit a machine: split until every worker has one, and until each fits into memory. It changes time, never numbers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kdbench.data.hostmemory import free_host_memory
from kdbench.matrix.cells import Cohort, Plan
from kdbench.store.folders import CellState

#: A cohort is not split below so many cells for the workers' sake: every part pays a teacher forward of its own.
LEAST_CELLS = 3
#: Measured peaks correct an estimate at most so far: a single one may be of a process that did something else.
_LEAST_SCALE, _MOST_SCALE = 0.5, 3.0
#: Of the free memory; the rest is for what other programs need, and for what an allocator cannot use.
USABLE = 0.9


def balance(cohorts: Sequence[Cohort], workers: int) -> list[Cohort]:
    """Halve the largest cohorts until there are two for each worker, or nothing is large enough.

    With a single worker nothing is split. The parts of a cohort stand last, so that small jobs end the run.
    """
    parts: list[Cohort] = list(cohorts)
    pieces: list[Cohort] = []
    while workers > 1 and len(parts) + len(pieces) < 2 * workers:
        candidates = [cohort for cohort in (*parts, *pieces) if len(cohort.cells) >= 2 * LEAST_CELLS]
        if not candidates:
            break
        largest = max(reversed(candidates), key=lambda cohort: len(cohort.cells))
        (pieces if largest in pieces else parts).remove(largest)
        pieces += _halves(largest)
    return [*parts, *pieces]


def fit(
    cohorts: Sequence[Cohort], limit: float, estimated: Callable[[Sequence[Cohort]], Sequence[Cohort]]
) -> list[Cohort]:
    """Halve cohorts until each takes at most ``limit`` bytes, or is a single cell: that is trained in parts of a batch."""
    fitting: list[Cohort] = []
    waiting = list(cohorts)
    while waiting:
        cohort = waiting.pop(0)
        if cohort.memory <= limit or len(cohort.cells) == 1:
            fitting.append(cohort)
        else:
            waiting[:0] = estimated(_halves(cohort))
    return fitting


def _halves(cohort: Cohort) -> list[Cohort]:
    middle = (len(cohort.cells) + 1) // 2
    return [
        replace(cohort, cells=cells, part=f"{cohort.part}{suffix}" if cohort.part else f"part {suffix}", memory=0)
        for suffix, cells in (("a", cohort.cells[:middle]), ("b", cohort.cells[middle:]))
    ]


def estimate_memory(plan: Plan, states: Mapping[str, CellState], cohorts: Sequence[Cohort]) -> list[Cohort]:
    """The cohorts with ``memory``, the bytes that each is likely to take on its device; 0 where that is not known.

    Args:
        states: of the plan's cells; peaks of those that are done correct the estimate.
    """
    from kdbench.forecast.memory import cohort_need

    on_gpu = _is_gpu(plan.request.device)
    scale = measured_scale(states, on_gpu)
    found = []
    for cohort in cohorts:
        images = training_images(plan, cohort.cells[0].split, plan.under.images_per_class)
        try:
            memory = int(scale * cohort_need(plan, cohort, images, on_gpu))
        except Exception:
            if not any(net.python for net in (cohort.teacher.net, *(cell.student_net for cell in cohort.cells))):
                raise
            memory = 0  # the forward of a net of the user's reads values, which tensors without content have not
        found.append(replace(cohort, memory=memory))
    return found


def measured_scale(states: Mapping[str, CellState], on_gpu: bool) -> float:
    """How many times its estimate the memory of finished cohorts was on this kind of device; 1 if there are none."""
    ratios = [
        result.cost.peak_memory_bytes / result.cost.estimated_memory_bytes
        for result in (state.result for state in states.values())
        if result and result.cost.estimated_memory_bytes and (result.provenance.device_type != "cpu") == on_gpu
    ]
    return min(max(statistics.median(ratios), _LEAST_SCALE), _MOST_SCALE) if ratios else 1.0


def training_images(plan: Plan, split: str, limit: int | None) -> int:
    """Number of images to train on when ``split`` is measured, at most ``limit`` of a class."""
    known = plan.suite.dataset.training_images(split, limit, plan.request.limit)
    return len(plan.dataset(split).training(limit)) if known is None else known


def available(gpus: Sequence[str], workers: int) -> float:
    """Bytes that a cohort may take, for each worker: of the host's memory, or of a GPU's. Infinite if not known.

    A cohort that meets a GPU with less goes on there in smaller groups.

    Args:
        gpus: those that the workers share, as ``$CUDA_VISIBLE_DEVICES`` names them; none for the CPU.
    """
    if gpus:
        of_gpus = free_on(gpus)
        return USABLE * statistics.median(of_gpus) / -(-workers // len(gpus)) if of_gpus else float("inf")
    return USABLE * free_host_memory() / max(1, workers)


def free_on(gpus: Sequence[str]) -> list[int]:
    """Free bytes of GPUs, told by a process of its own, which keeps no context on them; nothing where it fails."""
    code = "import json, torch; print(json.dumps([torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())]))"
    told = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        return list(map(int, json.loads(told.stdout)))
    except ValueError:
        return []


def _is_gpu(device: str | None) -> bool:
    if device is not None:
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
