"""Tables of the report's page by class and by student, and the classes of one cell."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kdbench.reporting.classes import ClassScores, class_notes, grouping, lowest
from kdbench.reporting.costs import count_text, gmacs_text
from kdbench.reporting.frame import Results
from kdbench.reporting.html.tables import Heading, Item, Links, PageTable, number
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.text.leaderboard import signed_text
from kdbench.store.classnames import read_classes
from kdbench.store.reading import Outcomes

#: Rows of the table by class; beyond, the lowest are shown.
MAX_CLASSES = 100
#: Classes of one cell: the lowest, and the highest.
LOWEST_OF_CELL, HIGHEST_OF_CELL = 15, 5


def classes_table(results: Results, scores: ClassScores, links: Links, id: str) -> PageTable | None:
    """Accuracy of the reference by class, and each method's gain over it; None where there is nothing."""
    if scores.message or not scores.reference or len(scores.names) < 2:
        return None
    gains = scores.gains()
    order = lowest(results, scores, scores.accuracy)
    shown = sorted(order[:MAX_CLASSES])
    others = [j for j, name in enumerate(scores.methods) if name != scores.reference]
    base = scores.methods.index(scores.reference)
    reference = links.titles[scores.reference]
    headings = [
        Heading(scores.by, True, "ascending"), Heading("images"), Heading(f"{reference} (%)", first="ascending"),
        Heading("mean gain", first="ascending"),
        *(Heading(links.titles[scores.methods[j]]) for j in others),
    ]  # fmt: skip
    signed = functools.partial(signed_text, decimals=1)
    rows = []
    counted = [j for j in others if scores.methods[j] != "scratch"] or others
    for i in shown:
        finite = [float(gains[i, j]) for j in counted if np.isfinite(gains[i, j])]
        rows.append(
            (
                Item(scores.names[i], aside=scores.above[i]),
                number(float(scores.images[i]), "{:.0f}".format),
                number(float(scores.accuracy[i, base]), "{:.1f}".format),
                number(float(np.mean(finite)) if finite else np.nan, signed),
                *(number(float(gains[i, j]), signed) for j in others),
            )
        )
    some = (
        f" The {len(shown)} classes of lowest accuracy, of {len(scores.names)}."
        if len(shown) < len(scores.names)
        else ""
    )
    return PageTable(
        id, f"by {scores.by}", f"By {scores.by}", tuple(headings), tuple(rows), notes=tuple(class_notes(results, scores)),
        intro=f"Accuracy of {reference} in percent, and each method's gain over it in points.{some} kdbench classes writes "
        "the same as a table for a paper, and every pair as CSV.",
    )  # fmt: skip


def students_table(board: Leaderboard, id: str) -> PageTable | None:
    """What the students cost at inference; None where nothing is known."""
    if not any(np.isfinite(s.gmacs) or np.isfinite(s.images_per_second) for s in board.students):
        return None
    headings = (
        Heading("student", True, "ascending"), Heading("parameters", first="ascending"), Heading("GMACs", first="ascending"),
        Heading("images/s"), Heading("device", True, "ascending"),
    )  # fmt: skip
    rows = tuple(
        (
            Item(s.display),
            number(s.parameters, count_text),
            number(s.gmacs, gmacs_text),
            number(s.images_per_second, count_text),
            Item(s.device),
        )
        for s in board.students
    )
    return PageTable(
        id, "students at inference", "Students at inference", headings, rows,
        notes=("GMACs: 10⁹ multiply-adds of one image at the net's own size, matrix products, convolutions and attention. "
               "Images/s: median of batches of 64 images (256 on a GPU) after one to warm up, measured where the cell was "
               "trained, perhaps beside other work. What a method keeps at inference is in the leaderboard.",),
    )  # fmt: skip


class CellClasses:
    """Accuracy by class of single cells: superclasses where there are few, else the lowest and highest classes."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self._groups: dict[tuple[int, str], tuple[str, list[str], np.ndarray, np.ndarray]] = {}

    def of(self, path: str, dataset: str) -> dict[str, Any] | None:
        """``by``, and ``rows`` of (name, percent right, images), lowest first; None for a cell without labels."""
        right, labels = self.outcomes.correct(path), self.outcomes.labels(path)
        if right is None or labels is None:
            return None
        key = (id(labels), dataset)  # ``outcomes`` keeps the array alive and single
        if key not in self._groups:
            names = read_classes(self.outcomes.root, dataset)
            by = "superclass" if names and names.coarse and len(names.coarse_names or ()) <= 30 else "class"
            titles, _, group = grouping(names, labels, by)
            self._groups[key] = by, titles, group, np.bincount(group, minlength=len(titles))
        by, titles, group, images = self._groups[key]
        share = np.bincount(group, right, minlength=len(titles)) / np.maximum(images, 1) * 100
        order = [int(i) for i in np.argsort(share, kind="stable") if images[i]]
        left_out = max(0, len(order) - 30)
        if left_out:
            left_out = len(order) - LOWEST_OF_CELL - HIGHEST_OF_CELL
            order = order[:LOWEST_OF_CELL] + order[-HIGHEST_OF_CELL:]
        rows = [[titles[i], round(float(share[i]), 1), int(images[i])] for i in order]
        return {"by": by, "rows": rows, "left_out": left_out}
