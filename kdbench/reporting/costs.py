"""What methods and students cost: hours, memory, parameters, multiply-adds, images per second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdbench.reporting.caption import join_names
from kdbench.reporting.frame import Results


@dataclass(frozen=True)
class StudentCost:
    """A student net at inference, without what a method adds. NaN where it is not known.

    ``images_per_second`` is the median over cells on ``device``, the one with most cells.
    """

    student: str
    display: str
    parameters: float
    gmacs: float
    images_per_second: float
    device: str


def student_costs(results: Results) -> list[StudentCost]:
    """Every student with finished cells, in the order of the table."""
    done = results.cells[results.cells["value"].notna()]
    displays = {row["student"]: row["student_display"] for row in results.pair_info.values()}
    costs = []
    for student, display in displays.items():
        own = done[done["student"] == student]
        if own.empty:
            continue
        plain = own[~(own["inference_extra_parameters"] > 0)]
        timed = plain[plain["inference_images_per_second"].notna()]
        device = "" if timed.empty else str(timed["device"].value_counts().index[0])
        costs.append(
            StudentCost(
                student, display, number_or_nan(own["student_parameters"].median()), number_or_nan(plain["student_gmacs"].median()),
                number_or_nan(timed.loc[timed["device"] == device, "inference_images_per_second"].median()), device,
            )
        )  # fmt: skip
    return costs


def hours(cells: pd.DataFrame) -> float:
    """Hours of training of all cells together; a cell's share of its cohort's time. NaN where none is known."""
    seconds = cells["train_seconds"].dropna()
    return math.fsum(seconds) / 3600 if len(seconds) else np.nan


def number_or_nan(number: float) -> float:
    """The number, or ``np.nan`` itself where there is none, so that equal records compare equal."""
    return float(number) if np.isfinite(number) else np.nan


def students_note(costs: Sequence[StudentCost]) -> str:
    """One sentence on all students; empty where nothing is known."""
    known = [cost for cost in costs if np.isfinite(cost.gmacs) or np.isfinite(cost.parameters)]
    if not known:
        return ""
    texts = []
    for cost in known:
        parts = []
        if np.isfinite(cost.parameters):
            parts.append(f"{count_text(cost.parameters)} parameters")
        if np.isfinite(cost.gmacs):
            parts.append(f"{gmacs_text(cost.gmacs)} GMACs")
        if np.isfinite(cost.images_per_second):
            parts.append(f"{count_text(cost.images_per_second)} images/s on {cost.device or 'an unknown device'}")
        texts.append(f"{cost.display} ({', '.join(parts)})")
    return f"Students at inference: {join_names(texts, 20)}."


def gmacs_text(gmacs: float) -> str:
    """Three digits: ``1.81``, ``0.00259``."""
    return "" if np.isnan(gmacs) else f"{gmacs:.3g}"


def count_text(count: float) -> str:
    """A count in three digits: ``1.23 M``."""
    if np.isnan(count):
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
