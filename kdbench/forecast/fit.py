"""Cohorts that fit into memory: estimated before anything runs, corrected by peaks that were measured, split where too large."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kdbench.datasets.load import open_dataset
from kdbench.forecast.balance import halves
from kdbench.matrix.cells import Cohort, Plan
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import cell_paths

#: A peak says more than an estimate, but a single one may be of a process that did something else.
_LEAST_SCALE, _MOST_SCALE = 0.5, 3.0
#: Of the free memory; the rest is for what other programs need, and for what an allocator cannot use.
USABLE = 0.9


def estimate_memory(
    plan: Plan, cohorts: Sequence[Cohort], store: Store, device: str | None, data: Path | None
) -> list[Cohort]:
    """The cohorts with ``memory``, the bytes that each is likely to take on its device."""
    from kdbench.forecast.memory import cohort_need

    on_gpu = _is_gpu(device)
    scale = measured_scale(store, on_gpu)
    found = []
    for cohort in cohorts:
        images = training_images(plan, cohort.cells[0].split, plan.images_per_class, data)
        found.append(replace(cohort, memory=int(scale * cohort_need(plan, cohort, images, on_gpu).total)))
    return found


def training_images(plan: Plan, split: str, limit: int | None, data: Path | None) -> int:
    """Number of images to train on when ``split`` is measured, at most ``limit`` of a class."""
    known = plan.suite.dataset.training_images(split, limit, plan.request.limit)
    if known is not None:
        return known
    return len(open_dataset(plan.suite.dataset, data, split, plan.request.limit).training(limit))


def measured_scale(store: Store, on_gpu: bool) -> float:
    """How many times its estimate the memory of finished cohorts was, in this run directory; 1 if there are none."""
    ratios = []
    for path in cell_paths(store.root):
        result = CellFolder(store.root / path).look().result
        if result and (result.provenance.device_type != "cpu") == on_gpu and result.cost.estimated_memory_bytes:
            ratios.append(result.cost.peak_memory_bytes / result.cost.estimated_memory_bytes)
    return min(max(statistics.median(ratios), _LEAST_SCALE), _MOST_SCALE) if ratios else 1.0


def available(device: str | None, workers: int) -> float:
    """Bytes that a cohort may take: of the fullest GPU, or of the host's memory for each worker. Infinite if not known."""
    if _is_gpu(device):
        import torch

        per_gpu = -(-workers // max(1, torch.cuda.device_count()))
        free = min(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))
        return USABLE * free / per_gpu
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return float("inf")
    return USABLE * free / max(1, workers)


def fit(
    cohorts: Sequence[Cohort], limit: float, estimated: Callable[[Sequence[Cohort]], Sequence[Cohort]]
) -> list[Cohort]:
    """Halve cohorts until each takes at most ``limit`` bytes, or is a single cell: that goes on in parts of a batch.

    It changes time, never numbers.
    """
    fitting: list[Cohort] = []
    waiting = list(cohorts)
    while waiting:
        cohort = waiting.pop(0)
        if cohort.memory <= limit or len(cohort.cells) == 1:
            fitting.append(cohort)
        else:
            waiting[:0] = estimated(halves(cohort))
    return fitting


def _is_gpu(device: str | None) -> bool:
    if device is not None:
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
