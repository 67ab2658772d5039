"""Cohorts that fill the workers: where there are too few, the largest are split. It changes time, never numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdbench.matrix.cells import Cohort

#: A cohort is not split below so many cells: every part pays a teacher forward of its own.
LEAST_CELLS = 3


def balance(cohorts: Sequence[Cohort], workers: int) -> list[Cohort]:
    """Split the largest cohorts in halves until there are two for each worker, or nothing is large enough.

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
        pieces += halves(largest)
    return [*parts, *pieces]


def halves(cohort: Cohort) -> list[Cohort]:
    """Two cohorts of the cells of one."""
    middle = (len(cohort.cells) + 1) // 2
    return [
        replace(cohort, cells=cells, part=f"{cohort.part}{suffix}" if cohort.part else f"part {suffix}", memory=0)
        for suffix, cells in (("a", cohort.cells[:middle]), ("b", cohort.cells[middle:]))
    ]
